"""Stage train: pools to a calibrated model.

Enters: the pools training and validation. Leaves data/model/model.keras, the curves of the
training and a lineage: which data and params the weights came from. The run is also logged to
MLflow, by default to a local store below data/ that neither git nor DVC keeps.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from tqdm import tqdm

from digits import model, params
from digits.dataset import Digits, read_pool
from digits.files import replacing, sha256

CURVES = ["epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"]
STEPS_A_CALL = 100  # steps in one call of the graph, between two looks at the progress bar


@dataclass(frozen=True)
class Params:
    """params.yaml's section `train`."""

    __pydantic_config__ = params.STRICT

    batch_size: Annotated[int, Field(ge=1)]
    peak_learning_rate: Annotated[float, Field(gt=0)]
    warmup_share: Annotated[float, Field(gt=0, lt=1)]  # of all steps, until the peak
    weight_decay: Annotated[float, Field(ge=0)]


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


def fit(
    network: keras.Model, training: Any, validation: Any, task: params.Task, own: Params
) -> pd.DataFrame:
    """Train in place on (images, classes); return one row an epoch with the columns CURVES.

    AdamW with a one-cycle rate: a linear rise to the peak, then a linear fall to zero (Smith and
    Topin, arXiv:1708.07120). An epoch takes whole batches from a new seeded order, so that up to
    a batch of digits sits out, other ones each time. Digits stay uint8 until they are in the graph.
    """
    count = len(training[1])
    batch_size = min(own.batch_size, count)
    steps = count // batch_size
    all_steps = task.epochs * steps
    optimizer = keras.optimizers.AdamW(weight_decay=own.weight_decay)
    optimizer.build(network.trainable_variables)
    images, classes = tf.constant(training[0]), tf.constant(training[1])

    @tf.function
    def train(batches: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Take one step for each row of int32 (steps, batch); return summed loss and hits."""
        loss, hits = 0.0, 0
        for index in tf.range(tf.shape(batches)[0]):
            picked = batches[index]
            truth = tf.cast(tf.gather(classes, picked), tf.int32)
            with tf.GradientTape() as tape:
                logits = network(tf.gather(images, picked), training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits)
                mean = tf.reduce_mean(losses)
            done = tf.cast(first + index + 1, tf.float32) / all_steps
            rise, fall = done / own.warmup_share, (1 - done) / (1 - own.warmup_share)
            optimizer.learning_rate.assign(own.peak_learning_rate * tf.minimum(rise, fall))
            gradients = tape.gradient(mean, network.trainable_variables)
            optimizer.apply(gradients)
            loss += mean
            hits += tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == truth, tf.int32))
        return loss, hits

    rng = np.random.default_rng(task.seed)
    rows = []
    with tqdm(total=all_steps, unit="step", mininterval=1, disable=None) as progress:
        for epoch in range(task.epochs):
            order = rng.permutation(count)[: steps * batch_size].astype(np.int32)
            loss, hits = 0.0, 0
            for first in range(0, steps, STEPS_A_CALL):
                batches = order.reshape(steps, batch_size)[first : first + STEPS_A_CALL]
                part = train(tf.constant(batches), tf.constant(epoch * steps + first))
                loss, hits = loss + float(part[0]), hits + int(part[1])
                progress.update(len(batches))
            logits = model.predict(network, validation[0])
            row = [loss / steps, hits / order.size, *measure(logits, validation[1])]
            rows.append([epoch + 1, *row])
            progress.write(f"epoch {epoch + 1} of {task.epochs}: validation accuracy {row[3]:.4f}")
    return pd.DataFrame(rows, columns=CURVES)


def measure(logits: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Return mean loss in nats and accuracy of logits (n, k)."""
    chosen = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(classes)), classes]
    return float(-chosen.mean()), float((logits.argmax(axis=1) == classes).mean())


def find_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature that minimises the loss of logits (n, k), to three decimals."""

    def loss(temperature: float) -> float:
        return measure(logits / temperature, classes)[0]

    return round(float(minimize_scalar(loss, bounds=(0.2, 5), method="bounded").x), 3)


def log_run(settings: dict[str, Any], curves: pd.DataFrame) -> None:
    """Log one run to MLflow; a store that cannot be reached is told, and stops nothing."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        store = Path(os.environ.get("DVC_ROOT", "."), "data", "mlflow.db").resolve()
        mlflow.set_tracking_uri(f"sqlite:///{store}")
    try:
        mlflow.set_experiment("digits")
        with mlflow.start_run():
            mlflow.log_params(settings)
            for row in curves.to_dict("records"):
                step = int(row.pop("epoch"))
                mlflow.log_metrics({str(key): value for key, value in row.items()}, step=step)
    except mlflow.exceptions.MlflowException as error:
        print(f"train: MLflow did not take the run: {error}", file=sys.stderr)


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

    pools = [read_pool(path, len(task.classes)) for path in (paths.training, paths.validation)]
    scripts = list(dict.fromkeys(part.script for part in pools[0]))
    training, validation = (targets(pool, scripts) for pool in pools)

    model.make_exact(task.seed)
    network = model.build(task.image_size, len(scripts), len(task.classes))
    curves = fit(network, training, validation, task, own)
    temperature = find_temperature(model.predict(network, validation[0]), validation[1])

    model.save(model.calibrate(network, temperature, scripts), paths.out / "model.keras")
    lineage = {
        "scripts": scripts,
        "classes": task.classes,
        "temperature": temperature,
        "data": {path.name: sha256(path) for path in (paths.training, paths.validation)},
        "params": dataclasses.asdict(task) | {"train": dataclasses.asdict(own)},
    }
    with replacing(paths.out / "lineage.json") as partial:
        partial.write_text(json.dumps(lineage, indent=2, ensure_ascii=False) + "\n", "utf-8")
    with replacing(paths.curves) as partial:
        curves.round(6).to_csv(partial, index=False, lineterminator="\n")
    log_run({"epochs": task.epochs, "seed": task.seed} | dataclasses.asdict(own), curves)
