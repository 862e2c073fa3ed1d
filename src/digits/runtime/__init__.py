"""Modules that travel in the model folder: they import only what travels beside them."""
