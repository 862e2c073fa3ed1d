"""Monitoring of production: histograms, drift test, analysis, report."""
