"""Stage train: pools to a calibrated model.

Enters: the pools training and validation. Leaves data/model/model.keras, the curves of the
training and a lineage: which data and params the weights came from. The run is also logged to
MLflow, by default to a local store below data/ that neither git nor DVC keeps. Of several machines
each writes the same files, for the stages that follow on it; the first alone logs the run.
"""

import argparse
import dataclasses
import json
import logging
import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
from filelock import FileLock
from mlflow.entities import Metric, Param
from scipy.optimize import minimize_scalar

from core import params, tf_config
from core.dataset import Digits, read_pool
from core.errors import DigitsError
from core.files import replacing, sha256, write_text
from digits.model import distributed, ood
from digits.model import network as model
from digits.model.training import Recipe as Params
from digits.model.training import fit, measure

# MLflow's own 7 tries of 120 s each would hold up a training that is over.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
LOCK_SECONDS = 120  # waiting for other runs, which take seconds each


def targets(pool: list[Digits], scripts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return all images uint8 (n, size, size) and their classes int32 (n,), script x digit."""
    images = np.concatenate([part.images for part in pool])
    classes = np.concatenate(
        [
            part.labels.astype(np.int32) + scripts.index(part.script) * part.class_count
            for part in pool
        ]
    )
    return images, classes


def find_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature that minimises the loss of logits (n, k), to three decimals."""

    def loss(temperature: float) -> float:
        return measure(logits / temperature, classes)[0]

    return round(float(minimize_scalar(loss, bounds=(0.2, 5), method="bounded").x), 3)


def find_foreign(
    network: keras.Model, training: tuple[np.ndarray, np.ndarray], validation: np.ndarray
) -> keras.KerasTensor:
    """Return how foreign an image looks, as part of the network's graph.

    It is fitted to the training pool's images and classes, and scaled by validation images.
    """
    images, classes = training
    fitted = ood.fit(model.predict(ood.features(network), images), classes)
    squared = ood.squared(network, fitted)
    usual = ood.usual(model.predict(squared, validation))
    return ood.foreign(squared.outputs[0], usual)


def settings(task: params.Task, own: Params) -> list[Param]:
    """Return what MLflow is told of the values that a network is trained with."""
    values = {"epochs": task.epochs, "seed": task.seed} | dataclasses.asdict(own)
    flat = pd.json_normalize(values).to_dict("records")[0]
    return [Param(str(name), str(value)) for name, value in flat.items()]


def log_run(given: list[Param], curves: pd.DataFrame) -> None:
    """Log one run to MLflow; a store that cannot be reached is told, and stops nothing."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        if "MLFLOW_TRACKING_URI" in os.environ:
            log_curves(given, curves)
            return
        store = Path(os.environ.get("DVC_ROOT", "."), "data", "mlflow.db").resolve()
        with FileLock(f"{store}.lock", LOCK_SECONDS), closing(sqlite3.connect(store)) as database:
            database.execute("PRAGMA schema_version")  # MLflow would try a bad file for hours
            mlflow.set_tracking_uri(f"sqlite:///{store}")
            log_curves(given, curves)
    except Exception as error:  # those of MLflow, SQLAlchemy, SQLite, requests ...
        print(f"train: MLflow did not take the run: {error}", file=sys.stderr)


def log_curves(given: list[Param], curves: pd.DataFrame) -> None:
    """Log to the run that MLFLOW_RUN_ID names, or to a new one, named as the DVC experiment is.

    A run that is named is that of an Azure ML job, whose end is not ours to tell.
    """
    if run := os.environ.get("MLFLOW_RUN_ID"):
        write_run(run, given, curves)
        return
    mlflow.set_experiment("digits")
    with mlflow.start_run(run_name=os.environ.get("DVC_EXP_NAME")) as begun:
        write_run(begun.info.run_id, given, curves)


def write_run(run: str, given: list[Param], curves: pd.DataFrame) -> None:
    """Write params and curves to a run, and nothing of how it stands."""
    client, now = mlflow.MlflowClient(), int(time.time() * 1000)
    client.log_batch(run, params=given)
    for row in curves.to_dict("records"):
        step = int(row.pop("epoch"))
        metrics = [Metric(str(key), value, now, step) for key, value in row.items()]
        client.log_batch(run, metrics=metrics)


def main(arguments: list[str]) -> None:
    """Train on the pools, calibrate, write the model, its curves and its lineage."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--curves", type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "train")

    pools = [
        read_pool(path, len(task.classes), task.image_size)
        for path in (paths.training, paths.validation)
    ]
    scripts = list(dict.fromkeys(part.script for part in pools[0]))
    if unknown := {part.script for part in pools[1]} - set(scripts):
        raise DigitsError(
            f"{paths.validation}: has digits of {', '.join(sorted(unknown))}, of which "
            f"{paths.training} has none; bring more of them, or run `dvc repro -f prepare`"
        )
    training, validation = (targets(pool, scripts) for pool in pools)

    count, rank = tf_config.find()
    machines = distributed.Machines() if count > 1 else None
    model.make_exact(task.seed)
    trained = model.build(task.image_size, len(scripts) * len(task.classes))
    trainer = machines.trainer if machines else None
    curves = fit(trained, training, validation, task, own, trainer)
    if machines:
        print(f"machine {rank + 1} of {count}: {distributed.digest(trained)}")
    network = model.fold(trained)
    temperature = find_temperature(model.predict(network, validation[0]), validation[1])
    foreign = find_foreign(network, training, validation[0])

    calibrated = model.calibrate(network, temperature, scripts, foreign)
    model.save(calibrated, paths.out / "model.keras")
    lineage = {
        "scripts": scripts,
        "classes": task.classes,
        "temperature": temperature,
        "data": {path.name: sha256(path) for path in (paths.training, paths.validation)},
        "params": dataclasses.asdict(task) | {"train": dataclasses.asdict(own)},
    }
    lineage_text = json.dumps(lineage, indent=2, ensure_ascii=False) + "\n"
    write_text(paths.out / "lineage.json", lineage_text)
    with replacing(paths.curves) as partial:
        curves.round(6).to_csv(partial, index=False, lineterminator="\n")
    if rank == 0:
        log_run(settings(task, own), curves)
