"""Stage evaluate: metrics of the tree, and the model folder that is deployed."""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import joblib
import sklearn
import yaml
from sklearn.datasets import load_iris

from core import params
from core.files import write_text


@dataclass(frozen=True)
class Params:
    """params.yaml's section `evaluate`."""

    __pydantic_config__ = params.STRICT

    python: str  # that the model is served with


def main(arguments: list[str]) -> None:
    """Write metrics.json, and the folder with the model, its environment and smoke.jsonl."""
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__)
    for name in ("--model", "--metrics", "--package"):
        parser.add_argument(name, type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "evaluate")
    lengths, labels = load_iris(return_X_y=True)
    lengths, labels = lengths[1::3], labels[1::3]
    right = joblib.load(paths.model).predict(lengths) == labels
    metrics = {"accuracy": round(float(right.mean()), 4)}
    write_text(paths.metrics, json.dumps({"iris": metrics}) + "\n")
    rows = [
        {
            "request": {"flowers": [row.tolist()]},
            "answer": {"pointer": "/species/0", "value": task.classes[label]},
        }
        for row, label in zip(lengths, labels, strict=True)
    ]
    requirements = [f"scikit-learn=={sklearn.__version__}", "azureml-inference-server-http"]
    conda = {"dependencies": [f"python={config.python}", "pip", {"pip": requirements}]}
    write_text(paths.package / "smoke.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(paths.package / "conda.yaml", yaml.safe_dump(conda))
    write_text(paths.package / "species.json", json.dumps(task.classes))
    shutil.copyfile(paths.model, paths.package / "tree.joblib")
