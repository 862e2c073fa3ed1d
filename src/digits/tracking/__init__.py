"""Tracking of runs by MLflow: it writes no output of a stage."""
