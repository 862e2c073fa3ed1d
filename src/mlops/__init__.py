"""The life cycle of a model: review, deployment, jobs, production. It knows the model by files.

.github/MAKE_IT_YOURS.md, "Replace the model", lists these files. tests/second_model holds a small
model of another kind, for which all this is tested.
"""
