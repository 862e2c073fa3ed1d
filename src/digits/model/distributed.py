"""The training loop on several machines.

Each machine takes its share of every batch, in parts of at least PART digits on a thread each;
gradients are summed over all of them (tf.distribute.MultiWorkerMirroredStrategy, Keras 3's `fit`
does not work under it: keras-team/keras#20585), and each then takes the same step. Order,
distortion and rates come from the seed, so nothing else is sent but losses and the statistics of
batch normalisation, which are taken over in the order of the parts.

Batches stay those of params.yaml. Two machines with 64 digits a batch have a part of 32 each, as
one machine has two: the weights are the same bytes. More machines pay with larger batches.
"""

import hashlib
from typing import Any

import keras
import tensorflow as tf

from core import params, tf_config
from core.errors import DigitsError
from digits.model.network import MOMENTUM
from digits.model.training import Recipe, pieces, steps_of

PART = 32  # digits that batch normalisation sees at once on one machine


class Machines:
    """All machines of this training, once they have found each other."""

    def __init__(self) -> None:
        """Wait for the others; it must come before anything is computed."""
        self.count, self.rank = tf_config.find()
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def trainer(
        self, network: keras.Model, images: tf.Variable, classes: tf.Tensor, own: Recipe
    ) -> Any:
        """Return the graph that takes steps together with the others: see `train` below.

        Raises DigitsError when a batch cannot be shared out evenly.
        """
        share, left = divmod(own.batch_size, self.count)
        if left:
            raise DigitsError(
                f"{params.PATH}: train.batch_size is {own.batch_size}, which {self.count} "
                "machines cannot share evenly; make it a multiple"
            )
        count = 1 if share % 2 else max(1, min(2, share // PART))  # parts on this machine
        part, update = pieces(network, images, classes, own)
        weights = [variable.value for variable in network.trainable_variables]
        moving = [variable.value for variable in network.non_trainable_variables]
        sizes = [weight.shape.num_elements() for weight in weights]

        def flat(tensors: list[tf.Tensor]) -> tf.Tensor:
            return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)

        def statistics(kept: list[tf.Tensor], news: tf.Tensor) -> None:
            """Take over what each part saw: news float32 (parts, values)."""
            for new in tf.unstack(news):
                pairs = zip(kept, tf.split(new, [one.shape[0] for one in kept]), strict=True)
                kept = [MOMENTUM * old + seen for old, seen in pairs]
            for variable, value in zip(moving, kept, strict=True):
                variable.assign(value)

        def step(order: tf.Tensor, moves: tf.Tensor, rates: tf.Tensor) -> tuple[tf.Tensor, ...]:
            mine = zip(
                tf.split(tf.split(order, self.count)[self.rank], count),
                tf.split(tf.split(moves, self.count)[self.rank], count),
                strict=True,
            )
            kept = [tf.identity(variable) for variable in moving]
            done, news = [], []
            for piece in mine:
                for variable in moving:  # from zero, it becomes what the part adds to it
                    variable.assign(tf.zeros_like(variable))
                done.append(part(*piece))
                news.append(flat([tf.identity(variable) for variable in moving]))
            losses, hits, *gradients = zip(*done, strict=True)
            context = tf.distribute.get_replica_context()
            told = [tf.concat(losses, axis=0), tf.cast(tf.add_n(hits), tf.float32)[tf.newaxis]]
            told = context.all_gather(flat([*told, *news])[tf.newaxis], axis=0)
            every_loss, every_hit, every_new = tf.split(told, [share, 1, -1], axis=1)
            statistics(kept, tf.reshape(every_new, [self.count * count, -1]))
            summed = context.all_reduce(
                tf.distribute.ReduceOp.SUM, flat([tf.add_n(each) for each in gradients])
            )
            shaped = zip(tf.split(summed, sizes), weights, strict=True)
            update((tf.reshape(new, weight.shape) for new, weight in shaped), *tf.unstack(rates))
            hit = tf.cast(tf.reduce_sum(every_hit), tf.int32)
            return tf.reshape(every_loss, [-1]), hit

        @tf.function(input_signature=steps_of(own.batch_size))
        def train(
            orders: tf.Tensor, moves: tf.Tensor, rates: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            """Take a step for each row; return losses float32 (steps, batch) and hits int32 ()."""
            steps = tf.shape(orders)[0]
            losses = tf.TensorArray(tf.float32, steps, element_shape=(own.batch_size,))
            hits = 0
            for number in tf.range(steps):
                rows = (orders[number], moves[number], rates[number])
                loss, hit = self.strategy.run(step, rows)
                losses = losses.write(number, loss)
                hits += hit
            return losses.stack(), hits

        def together(*tables: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            try:
                return train(*tables)
            except tf.errors.OpError as error:
                raise DigitsError(
                    f"another machine was lost ({str(error).splitlines()[0][:200]}); nothing is "
                    "kept, run again"
                ) from None

        return together


def digest(network: keras.Model) -> str:
    """Return the SHA-256 of all weights."""
    content = b"".join(weight.tobytes() for weight in network.get_weights())
    return hashlib.sha256(content).hexdigest()
