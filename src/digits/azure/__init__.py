"""Deployment on Azure ML or on its stand-in: the only importer of azure.ai.ml."""
