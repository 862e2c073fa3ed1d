"""The training loop.

Input: an untrained network, labelled images and params.yaml's section `train`. Output: trained
weights and the curves of loss and accuracy. Architecture and hyperparameters were selected by the
accuracy on the split `validation`; the split `test` was not used for selection.
"""

import time
from collections.abc import Callable, Iterator
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
from digits.model.augmentation import IDENTITY, Distortion, outlier_images, transforms

CURVES = ["epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"]
STEPS_PER_CALL = 50  # in one call of the graph; the program can be interrupted between calls
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-7  # of Adam
Trainer = Callable[[keras.Model, tf.Variable, tf.Tensor, "TrainConfig"], Any]


@params.strict
class TrainConfig:
    """params.yaml's section `train`."""

    batch_size: Annotated[int, Field(ge=2)]
    peak_learning_rate: Annotated[float, Field(gt=0)]
    warmup_share: Annotated[float, Field(gt=0, lt=1)]  # of all steps, before the peak
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    full_epochs: Annotated[int, Field(ge=0)]  # first epochs, which use every digit
    hard_share: Annotated[float, Field(gt=0, le=1)]  # of the digits, used in each later epoch
    outlier_exposure_share: Annotated[float, Field(ge=0, le=1)]  # outlier images per digit
    distortion: Distortion


def fit(
    network: keras.Model,
    training: Any,
    validation: Any,
    task: params.Task,
    config: TrainConfig,
    trainer: Trainer | None = None,
) -> pd.DataFrame:
    """Train in place on (images, classes); return one row per epoch with the columns CURVES.

    `trainer` builds the function that runs training steps, by default on a single machine.
    """
    rows = []
    start = time.monotonic()
    trained = epochs(network, training, task, config, trainer)
    for epoch, (loss, accuracy, done) in enumerate(trained, start=1):
        logits = model.predict(network, validation[0])
        rows.append([epoch, loss, accuracy, *loss_and_accuracy(logits, validation[1])])
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
    config: TrainConfig,
    trainer: Trainer | None = None,
) -> Iterator[tuple[float, float, float]]:
    """Train in place on (images, classes); yield loss, accuracy and progress after each epoch.

    The loss and the accuracy are means over the digits of the epoch; progress is the share of all
    steps that are done. The optimiser is AdamW with a one-cycle learning rate, the loss
    cross-entropy with label smoothing (Szegedy et al., arXiv:1512.00567). Each epoch shuffles
    the digits and drops the last incomplete batch. After `full_epochs` an epoch uses only a
    sample of hard digits (`sample_hard_examples`), which halves its time.

    Raises DigitsError when a batch is larger than the data, and when the loss is not finite.
    """
    count, batch_size, size = len(training[1]), config.batch_size, task.image_size
    if batch_size > count:
        raise DigitsError(
            f"{params.PATH}: train.batch_size: expected at most {count} (training digits), found "
            f"{batch_size}. Reduce it."
        )
    rng = np.random.default_rng(task.seed)
    extra = round(config.outlier_exposure_share * count)
    images = tf.Variable(np.zeros((count + extra, size, size, 1), np.uint8), trainable=False)
    images[:count].assign(training[0][..., np.newaxis])
    no_class = np.full(extra, network.output_shape[1], np.int32)
    shown = [count] * min(config.full_epochs, task.epochs)
    shown += [max(batch_size, round(config.hard_share * count))] * (task.epochs - len(shown))
    steps = [(number + extra) // batch_size for number in shown]
    ends = np.cumsum(steps)
    schedule = one_cycle(ends[-1], config)
    latest = np.full(count, np.inf)  # the loss of each digit when it was last used
    all_classes = tf.constant(np.append(training[1], no_class))
    train = (trainer or _trainer)(network, images, all_classes, config)

    with tqdm(total=len(schedule), unit="step", mininterval=1, disable=None) as progress:
        for epoch, rates in enumerate(np.split(schedule, ends[:-1])):
            images[count:].assign(outlier_images(rng, extra, size)[..., np.newaxis])
            digits = sample_hard_examples(rng, latest, shown[epoch])
            order = rng.permutation(np.append(digits, count + np.arange(extra)))
            order = order[: len(rates) * batch_size].astype(np.int32)
            moves = transforms(rng, order.size, size, config.distortion)
            moves[order >= count] = IDENTITY  # interpolation would smooth the noise
            orders, moves = order.reshape(-1, batch_size), moves.reshape(-1, batch_size, 8)
            losses, hits = np.empty(orders.shape), 0
            for first in range(0, len(rates), STEPS_PER_CALL):
                part = slice(first, first + STEPS_PER_CALL)
                new = train(*(tf.constant(table[part]) for table in (orders, moves, rates)))
                losses[part], hits = new[0].numpy(), hits + int(new[1])
                _check_finite(losses[part], ends[epoch] - len(rates) + first)
                progress.update(len(losses[part]))
            is_digit = order < count
            latest[order[is_digit]] = losses.ravel()[is_digit]
            accuracy = hits / np.count_nonzero(is_digit)
            yield float(losses.mean()), accuracy, float(ends[epoch] / ends[-1])


def sample_hard_examples(rng: np.random.Generator, losses: np.ndarray, number: int) -> np.ndarray:
    """Return indices of digits drawn without replacement, int64 (number,), by their losses (n,).

    The inclusion probability of a digit is proportional to the rank of its loss, at most 1, as in
    Selective-Backprop (Jiang et al., arXiv:1910.00762). They are drawn by sequential Poisson
    sampling (Ohlsson, Journal of Official Statistics 14, 1998), which needs exact arithmetic only.
    """
    count = len(losses)
    ranks = np.empty(count)
    ranks[np.lexsort((rng.random(count), losses))] = np.arange(1, count + 1)
    return np.argsort(rng.random(count) / ranks, kind="stable")[:number]


def _check_finite(losses: np.ndarray, first: int) -> None:
    for step in np.flatnonzero(~np.isfinite(losses.sum(axis=1))):
        raise DigitsError(
            f"the loss is {losses[step].mean()} at step {first + step + 1}; no model was saved. "
            f"Reduce train.peak_learning_rate in {params.PATH}."
        )


def one_cycle(steps: int, config: TrainConfig) -> np.ndarray:
    """Return each step's learning rate and Adam's two powers of beta, float32 (steps, 3).

    The rate rises linearly from zero to its peak and falls linearly to zero (Smith and Topin,
    arXiv:1708.07120).
    """
    done = np.arange(1, steps + 1) / steps
    rise, fall = done / config.warmup_share, (1 - done) / (1 - config.warmup_share)
    powers = [np.cumprod(np.full(steps, beta)) for beta in (BETA1, BETA2)]
    rates = config.peak_learning_rate * np.minimum(rise, fall)
    return np.stack([rates, *powers], axis=1).astype(np.float32)


def step_functions(
    network: keras.Model, images: tf.Variable, classes: tf.Tensor, config: TrainConfig
) -> tuple[Callable[..., list[tf.Tensor]], Callable[..., None]]:
    """Return the two functions of a training step: `forward_backward` and `update` below."""
    class_count = network.output_shape[1]
    smooth = (
        np.eye(class_count) * (1 - config.label_smoothing) + config.label_smoothing / class_count
    )
    uniform = np.full((1, class_count), 1 / class_count)  # of outlier images
    targets = tf.constant(np.concatenate([smooth, uniform]), tf.float32)
    weights = [variable.value for variable in network.trainable_variables]
    zeros = [tf.zeros_like(weight) for weight in weights]
    states = [(tf.Variable(zero), tf.Variable(zero)) for zero in zeros]

    def update(
        gradients: Iterator[tf.Tensor], rate: tf.Tensor, power1: tf.Tensor, power2: tf.Tensor
    ) -> None:
        """Apply AdamW (Loshchilov and Hutter, arXiv:1711.05101), one fused operation per weight."""
        for weight, state, gradient in zip(weights, states, gradients, strict=True):
            if weight.shape.rank > 1:  # kernels only: no decay of biases and channel scales
                weight.assign(weight * (1 - rate * config.weight_decay))
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

    def forward_backward(order: tf.Tensor, moves: tf.Tensor) -> list[tf.Tensor]:
        """Return losses, number of correct answers and gradients of a part of a batch.

        The gradients are those of the sum of losses over `batch_size`: the parts' gradients add up.
        """
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
            losses = tf.nn.softmax_cross_entropy_with_logits(tf.gather(targets, truth), logits)
            loss = tf.reduce_sum(losses) / config.batch_size
        hits = tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == truth, tf.int32))
        return [losses, hits, *tape.gradient(loss, weights)]

    return forward_backward, update


def looped(step: Callable[..., tuple[tf.Tensor, tf.Tensor]], batch_size: int) -> Any:
    """Return `train`, which calls `step` for each row of orders, moves and rates."""
    signature = [
        tf.TensorSpec((None, batch_size), tf.int32),
        tf.TensorSpec((None, batch_size, 8), tf.float32),
        tf.TensorSpec((None, 3), tf.float32),
    ]

    @tf.function(input_signature=signature)
    def train(orders: tf.Tensor, moves: tf.Tensor, rates: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Run a step for each row; return losses float32 (steps, batch) and correct int32 ()."""
        steps = tf.shape(orders)[0]
        losses, hits = tf.TensorArray(tf.float32, steps, element_shape=(batch_size,)), 0
        for number in tf.range(steps):
            loss, hit = step(orders[number], moves[number], rates[number])
            losses = losses.write(number, loss)
            hits += hit
        return losses.stack(), hits

    return train


def _trainer(
    network: keras.Model, images: tf.Variable, classes: tf.Tensor, config: TrainConfig
) -> Any:
    """Return the function that runs training steps on a single machine: `train` above."""
    half, update = step_functions(network, images, classes, config)

    def split(batch: tf.Tensor) -> list[tf.Tensor]:
        return tf.split(batch, [config.batch_size // 2, config.batch_size - config.batch_size // 2])

    def step(order: tf.Tensor, moves: tf.Tensor, rates: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, hit, *gradients = zip(*map(half, split(order), split(moves)), strict=True)
        update(map(tf.add_n, gradients), *tf.unstack(rates))
        return tf.concat(loss, axis=0), tf.add_n(hit)

    return looped(step, config.batch_size)


def loss_and_accuracy(logits: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Return the mean loss in nats and the accuracy of logits (n, k)."""
    chosen = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(classes)), classes]
    return float(-chosen.mean()), float((logits.argmax(axis=1) == classes).mean())
