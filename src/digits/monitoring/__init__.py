"""Monitoring of production: label join, histograms, drift test, analysis, report.

Requests pass through records, histograms, drift, analysis and report, in this order; stage
monitor, `digits monitor` and the live page use the same code. The public interface, which mlops
imports: analysis.Params (params.yaml's section `monitor`), analysis.read, analysis.Monitor with
Analysis and Window, drift.Reference, report.findings and report.page.
"""
