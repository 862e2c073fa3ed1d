"""Distortions move digits as far as they say, and images of nothing show none."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import mnist_part

from digits.model.augmentation import Distortion, outlier_images, transforms

pytestmark = pytest.mark.slow

NONE = Distortion(rotation_degrees=0.0, shear=0.0, scale=0.0, shift_pixels=0.0)
SIZE, CENTRE = 28, 13.5


def draw(**limits: float) -> np.ndarray:
    config = Distortion(**{name: limits.get(name, 0.0) for name in vars(NONE)})
    return transforms(np.random.default_rng(1), 1000, SIZE, config).astype(np.float64)


def corner(table: np.ndarray) -> np.ndarray:
    """Return where in the old image, seen from its centre, (10, 0) from the centre lies."""
    a, b, c, d, e, f = table[:, :6].T
    x, y = CENTRE + 10, CENTRE
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1) - CENTRE


def test_no_distortion_changes_no_pixel() -> None:
    images = mnist_part("t10k", 8).images[..., np.newaxis]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms(np.random.default_rng(1), 8, SIZE, NONE),
        output_shape=[SIZE, SIZE],
        fill_value=0.0,
        interpolation="BILINEAR",
    )
    np.testing.assert_array_equal(moved, images)


def test_a_shift_moves_every_pixel_alike() -> None:
    moved = corner(draw(shift_pixels=2.0)) - [10, 0]
    assert np.abs(moved).max() <= 2
    assert np.abs(moved).max(axis=0) == pytest.approx([2, 2], abs=0.02)
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.1  # to the side and down by themselves


def test_a_turn_goes_as_far_as_its_degrees() -> None:
    turned = corner(draw(rotation_degrees=20.0))
    degrees = np.degrees(np.arctan2(turned[:, 1], turned[:, 0]))
    assert (degrees.min(), degrees.max()) == pytest.approx((-20, 20), abs=0.2)


def test_scale_and_shear_keep_the_centre() -> None:
    table = draw(scale=0.1, shear=0.2)
    a, b, c, d, e, f = table[:, :6].T
    np.testing.assert_allclose(CENTRE * (a + b) + c, CENTRE, rtol=1e-6)
    np.testing.assert_allclose(CENTRE * (d + e) + f, CENTRE, rtol=1e-6)
    assert (a.min(), a.max()) == pytest.approx((0.9, 1.1), abs=0.002)
    assert np.abs(b / a).max() == pytest.approx(0.2, abs=0.002)


def test_nothing_is_blank_grey_or_noisy_and_never_the_same() -> None:
    images = outlier_images(np.random.default_rng(1), 600, SIZE)
    assert images.shape == (600, SIZE, SIZE)
    assert images.dtype == np.uint8
    even = np.ptp(images, axis=(1, 2)) == 0
    assert 0.15 < even.mean() < 0.3
    assert (images[even][:, 0, 0] == 0).any()
    assert len(np.unique(images[~even], axis=0)) == (~even).sum()
