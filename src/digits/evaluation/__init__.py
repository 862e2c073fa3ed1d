"""Metrics of an evaluation: a package of its own, so that a changed metric does not retrain."""
