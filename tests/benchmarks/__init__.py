"""Measurements of training, serving, drift detection and rendering: run by make targets."""
