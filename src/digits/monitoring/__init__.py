"""Monitoring of production: label join, histograms, drift test, analysis, report.

A request goes records -> histograms -> drift -> analysis -> report; one engine for stage monitor,
`digits monitor` and the live page. The public interface, all that mlops imports: analysis.Params
(params.yaml's section `monitor`), analysis.analyse, analysis.Monitor with Analysis and Window,
drift.Reference, labels.join, report.findings and report.page.
"""
