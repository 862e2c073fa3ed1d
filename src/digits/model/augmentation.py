"""Data augmentation: random affine transforms of digits, and outlier images without a digit.

Input: a seeded generator. Output: arrays for one epoch. Random numbers are computed from integers
by exact arithmetic, without sine or logarithm, whose last bit differs between C libraries.
"""

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from core import params

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0)  # the row of `transforms` that leaves an image unchanged


@params.strict
class Distortion:
    """params.yaml's section `train.distortion`: the limit of each transform, in both directions."""

    rotation_degrees: Annotated[float, Field(ge=0, le=45)]
    shear: Annotated[float, Field(ge=0, le=1)]  # horizontal pixels per vertical pixel
    scale: Annotated[float, Field(ge=0, lt=1)]  # of width and height, independently
    shift_pixels: Annotated[float, Field(ge=0)]


def transforms(rng: np.random.Generator, count: int, size: int, config: Distortion) -> np.ndarray:
    """Return random affine transforms about the image's centre, float32 (count, 8).

    A row is (a, b, c, d, e, f, 0, 0) of TensorFlow's ImageProjectiveTransformV3: the output pixel
    (x, y) is the input image at (ax + by + c, dx + ey + f).
    """

    def draw(limit: float) -> np.ndarray:
        return rng.uniform(-limit, limit, count)

    # A rotation is approximated by a horizontal and a vertical shear. The missing cosine, 1.5 % in
    # size at 10 degrees, is within the range of `scale`.
    turn = draw(round(math.tan(math.radians(config.rotation_degrees)), 6))
    shear, width, height = draw(config.shear), 1 + draw(config.scale), 1 + draw(config.scale)
    a, b = width, (shear - turn) * width
    d, e = turn * height, height
    centre, zero = (size - 1) / 2, np.zeros(count)
    c = centre - centre * (a + b) + draw(config.shift_pixels)
    f = centre - centre * (d + e) + draw(config.shift_pixels)
    return np.stack([a, b, c, d, e, f, zero, zero], axis=1).astype(np.float32)


def outlier_images(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return uniform grey and noisy images without a digit, uint8 (count, size, size).

    Their training target is the uniform distribution over classes, so that the network is not
    confident on blank or noisy images (outlier exposure: Hendrycks et al., arXiv:1812.04606).
    """
    shape, each = (count, size, size), (count, 1, 1)
    even = np.where(rng.random(each) < 0.5, 0, rng.integers(0, 256, each))
    density = np.where(rng.random(each) < 0.2, 0, rng.random(each) ** 2)
    specks = rng.integers(0, 256, shape)
    specks = np.where(rng.random(each) < 0.5, specks, 255 * (specks >> 7))
    brightness = np.where(rng.random(each) < 0.5, 256, rng.integers(16, 257, each))
    return np.where(rng.random(shape) < density, specks * brightness >> 8, even).astype(np.uint8)
