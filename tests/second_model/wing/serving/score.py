"""What the endpoint runs: the species of each flower of a request."""

import json
import os
from pathlib import Path
from typing import Any

import joblib

tree: Any
species: list[str]


def init() -> None:
    """Load the model folder."""
    global tree, species
    (path,) = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("tree.joblib")
    tree, species = joblib.load(path), json.loads((path.parent / "species.json").read_text())


def run(body: str) -> dict[str, list[str]]:
    """Answer one request."""
    found = tree.predict(json.loads(body)["flowers"])
    return {"species": [species[label] for label in found]}
