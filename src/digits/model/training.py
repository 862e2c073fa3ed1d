"""The training loop: an untrained network and labelled images enter, trained weights leave.

Architecture, length and rates, here and in params.yaml, were chosen by the accuracy on the pool
`validation`; the pool `test` chose nothing.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from pydantic import Field
from scipy.special import log_softmax
from tqdm import tqdm

from core import params
from core.errors import DigitsError
from digits.model import network as model
from digits.model.augmentation import UNMOVED, Distortion, nothing, transforms

CURVES = ["epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"]
STEPS_A_CALL = 50  # in one call of the graph, between two of which the program can be stopped
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-7  # of Adam
Trainer = Callable[[keras.Model, tf.Variable, tf.Tensor, "Recipe"], Any]


@dataclass(frozen=True)
class Recipe:
    """params.yaml's section `train`."""

    __pydantic_config__ = params.STRICT

    batch_size: Annotated[int, Field(ge=2)]
    peak_learning_rate: Annotated[float, Field(gt=0)]
    warmup_share: Annotated[float, Field(gt=0, lt=1)]  # of all steps, until the peak
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    full_epochs: Annotated[int, Field(ge=0)]  # the first ones, which show every digit
    hard_share: Annotated[float, Field(gt=0, le=1)]  # of the digits that each later one shows
    nothing_share: Annotated[float, Field(ge=0, le=1)]  # images of nothing for each digit
    distortion: Distortion


def fit(
    network: keras.Model,
    training: Any,
    validation: Any,
    task: params.Task,
    own: Recipe,
    trainer: Trainer | None = None,
) -> pd.DataFrame:
    """Train in place on (images, classes); return one row an epoch with the columns CURVES.

    `trainer` makes the graph that takes steps: without one, that of a single machine.
    """
    rows = []
    start = time.monotonic()
    trained = epochs(network, training, task, own, trainer)
    for epoch, (loss, accuracy, done) in enumerate(trained, start=1):
        logits = model.predict(network, validation[0])
        rows.append([epoch, loss, accuracy, *measure(logits, validation[1])])
        left = (time.monotonic() - start) * (1 / done - 1)
        tqdm.write(
            f"epoch {epoch} of {task.epochs}: validation accuracy {rows[-1][-1]:.4f}, "
            f"{left:.0f} s left"
        )
    return pd.DataFrame(rows, columns=CURVES)


def epochs(
    network: keras.Model,
    training: Any,
    task: params.Task,
    own: Recipe,
    trainer: Trainer | None = None,
) -> Iterator[tuple[float, float, float]]:
    """Train in place on (images, classes); yield after each epoch what it came to.

    That is the mean loss, the accuracy on the digits that it showed, and the share of the whole
    training that is done. AdamW with a one-cycle rate on cross-entropy with smoothed labels
    (Szegedy et al., arXiv:1512.00567). An epoch takes whole batches from a new seeded order, so
    that up to a batch of digits sits out, other ones each time; after the full epochs it shows
    hard digits rather than easy ones (`choose`), which halves its time.
    Digits stay uint8 until they are in the graph.

    Raises DigitsError for a batch larger than the data, and for a loss that is not finite.
    """
    count, batch_size, size = len(training[1]), own.batch_size, task.image_size
    if batch_size > count:
        raise DigitsError(
            f"{params.PATH}: train.batch_size is {batch_size}, but there are only {count} digits "
            "to train on; make it smaller"
        )
    rng = np.random.default_rng(task.seed)
    extra = round(own.nothing_share * count)
    images = tf.Variable(np.zeros((count + extra, size, size, 1), np.uint8), trainable=False)
    images[:count].assign(training[0][..., np.newaxis])
    no_class = np.full(extra, network.output_shape[1], np.int32)
    shown = [count] * min(own.full_epochs, task.epochs)
    shown += [max(batch_size, round(own.hard_share * count))] * (task.epochs - len(shown))
    steps = [(number + extra) // batch_size for number in shown]
    ends = np.cumsum(steps)
    schedule = one_cycle(ends[-1], own)
    latest = np.full(count, np.inf)  # the loss of each digit when it was last shown
    all_classes = tf.constant(np.append(training[1], no_class))
    train = (trainer or _trainer)(network, images, all_classes, own)

    with tqdm(total=len(schedule), unit="step", mininterval=1, disable=None) as progress:
        for epoch, rates in enumerate(np.split(schedule, ends[:-1])):
            images[count:].assign(nothing(rng, extra, size)[..., np.newaxis])
            images_of_epoch = np.append(choose(rng, latest, shown[epoch]), count + np.arange(extra))
            order = rng.permutation(images_of_epoch)[: len(rates) * batch_size].astype(np.int32)
            moves = transforms(rng, order.size, size, own.distortion)
            moves[order >= count] = UNMOVED  # interpolation would smooth the noise
            orders, moves = order.reshape(-1, batch_size), moves.reshape(-1, batch_size, 8)
            losses, hits = np.empty(orders.shape), 0
            for first in range(0, len(rates), STEPS_A_CALL):
                part = slice(first, first + STEPS_A_CALL)
                new = train(*(tf.constant(table[part]) for table in (orders, moves, rates)))
                losses[part], hits = new[0].numpy(), hits + int(new[1])
                _check(losses[part], ends[epoch] - len(rates) + first)
                progress.update(len(losses[part]))
            digits = order < count
            latest[order[digits]] = losses.ravel()[digits]
            yield (
                float(losses.mean()),
                hits / np.count_nonzero(digits),
                float(ends[epoch] / ends[-1]),
            )


def choose(rng: np.random.Generator, losses: np.ndarray, number: int) -> np.ndarray:
    """Return int64 (number,): digits drawn without replacement, likelier the higher their loss.

    A digit's chance is in proportion to its rank among the losses (n,), up to 1, as in
    Selective-Backprop (Jiang et al., arXiv:1910.00762), drawn by sequential Poisson sampling
    (Ohlsson, Journal of Official Statistics 14, 1998): exact arithmetic alone.
    """
    count = len(losses)
    ranks = np.empty(count)
    ranks[np.lexsort((rng.random(count), losses))] = np.arange(1, count + 1)
    return np.argsort(rng.random(count) / ranks, kind="stable")[:number]


def _check(losses: np.ndarray, first: int) -> None:
    for step in np.flatnonzero(~np.isfinite(losses.sum(axis=1))):
        raise DigitsError(
            f"the loss is {losses[step].mean()} at step {first + step + 1}: training stops, "
            f"nothing is kept; lower train.peak_learning_rate in {params.PATH}"
        )


def one_cycle(steps: int, own: Recipe) -> np.ndarray:
    """Return float32 (steps, 3): each step's learning rate and Adam's two powers of beta.

    The rate rises from zero to its peak and falls to zero, both in a straight line (Smith and
    Topin, arXiv:1708.07120).
    """
    done = np.arange(1, steps + 1) / steps
    rise, fall = done / own.warmup_share, (1 - done) / (1 - own.warmup_share)
    powers = [np.cumprod(np.full(steps, beta)) for beta in (BETA1, BETA2)]
    rates = own.peak_learning_rate * np.minimum(rise, fall)
    return np.stack([rates, *powers], axis=1).astype(np.float32)


def pieces(
    network: keras.Model, images: tf.Variable, classes: tf.Tensor, own: Recipe
) -> tuple[Callable[..., list[tf.Tensor]], Callable[..., None]]:
    """Return what a step is made of: `part` and `update` below."""
    class_count = network.output_shape[1]
    smooth = np.eye(class_count) * (1 - own.label_smoothing) + own.label_smoothing / class_count
    nothing = np.full((1, class_count), 1 / class_count)
    goals = tf.constant(np.concatenate([smooth, nothing]), tf.float32)
    weights = [variable.value for variable in network.trainable_variables]
    zeros = [tf.zeros_like(weight) for weight in weights]
    states = [(tf.Variable(zero), tf.Variable(zero)) for zero in zeros]

    def update(
        gradients: Iterator[tf.Tensor], rate: tf.Tensor, power1: tf.Tensor, power2: tf.Tensor
    ) -> None:
        """AdamW (Loshchilov and Hutter, arXiv:1711.05101), one fused operation a weight."""
        for weight, state, gradient in zip(weights, states, gradients, strict=True):
            if weight.shape.rank > 1:  # kernels; neither biases nor the scales of channels
                weight.assign(weight * (1 - rate * own.weight_decay))
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=state[0].handle,
                v=state[1].handle,
                beta1_power=power1,
                beta2_power=power2,
                lr=rate,
                beta1=BETA1,
                beta2=BETA2,
                epsilon=EPSILON,
                grad=gradient,
            )

    def part(order: tf.Tensor, moves: tf.Tensor) -> list[tf.Tensor]:
        """Return losses, hits and gradients of a part of a batch, as its part of the whole's."""
        truth = tf.gather(classes, order)
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.gather(images, order),
            transforms=moves,
            output_shape=images.shape[1:3],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )
        with tf.GradientTape() as tape:
            logits = network(moved[..., 0], training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(tf.gather(goals, truth), logits)
            loss = tf.reduce_sum(losses) / own.batch_size
        hits = tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == truth, tf.int32))
        return [losses, hits, *tape.gradient(loss, weights)]

    return part, update


def steps_of(batch_size: int) -> list[tf.TensorSpec]:
    """Return what `train` takes: orders, moves and rates of some steps."""
    return [
        tf.TensorSpec((None, batch_size), tf.int32),
        tf.TensorSpec((None, batch_size, 8), tf.float32),
        tf.TensorSpec((None, 3), tf.float32),
    ]


def _trainer(network: keras.Model, images: tf.Variable, classes: tf.Tensor, own: Recipe) -> Any:
    """Return the graph that takes steps: see `train` below."""
    half, update = pieces(network, images, classes, own)

    def split(batch: tf.Tensor) -> list[tf.Tensor]:
        return tf.split(batch, [own.batch_size // 2, own.batch_size - own.batch_size // 2])

    @tf.function(input_signature=steps_of(own.batch_size))
    def train(orders: tf.Tensor, moves: tf.Tensor, rates: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Take a step for each row; return losses float32 (steps, batch) and hits int32 ()."""
        steps = tf.shape(orders)[0]
        losses, hits = tf.TensorArray(tf.float32, steps, element_shape=(own.batch_size,)), 0
        for step in tf.range(steps):
            halves = map(half, split(orders[step]), split(moves[step]))
            loss, hit, *gradients = zip(*halves, strict=True)
            update(map(tf.add_n, gradients), *tf.unstack(rates[step]))
            losses = losses.write(step, tf.concat(loss, axis=0))
            hits += tf.add_n(hit)
        return losses.stack(), hits

    return train


def measure(logits: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Return mean loss in nats and accuracy of logits (n, k)."""
    chosen = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(classes)), classes]
    return float(-chosen.mean()), float((logits.argmax(axis=1) == classes).mean())
