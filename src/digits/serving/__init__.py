"""Entry scripts of the endpoints, uploaded alone: they import nothing else from this project."""
