"""The training loop: an untrained network and labelled images enter, trained weights leave."""

from dataclasses import dataclass
from typing import Annotated, Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from pydantic import Field
from scipy.special import log_softmax
from tqdm import tqdm

from digits import model, params

CURVES = ["epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"]
STEPS_A_CALL = 100  # steps in one call of the graph, between two looks at the progress bar


@dataclass(frozen=True)
class Recipe:
    """params.yaml's section `train`."""

    __pydantic_config__ = params.STRICT

    batch_size: Annotated[int, Field(ge=1)]
    peak_learning_rate: Annotated[float, Field(gt=0)]
    warmup_share: Annotated[float, Field(gt=0, lt=1)]  # of all steps, until the peak
    weight_decay: Annotated[float, Field(ge=0)]


def fit(
    network: keras.Model, training: Any, validation: Any, task: params.Task, own: Recipe
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
