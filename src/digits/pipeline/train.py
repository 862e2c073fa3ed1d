"""Stage train: train and calibrate the model.

Input: the splits training and validation. Output: data/model/model.keras, curves.csv, and
lineage.json with the data and params that the weights come from. When several machines train
together, each writes the same files, and the first logs the run to MLflow.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
from scipy.optimize import minimize_scalar

from core import params, tf_config
from core.dataset import Digits, read_split
from core.errors import DigitsError
from core.files import atomic_write, sha256, write_text
from digits.model import distributed, network, ood
from digits.model.training import TrainConfig as Params
from digits.model.training import fit, loss_and_accuracy
from digits.tracking.runs import log_training


def targets(split: list[Digits], scripts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return all images uint8 (n, size, size) and their classes int32 (n,), script x digit."""
    images = np.concatenate([part.images for part in split])
    classes = np.concatenate(
        [
            part.labels.astype(np.int32) + scripts.index(part.script) * part.class_count
            for part in split
        ]
    )
    return images, classes


def fit_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature that minimises the loss of logits (n, k), to three decimals."""

    def loss(temperature: float) -> float:
        return loss_and_accuracy(logits / temperature, classes)[0]

    return round(float(minimize_scalar(loss, bounds=(0.2, 5), method="bounded").x), 3)


def build_ood_score(
    trained: keras.Model, training: tuple[np.ndarray, np.ndarray], validation: np.ndarray
) -> keras.KerasTensor:
    """Return the out-of-distribution score as part of the network's graph.

    It is fitted to the images and classes of the training split, and scaled by validation images.
    """
    images, classes = training
    fitted = ood.fit(network.predict(ood.features(trained), images), classes)
    distance = ood.squared_distance(trained, fitted)
    return ood.score(distance.outputs[0], ood.threshold(network.predict(distance, validation)))


def main(arguments: list[str]) -> None:
    """Train, calibrate, write the model, its curves and its lineage."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    for name in ("--training", "--validation", "--out", "--curves"):
        parser.add_argument(name, type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "train")

    files = (paths.training, paths.validation)
    splits = [read_split(path, len(task.classes), task.image_size) for path in files]
    scripts = list(dict.fromkeys(part.script for part in splits[0]))
    if unknown := {part.script for part in splits[1]} - set(scripts):
        raise DigitsError(
            f"{paths.validation}: has digits of {', '.join(sorted(unknown))}, but "
            f"{paths.training} has none. Add more of them, or run `dvc repro -f prepare`."
        )
    training, validation = (targets(split, scripts) for split in splits)

    count, rank = tf_config.read()
    machines = distributed.Machines() if count > 1 else None
    network.make_deterministic(task.seed)
    trained = network.build(task.image_size, len(scripts) * len(task.classes))
    trainer = machines.trainer if machines else None
    curves = fit(trained, training, validation, task, config, trainer)
    if machines:
        print(f"machine {rank + 1} of {count}: {distributed.digest(trained)}")
    folded = network.fold(trained)
    temperature = fit_temperature(network.predict(folded, validation[0]), validation[1])
    ood_score = build_ood_score(folded, training, validation[0])

    calibrated = network.calibrate(folded, temperature, scripts, ood_score)
    network.save(calibrated, paths.out / "model.keras")
    lineage = {
        "scripts": scripts,
        "classes": task.classes,
        "temperature": temperature,
        "network": network.configuration_hash(trained),
        "data": {path.name: sha256(path) for path in files},
        "params": vars(task) | {"train": dataclasses.asdict(config)},
    }
    write_text(paths.out / "lineage.json", json.dumps(lineage, indent=2, ensure_ascii=False) + "\n")
    with atomic_write(paths.curves) as partial:
        curves.round(6).to_csv(partial, index=False, lineterminator="\n")
    if rank == 0:
        log_training(paths.out, curves)
