"""What runs where the model is served: it imports nothing else of this package."""
