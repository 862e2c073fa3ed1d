"""The life cycle of a model: review, deployment, jobs, production. It uses only the model's files.

.github/MAKE_IT_YOURS.md lists these files under "Replace the model"; see tests/second_model.
"""
