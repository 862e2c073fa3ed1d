"""The life of a model: review, deployment, jobs, production. It knows a model by its files."""
