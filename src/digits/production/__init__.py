"""Simulated production traffic, records of requests and labels, batch scoring of files.

The public interface, all that mlops imports: records (requests and labels as rows, from lines of
a data collector or from Parquet), traffic.Schedule (params.yaml's section `simulate`), traffic.read
and traffic.Stream, and the scoring of files.
"""
