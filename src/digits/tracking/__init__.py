"""Experiment tracking with MLflow; it writes no output of a stage."""
