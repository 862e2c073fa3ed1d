"""Images made anew for each epoch: digits turned and moved a little, and images of nothing.

Every random number is a product of integers and exact arithmetic, without sine or logarithm:
those differ in the last bit between C libraries, and the weights would follow.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from core import params

UNMOVED = (1, 0, 0, 0, 1, 0, 0, 0)  # the row of `transforms` that changes nothing


@dataclass(frozen=True)
class Distortion:
    """params.yaml's section `train.distortion`: how far each may go, either way."""

    __pydantic_config__ = params.STRICT

    rotation_degrees: Annotated[float, Field(ge=0, le=45)]
    shear: Annotated[float, Field(ge=0, le=1)]  # pixels to the side for each pixel up
    scale: Annotated[float, Field(ge=0, lt=1)]  # of width and of height, each by itself
    shift_pixels: Annotated[float, Field(ge=0)]


def transforms(rng: np.random.Generator, count: int, size: int, own: Distortion) -> np.ndarray:
    """Return float32 (count, 8): where in the old image each pixel of the new one lies.

    A row is (a, b, c, d, e, f, 0, 0) of TensorFlow's ImageProjectiveTransformV3: the new pixel
    (x, y) is the old image at (ax + by + c, dx + ey + f). All turn about the image's centre.
    """

    def draw(limit: float) -> np.ndarray:
        return rng.uniform(-limit, limit, count)

    # A turn is a shear to the side and one downwards: it lacks the turn's cosine, 1.5 % in size
    # at 10 degrees, which `scale` makes up for.
    turn = draw(round(math.tan(math.radians(own.rotation_degrees)), 6))
    shear, width, height = draw(own.shear), 1 + draw(own.scale), 1 + draw(own.scale)
    a, b = width, (shear - turn) * width
    d, e = turn * height, height
    centre, zero = (size - 1) / 2, np.zeros(count)
    c = centre - centre * (a + b) + draw(own.shift_pixels)
    f = centre - centre * (d + e) + draw(own.shift_pixels)
    return np.stack([a, b, c, d, e, f, zero, zero], axis=1).astype(np.float32)


def nothing(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return uint8 (count, size, size): even greys, specks few or many, faint or white.

    Trained to mean every class alike, they keep a blank or noisy image from being read as a
    digit with confidence (outlier exposure: Hendrycks et al., arXiv:1812.04606).
    """
    shape, each = (count, size, size), (count, 1, 1)
    even = np.where(rng.random(each) < 0.5, 0, rng.integers(0, 256, each))
    density = np.where(rng.random(each) < 0.2, 0, rng.random(each) ** 2)
    specks = rng.integers(0, 256, shape)
    specks = np.where(rng.random(each) < 0.5, specks, 255 * (specks >> 7))
    brightness = np.where(rng.random(each) < 0.5, 256, rng.integers(16, 257, each))
    return np.where(rng.random(shape) < density, specks * brightness >> 8, even).astype(np.uint8)
