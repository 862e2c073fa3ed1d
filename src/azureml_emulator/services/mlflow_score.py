"""The scoring script of an MLflow model that is deployed without code, as Azure generates it.

A request is {"input_data": ...}: a table {"columns", "index", "data"}, a tensor as lists, or
tensors by name (learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models).
"""

import json
import os
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd

MODELS: list[Any] = []


def init() -> None:
    """Load the model."""
    found = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("MLmodel")
    first = min(found, key=lambda path: len(path.parts))
    MODELS.append(mlflow.pyfunc.load_model(str(first.parent)))


def run(body: str) -> Any:
    """Return the predictions of a request, as a list."""
    data = json.loads(body)["input_data"]
    if isinstance(data, dict) and "data" in data:
        data = pd.DataFrame(**{name: data.get(name) for name in ("data", "columns", "index")})
    elif isinstance(data, dict):
        data = {name: np.asarray(value) for name, value in data.items()}
    else:
        data = np.asarray(data)
    found = MODELS[0].predict(data)
    if isinstance(found, pd.DataFrame):
        return found.to_dict(orient="records")
    return found.tolist() if hasattr(found, "tolist") else found
