"""The training loop on several machines.

Each machine computes its share of every batch, split into parts of at least MIN_PART_SIZE digits.
Gradients are summed over all parts, then each machine applies the same update. This uses
tf.distribute.MultiWorkerMirroredStrategy, under which Keras 3's `fit` does not work
(keras-team/keras#20585). Order, transforms and rates follow from the seed. Only gradients, losses
and batch normalisation statistics are exchanged; they are applied in the order of the parts.

The batch size is that of params.yaml. Two machines with a batch size of 64 have one part of 32
each, where a single machine has two, so the weights are bit-identical. More machines need a
larger batch size.
"""

import hashlib
from typing import Any

import keras
import tensorflow as tf

from core import params, tf_config
from core.errors import DigitsError
from digits.model.network import MOMENTUM
from digits.model.training import TrainConfig, looped, step_functions

MIN_PART_SIZE = 32  # digits over which batch normalisation computes its statistics


class Machines:
    """The machines that TF_CONFIG names, connected to each other."""

    def __init__(self) -> None:
        """Connect to the other machines. Call this before any TensorFlow operation."""
        self.count, self.rank = tf_config.read()
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def trainer(
        self, network: keras.Model, images: tf.Variable, classes: tf.Tensor, config: TrainConfig
    ) -> Any:
        """Return the function that runs training steps on all machines, as `looped` does.

        Raises DigitsError when the batch size is no multiple of the number of machines.
        """
        share, left = divmod(config.batch_size, self.count)
        if left:
            raise DigitsError(
                f"{params.PATH}: train.batch_size: expected a multiple of {self.count} (machines), "
                f"found {config.batch_size}. Change it or azure.job.nodes."
            )
        count = 1 if share % 2 else max(1, min(2, share // MIN_PART_SIZE))  # parts on this machine
        forward_backward, update = step_functions(network, images, classes, config)
        weights = [variable.value for variable in network.trainable_variables]
        moving = [variable.value for variable in network.non_trainable_variables]
        sizes = [weight.shape.num_elements() for weight in weights]

        def flat(tensors: list[tf.Tensor]) -> tf.Tensor:
            return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)

        def update_statistics(averages: list[tf.Tensor], contributions: tf.Tensor) -> None:
            """Update the moving averages with the statistics of each part, float32 (parts, k)."""
            for new in tf.unstack(contributions):
                pairs = zip(
                    averages, tf.split(new, [one.shape[0] for one in averages]), strict=True
                )
                averages = [MOMENTUM * old + seen for old, seen in pairs]
            for variable, value in zip(moving, averages, strict=True):
                variable.assign(value)

        def step(order: tf.Tensor, moves: tf.Tensor, rates: tf.Tensor) -> tuple[tf.Tensor, ...]:
            parts = zip(
                tf.split(tf.split(order, self.count)[self.rank], count),
                tf.split(tf.split(moves, self.count)[self.rank], count),
                strict=True,
            )
            averages = [tf.identity(variable) for variable in moving]
            done, contributions = [], []
            for arguments in parts:
                for variable in moving:  # starting at zero, it becomes the part's contribution
                    variable.assign(tf.zeros_like(variable))
                done.append(forward_backward(*arguments))
                contributions.append(flat([tf.identity(variable) for variable in moving]))
            losses, hits, *gradients = zip(*done, strict=True)
            context = tf.distribute.get_replica_context()
            local = [tf.concat(losses, axis=0), tf.cast(tf.add_n(hits), tf.float32)[tf.newaxis]]
            local = context.all_gather(flat([*local, *contributions])[tf.newaxis], axis=0)
            every_loss, every_hit, every_new = tf.split(local, [share, 1, -1], axis=1)
            update_statistics(averages, tf.reshape(every_new, [self.count * count, -1]))
            summed = context.all_reduce(
                tf.distribute.ReduceOp.SUM, flat([tf.add_n(each) for each in gradients])
            )
            shaped = zip(tf.split(summed, sizes), weights, strict=True)
            update((tf.reshape(new, weight.shape) for new, weight in shaped), *tf.unstack(rates))
            hit = tf.cast(tf.reduce_sum(every_hit), tf.int32)
            return tf.reshape(every_loss, [-1]), hit

        train = looped(lambda *row: self.strategy.run(step, row), config.batch_size)

        def train_or_raise(*tables: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            try:
                return train(*tables)
            except tf.errors.OpError as error:
                raise DigitsError(
                    f"lost the connection to another machine ({str(error).splitlines()[0][:200]}); "
                    "no model was saved. Run again."
                ) from None

        return train_or_raise


def digest(network: keras.Model) -> str:
    """Return the SHA-256 of all weights."""
    content = b"".join(weight.tobytes() for weight in network.get_weights())
    return hashlib.sha256(content).hexdigest()
