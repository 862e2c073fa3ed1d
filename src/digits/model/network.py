"""The network: its layers, calibration, batch normalisation folding and file format.

Input: images uint8 (n, size, size), scaled inside the model, so that training and serving cannot
differ. Output, here and wherever the model is served: `scripts` float32 (n, scripts, classes),
the probability of each script and class, which sums to 1 over both; `digits` float32 (n, classes),
its sum over scripts; `ood_score` float32 (n,), the out-of-distribution score from 0 to 1.
"""

import hashlib
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from core.errors import DigitsError
from core.files import atomic_write

MEAN, STD = 0.1307, 0.3081  # of the pixels of MNIST's training set, scaled to 0 .. 1
MOMENTUM, EPSILON = 0.9, 1e-3  # of batch normalisation
SCORING_BATCH = 1000


def make_deterministic(seed: int) -> None:
    """Seed all generators and enable deterministic operations; see also core.determinism."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


class BatchNormalization(layers.Layer):  # type: ignore[misc]
    """Batch normalisation (Ioffe and Szegedy, arXiv:1502.03167) by two means and a multiply-add.

    `fold` removes this layer after training.
    """

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Create scale, offset and the moving statistics, float32 (channels,)."""
        for name, start, trainable in (
            ("scale", "ones", True),
            ("offset", "zeros", True),
            ("mean", "zeros", False),
            ("variance", "ones", False),
        ):
            weight = self.add_weight(
                shape=shape[-1:], initializer=start, trainable=trainable, name=name
            )
            setattr(self, name, weight)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalise float32 (n, height, width, channels) by the batch or the moving statistics."""
        mean, variance = self.mean.value, self.variance.value
        if training:
            mean = tf.reduce_mean(inputs, [0, 1, 2])
            variance = tf.reduce_mean(inputs * inputs, [0, 1, 2]) - mean * mean
            for moving, new in ((self.mean, mean), (self.variance, variance)):
                moving.assign(MOMENTUM * moving + (1 - MOMENTUM) * new)
        factor = self.scale * tf.math.rsqrt(variance + EPSILON)
        return inputs * factor + (self.offset - mean * factor)


def build(image_size: int, output_count: int, folded: bool = False) -> keras.Model:
    """Return the untrained network: uint8 (n, size, size) to logits float32 (n, outputs).

    Strides reduce the image size early, so that most of the arithmetic is in wide convolutions,
    which are fastest on a CPU. With `folded`, a bias replaces each normalisation. Every layer is
    named explicitly: Keras's automatic names depend on what the process built before, and they are
    part of the saved file.
    """

    def convolution(number: int, filters: int, kernel: int, stride: int) -> list[layers.Layer]:
        layer = layers.Conv2D(
            filters,
            kernel,
            stride,
            use_bias=folded,
            kernel_initializer="he_uniform",
            name=f"convolution_{number}",
        )
        normalisation = BatchNormalization(name=f"normalisation_{number}")
        activation = layers.ReLU(name=f"activation_{number}")
        return [layer, activation] if folded else [layer, normalisation, activation]

    return keras.Sequential(
        [
            keras.Input((image_size, image_size), dtype="uint8", name="images"),
            layers.Rescaling(1 / 255 / STD, -MEAN / STD, name="standardised"),
            layers.Reshape((image_size, image_size, 1), name="channel"),
            *convolution(1, 24, 4, 2),
            *convolution(2, 48, 3, 1),
            *convolution(3, 64, 3, 2),
            *convolution(4, 96, 3, 1),
            layers.Flatten(name="flat"),
            layers.Dense(output_count, name="logits"),
        ],
        name="network",
    )


def configuration_hash(network: keras.Model) -> str:
    """Return the SHA-256 of the layers' configuration as hexadecimal digits, whatever the weights.

    Networks with equal hashes have the same architecture, however their code is written.
    """
    config = json.dumps(network.get_config(), sort_keys=True)
    return hashlib.sha256(_number_shared_objects(config).encode()).hexdigest()


def fold(network: keras.Model) -> keras.Model:
    """Return the trained network with batch normalisation folded into kernels and biases.

    See Jacob et al., arXiv:1712.05877, section 3.2. The result consists of Keras's own layers only,
    and its logits are equal up to rounding.
    """
    weights: list[np.ndarray] = []
    for layer in network.layers:
        if isinstance(layer, BatchNormalization):
            scale, offset, mean, variance = layer.get_weights()
            factor = scale / np.sqrt(variance + np.float32(EPSILON))
            weights[-1] = weights[-1] * factor
            weights.append(offset - mean * factor)
        else:
            weights += layer.get_weights()
    plain = build(network.input_shape[1], network.output_shape[1], folded=True)
    plain.set_weights(weights)
    return plain


def calibrate(
    network: keras.Model, temperature: float, scripts: list[str], ood_score: keras.KerasTensor
) -> keras.Model:
    """Return the model with the module's outputs: logits / temperature, softmax, sum over scripts.

    `ood_score` is the out-of-distribution score, computed in the network's graph by
    digits.model.ood. Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks"
    (2017).
    """
    logits = layers.Rescaling(1 / temperature, name="temperature")(network.outputs[0])
    joint = layers.Softmax(name="joint")(logits)
    by_script = layers.Reshape((len(scripts), -1), name="scripts")(joint)
    by_digit = keras.ops.sum(by_script, axis=1)
    outputs = {"scripts": by_script, "digits": by_digit, "ood_score": ood_score}
    model = keras.Model(network.inputs, outputs, name="digits")
    name_operations(model)
    return model


def name_operations(model: keras.Model) -> None:
    """Number the operations that `keras.ops` created by their kind: sum_1, sum_2 and so on.

    These operations take no name argument, and their automatic names depend on the process.
    """
    kinds: Counter[str] = Counter()
    for operation in model.operations:
        if not isinstance(operation, layers.Layer):
            kind = type(operation).__name__.lower()
            kinds[kind] += 1
            operation.name = f"{kind}_{kinds[kind]}"


def predict(model: keras.Model, images: np.ndarray) -> Any:
    """Return the model's outputs for images uint8 (n, size, size), computed in batches."""
    starts = range(0, len(images), SCORING_BATCH)
    parts = [model.predict_on_batch(images[start : start + SCORING_BATCH]) for start in starts]
    return tf.nest.map_structure(lambda *batches: np.concatenate(batches), *parts)


def save(model: keras.Model, path: Path) -> None:
    """Write a .keras file whose bytes depend on architecture and weights only.

    Keras writes dates into the ZIP entries and into metadata.json, and memory addresses as ids of
    shared objects into config.json. The dates are removed, the ids are replaced by numbers.
    """
    with atomic_write(path) as partial:
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


def load(path: Path, image_size: int, class_count: int) -> keras.Model:
    """Load a model that `save` wrote.

    Raises DigitsError when the file is missing, corrupted or from an incompatible version of Keras,
    and when the model has another image size or number of classes.
    """
    if not path.exists():
        raise DigitsError(f"{path}: not found. Run `dvc repro` first.")
    try:
        if not zipfile.is_zipfile(path):  # Keras would report that the file does not exist
            raise ValueError("it is truncated or not a model")
        model = keras.saving.load_model(path, compile=False)
        found = model.input_shape[1], model.get_layer("scripts").output.shape[2]
    except Exception as error:  # Keras raises many types of exceptions here
        reason = " ".join(str(error).split())[:200]
        raise DigitsError(
            f"{path}: is corrupted or from another version ({reason}). Run `dvc repro -f train`."
        ) from None
    if found != (image_size, class_count):
        raise DigitsError(
            f"{path}: expected a model for images of {image_size} pixels per side and "
            f"{class_count} classes (params.yaml), found {found[0]} and {found[1]}. "
            "Run `dvc repro`."
        )
    return model
