"""Run the pipeline as a job of Azure Machine Learning and bring its results back."""
