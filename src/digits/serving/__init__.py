"""The code of the endpoints: it is uploaded alone, so it imports nothing else of this project."""
