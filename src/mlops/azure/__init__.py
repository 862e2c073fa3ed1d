"""Azure Machine Learning through its SDK: the workspace, its endpoints and assets."""
