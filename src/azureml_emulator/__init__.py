"""A local Azure Machine Learning for tests and laptops."""
