"""The network: uint8 images in, calibrated probabilities out, and its form on disk.

The output contract, here and wherever the model is served: for n images, `scripts` float32
(n, scripts, classes) is the probability of each script x digit and sums to 1 over both;
`digits` float32 (n, classes) is its sum over the scripts that the model knows. Scaling to
floats happens inside the model, so training and serving cannot differ.
"""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from digits.errors import DigitsError
from digits.files import replacing

MEAN, DEVIATION = 0.1307, 0.3081  # of the pixels of MNIST's training set, scaled to 0 .. 1
SCORING_BATCH = 1000
# Sums are split among the threads, so their number is part of the result: it is the same on
# every machine, whatever the number of its cores.
THREADS = 2


def make_exact(seed: int) -> None:
    """Let the same seed give the same weights on every run, with any number of threads."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    _fix_threads()


def _fix_threads() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)


def build(image_size: int, script_count: int, class_count: int) -> keras.Model:
    """Return the untrained network: uint8 (n, size, size) to logits (n, scripts * classes)."""

    def convolution(filters: int, kernel: int, stride: int) -> list[layers.Layer]:
        return [
            layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]

    return keras.Sequential(
        [
            keras.Input((image_size, image_size), dtype="uint8"),
            layers.Rescaling(1 / 255 / DEVIATION, -MEAN / DEVIATION),
            layers.Reshape((image_size, image_size, 1)),
            *convolution(24, 5, 2),
            *convolution(48, 3, 2),
            *convolution(96, 3, 1),
            layers.Flatten(),
            layers.Dense(script_count * class_count),
        ],
        name="network",
    )


def calibrate(network: keras.Model, temperature: float, scripts: list[str]) -> keras.Model:
    """Return the model of the output contract: logits / temperature, softmax, sum over scripts.

    Temperature scaling is that of Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    logits = layers.Rescaling(1 / temperature, name="temperature")(network.outputs[0])
    joint = layers.Softmax(name="joint")(logits)
    by_script = layers.Reshape((len(scripts), -1), name="scripts")(joint)
    by_digit = keras.ops.sum(by_script, axis=1)
    outputs = {"scripts": by_script, "digits": by_digit}
    return keras.Model(network.inputs, outputs, name="digits")


def predict(model: keras.Model, images: np.ndarray) -> Any:
    """Return what the model gives for uint8 (n, size, size), as NumPy; memory stays flat in n."""
    starts = range(0, len(images), SCORING_BATCH)
    parts = [model.predict_on_batch(images[start : start + SCORING_BATCH]) for start in starts]
    return tf.nest.map_structure(lambda *pieces: np.concatenate(pieces), *parts)


def save(model: keras.Model, path: Path) -> None:
    """Write a .keras file whose bytes depend on architecture and weights only.

    Keras writes dates into the zip's entries and into metadata.json, and memory addresses as
    identities of shared objects into config.json; the first are taken out, the last numbered.
    """
    with replacing(path) as partial:
        dated = partial.with_suffix(".dated.keras")
        try:
            model.save(dated)
            with (
                zipfile.ZipFile(dated) as source,
                zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as target,
            ):
                for name in sorted(source.namelist()):
                    data = source.read(name)
                    if name == "metadata.json":
                        metadata = json.loads(data)
                        metadata.pop("date_saved")
                        data = json.dumps(metadata, sort_keys=True).encode()
                    if name == "config.json":
                        data = _number_shared_objects(data.decode()).encode()
                    target.writestr(zipfile.ZipInfo(name), data)
        finally:
            dated.unlink(missing_ok=True)


def _number_shared_objects(config: str) -> str:
    identities = dict.fromkeys(re.findall(r'"shared_object_id": (\d+)', config))
    numbers = {identity: number for number, identity in enumerate(identities)}
    return re.sub(
        r'("shared_object_id": )(\d+)', lambda match: f"{match[1]}{numbers[match[2]]}", config
    )


def load(path: Path) -> keras.Model:
    """Read a model that `save` wrote; it scores alike with any number of cores.

    Raises DigitsError when the file is absent, damaged or from a Keras that this one cannot read.
    """
    if not path.exists():
        raise DigitsError(f"{path}: not found; run `dvc repro` first")
    _fix_threads()
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds here
        reason = " ".join(str(error).split())[:200]
        raise DigitsError(
            f"{path}: is damaged or from another version ({reason}); run `dvc repro -f train`"
        ) from None
