"""The out-of-distribution (OOD) score: the distance of an image from the training data.

Input: a trained network and features of training images. Output: the score as part of the model's
graph. It is based on the Mahalanobis distance to the nearest class, with one mean per class and
one shared covariance (Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution
Samples", 2018). The features are the mean of each channel of each convolution, and the logits.
It detects OOD digits that resemble a known digit only in the last layer; confidence misses them.

The fit is bit-identical on any machine: features are rounded to multiples of 1 / STEPS, their
products are summed exactly, and all other operations are elementwise, without BLAS or LAPACK.
"""

import math

import keras
import numpy as np
from keras import layers

STEPS = 1024  # per unit of a feature: sums of 54,000 squares up to 256 are exact in float64
SHRINKAGE = 0.01  # share of the mean variance that is added to each variance
FALSE_ALARM_RATE = 0.01  # share of in-distribution digits with a score above 0.5


def features(network: keras.Model) -> keras.Model:
    """Return the model from images to features, float32 (n, all channels + logits)."""
    activations = [layer.output for layer in network.layers if isinstance(layer, layers.ReLU)]
    means = [
        layers.GlobalAveragePooling2D(name=f"mean_{number}")(activation)
        for number, activation in enumerate(activations, start=1)
    ]
    vector = layers.Concatenate(name="features")([*means, network.outputs[0]])
    return keras.Model(network.inputs, vector)


def fit(vectors: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """Return kernel and bias of the two dense layers of `squared_distance`, float32, in order.

    `vectors` are the features (n, k) of the training split, `classes` int (n,).
    """
    steps = np.rint(vectors.astype(np.float64) * STEPS)
    groups = [steps[classes == label] for label in np.unique(classes)]
    means = np.stack([group.sum(axis=0) / len(group) for group in groups])
    scatter = steps.T @ steps  # whole numbers below 2^53: exact in any order
    for group, mean in zip(groups, means, strict=True):
        scatter -= len(group) * np.multiply.outer(mean, mean)
    covariance = scatter / (len(steps) * STEPS**2)
    means /= STEPS
    variance = math.fsum(covariance.diagonal()) / len(covariance)
    covariance += SHRINKAGE * variance * np.eye(len(covariance))
    centre = means.sum(axis=0) / len(means)
    centred = (means - centre).T  # (k, classes)
    whitened = whiten(covariance, np.hstack([np.eye(len(covariance)), centre[:, None], centred]))
    kernel, offset = whitened[:, : len(covariance)], whitened[:, len(covariance)]
    centred = whitened[:, len(covariance) + 1 :]
    lengths = np.array([math.fsum(column) for column in (centred**2).T])
    return [part.astype(np.float32) for part in (kernel.T, -offset, centred, -lengths / 2)]


def whiten(covariance: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return W @ columns (k, m), where W @ covariance @ W.T is the identity.

    Gaussian elimination of a positive definite matrix (k, k) needs no pivots.
    """
    table = np.hstack([covariance, columns])
    for row in range(len(table)):
        table[row] /= np.sqrt(table[row, row])
        factors = table[row + 1 :, row] / table[row, row]
        table[row + 1 :] -= np.multiply.outer(factors, table[row])
    return table[:, len(covariance) :]


def squared_distance(network: keras.Model, fitted: list[np.ndarray]) -> keras.Model:
    """Return the model from images to the squared distance to the nearest class, float32 (n,).

    |z - m|^2 = |z|^2 - 2 (z m - |m|^2 / 2) for the whitened features z and each mean m.
    """
    kernel, offset, means, lengths = fitted
    vector = features(network)
    whitened = layers.Dense(kernel.shape[1], name="whitened")
    nearness = layers.Dense(means.shape[1], name="nearness")
    z = whitened(vector.outputs[0])
    nearest = keras.ops.max(nearness(z), axis=1)
    whitened.set_weights([kernel, offset])
    nearness.set_weights([means, lengths])
    distance = keras.ops.relu(keras.ops.sum(keras.ops.square(z), axis=1) - 2 * nearest)
    return keras.Model(network.inputs, distance)


def score(distance: keras.KerasTensor, threshold: float) -> keras.KerasTensor:
    """Return the OOD score, from 0 to 1, of squared distances.

    It is r^2 / (1 + r^2) with r = distance / threshold, so 0.5 at the threshold.
    """
    relative = keras.ops.square(layers.Rescaling(1 / threshold, name="distance")(distance))
    return relative / (1 + relative)


def threshold(distances: np.ndarray) -> float:
    """Return the quantile 1 - FALSE_ALARM_RATE of squared distances (n,) of validation images."""
    return round(float(np.quantile(distances.astype(np.float64), 1 - FALSE_ALARM_RATE)), 3)
