"""The network: uint8 images in, calibrated probabilities out, and its form on disk.

The output contract, here and wherever the model is served: for n images, `scripts` float32
(n, scripts, classes) is the probability of each script x digit and sums to 1 over both;
`digits` float32 (n, classes) is its sum over the scripts that the model knows; `foreign` float32
(n,), from 0 to 1, is how little an image looks like what the model was trained on. Scaling to
floats happens inside the model, so training and serving cannot differ.
"""

import json
import os
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from core.errors import DigitsError
from core.files import replacing

MEAN, DEVIATION = 0.1307, 0.3081  # of the pixels of MNIST's training set, scaled to 0 .. 1
MOMENTUM, EPSILON = 0.9, 1e-3  # of batch normalisation: a moving statistic's memory, a floor
SCORING_BATCH = 1000


def make_exact(seed: int) -> None:
    """Let the same seed give the same weights on every run; core.determinism does the rest."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


class BatchNormalization(layers.Layer):  # type: ignore[misc]
    """Batch normalisation (Ioffe and Szegedy, arXiv:1502.03167) as one fused operation.

    Keras' own is a dozen operations, which cost a third of a step on a CPU. It is a means of
    training only: `fold` takes it out.
    """

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make scale, offset and the moving statistics, float32 (channels,)."""
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
        """Normalise float32 (n, height, width, channels) by the batch, or by what was kept."""
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.scale.value,
            offset=self.offset.value,
            mean=[] if training else self.mean.value,
            variance=[] if training else self.variance.value,
            epsilon=EPSILON,
            is_training=training,
        )
        if training:
            for kept, new in ((self.mean, mean), (self.variance, variance)):
                kept.assign(MOMENTUM * kept + (1 - MOMENTUM) * new)
        return outputs


def build(image_size: int, output_count: int, folded: bool = False) -> keras.Model:
    """Return the untrained network: uint8 (n, size, size) to logits float32 (n, outputs).

    Strides make the images small early, so that most of the arithmetic lies in wide
    convolutions, which a CPU does best. With `folded`, a bias stands for each normalisation.
    Every layer has a name of its own: Keras's automatic names depend on what the process built
    before, and they are part of the saved file.
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
            layers.Rescaling(1 / 255 / DEVIATION, -MEAN / DEVIATION, name="standardised"),
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


def fold(network: keras.Model) -> keras.Model:
    """Return the trained network with its normalisations in kernels and biases: plain Keras.

    A channel's scale goes into its kernel, the rest into a bias (Jacob et al., arXiv:1712.05877,
    section 3.2); the logits are the same but for rounding.
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
    network: keras.Model, temperature: float, scripts: list[str], foreign: keras.KerasTensor
) -> keras.Model:
    """Return the model of the output contract: logits / temperature, softmax, sum over scripts.

    `foreign` is part of the network's graph, made by digits.model.ood.

    Temperature scaling is that of Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    logits = layers.Rescaling(1 / temperature, name="temperature")(network.outputs[0])
    joint = layers.Softmax(name="joint")(logits)
    by_script = layers.Reshape((len(scripts), -1), name="scripts")(joint)
    by_digit = keras.ops.sum(by_script, axis=1)
    outputs = {"scripts": by_script, "digits": by_digit, "foreign": foreign}
    model = keras.Model(network.inputs, outputs, name="digits")
    name_operations(model)
    return model


def name_operations(model: keras.Model) -> None:
    """Name what `keras.ops` made by its kind, numbered within the model: sum_1, sum_2 and so on.

    Operations that are no layers take no name when they are made.
    """
    kinds: Counter[str] = Counter()
    for operation in model.operations:
        if not isinstance(operation, layers.Layer):
            kind = type(operation).__name__.lower()
            kinds[kind] += 1
            operation.name = f"{kind}_{kinds[kind]}"


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


def load(path: Path, image_size: int, class_count: int) -> keras.Model:
    """Read a model that `save` wrote.

    Raises DigitsError when the file is absent, damaged, from a Keras that this one cannot read,
    or made for images of another size or other classes.
    """
    if not path.exists():
        raise DigitsError(f"{path}: not found; run `dvc repro` first")
    try:
        if not zipfile.is_zipfile(path):  # Keras would say that it does not find the file
            raise ValueError("it is cut short or no model")
        model = keras.saving.load_model(path, compile=False)
        made_for = model.input_shape[1], model.get_layer("scripts").output.shape[2]
    except Exception as error:  # Keras raises many kinds here
        reason = " ".join(str(error).split())[:200]
        raise DigitsError(
            f"{path}: is damaged or from another version ({reason}); run `dvc repro -f train`"
        ) from None
    if made_for != (image_size, class_count):
        raise DigitsError(
            f"{path}: is made for images of {made_for[0]} pixels a side and {made_for[1]} classes, "
            f"params.yaml says {image_size} and {class_count}; run `dvc repro`"
        )
    return model
