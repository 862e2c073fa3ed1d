"""The stages of dvc.yaml, one module each, with the same name."""
