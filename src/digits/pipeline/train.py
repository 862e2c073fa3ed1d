"""Stage train: pools to a calibrated model.

Input: the splits training and validation. Output: data/model/model.keras, the curves of the
training, and a lineage: which data and params the weights came from. Of several machines each
writes the same files, for the stages that follow on it; the first alone logs the run to MLflow.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
from scipy.optimize import minimize_scalar

from core import params, tf_config
from core.dataset import Digits, read_pool
from core.errors import DigitsError
from core.files import replacing, sha256, write_text
from digits.model import distributed, network, ood
from digits.model.training import Recipe as Params
from digits.model.training import fit, measure
from digits.tracking.runs import log_run


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
    trained: keras.Model, training: tuple[np.ndarray, np.ndarray], validation: np.ndarray
) -> keras.KerasTensor:
    """Return how foreign an image looks, as part of the network's graph.

    It is fitted to the training pool's images and classes, and scaled by validation images.
    """
    images, classes = training
    fitted = ood.fit(network.predict(ood.features(trained), images), classes)
    squared = ood.squared(trained, fitted)
    usual = ood.usual(network.predict(squared, validation))
    return ood.foreign(squared.outputs[0], usual)


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
    network.make_exact(task.seed)
    trained = network.build(task.image_size, len(scripts) * len(task.classes))
    trainer = machines.trainer if machines else None
    curves = fit(trained, training, validation, task, own, trainer)
    if machines:
        print(f"machine {rank + 1} of {count}: {distributed.digest(trained)}")
    folded = network.fold(trained)
    temperature = find_temperature(network.predict(folded, validation[0]), validation[1])
    foreign = find_foreign(folded, training, validation[0])

    calibrated = network.calibrate(folded, temperature, scripts, foreign)
    network.save(calibrated, paths.out / "model.keras")
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
        log_run({"epochs": task.epochs, "seed": task.seed} | dataclasses.asdict(own), curves)
