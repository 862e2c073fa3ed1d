"""Evaluation metrics, in a package of their own so that a changed metric causes no retraining."""
