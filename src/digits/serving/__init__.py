"""What runs where the model is served: it imports nothing else of this package.

score.py and request.py are uploaded as the deployment's code, with batch.py that of a batch
deployment; digit_model.py travels in the model folder, with exact.py, hint.py and normalise.py
beside it.
"""
