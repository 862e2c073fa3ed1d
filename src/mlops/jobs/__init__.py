"""Run the pipeline as a job of Azure Machine Learning, and download its results."""
