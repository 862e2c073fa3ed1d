"""Stage train: a decision tree for the iris data of scikit-learn."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import joblib
from pydantic import Field
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier

from core import params


@dataclass(frozen=True)
class Params:
    """params.yaml's section `train`."""

    __pydantic_config__ = params.STRICT

    depth: Annotated[int, Field(ge=1)]


def main(arguments: list[str]) -> None:
    """Train on two flowers of three; the others are for stage evaluate."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(arguments).out
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "train")
    lengths, labels = load_iris(return_X_y=True)
    tree = DecisionTreeClassifier(max_depth=config.depth, random_state=task.seed)
    training = [row for row in range(len(labels)) if row % 3 != 1]
    tree.fit(lengths[training], labels[training])
    out.parent.mkdir(parents=True, exist_ok=True)
    joblib.dump(tree, out)
