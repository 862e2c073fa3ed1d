"""Modules that are copied into the model folder; they import only each other and determinism.py."""
