"""MNIST's normal form: box, centre and strength, for canvases and outputs of any size."""

import numpy as np
import pytest

from digits.runtime.normalise import normalise


def extent(image: np.ndarray) -> tuple[int, int]:
    """Return the height and the width of the ink."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def rectangle(height: int, width: int, canvas: tuple[int, int] = (90, 70)) -> np.ndarray:
    ink = np.zeros((1, *canvas), np.uint8)
    ink[0, 3 : 3 + height, 7 : 7 + width] = 200
    return ink


@pytest.mark.parametrize("size", [20, 28, 56])
@pytest.mark.parametrize(("height", "width"), [(80, 10), (10, 60), (40, 40), (1, 1), (7, 5)])
def test_long_side_is_twenty_twenty_eighths_of_the_output(
    size: int, height: int, width: int
) -> None:
    image = normalise(rectangle(height, width), size)[0]
    long_side = size * 20 / 28
    scale = long_side / max(height, width)
    # An edge within an output pixel colours it in part: up to one pixel more on the whole.
    assert np.allclose(extent(image), (height * scale, width * scale), atol=1.01)
    assert image.max() == 255 and image.shape == (size, size)


@pytest.mark.parametrize("canvas", [(64, 64), (90, 70), (33, 120)])
def test_centre_of_mass_is_in_the_middle(canvas: tuple[int, int]) -> None:
    ink = np.zeros((1, *canvas), np.uint8)
    ink[0, 5:25, 10:14] = 255  # a 6: a stem with a heavy foot
    ink[0, 18:25, 10:20] = 255
    image = normalise(ink, 28)[0].astype(float)
    row, column = (np.arange(28) @ image.sum(axis=axis) / image.sum() for axis in (1, 0))
    assert abs(row - 14) <= 0.5 and abs(column - 14) <= 0.5


def test_mnist_like_digits_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    ink = rng.integers(0, 255, (5, 64, 48), dtype=np.uint8)
    once = normalise(ink, 28)
    assert np.array_equal(normalise(once, 28), once)


def test_faint_paper_does_not_widen_the_box() -> None:
    ink = rectangle(30, 20)
    assert np.array_equal(normalise(np.maximum(ink, 4), 28), normalise(ink, 28))


def test_pale_ink_is_as_strong_as_black() -> None:
    ink = rectangle(30, 20)
    assert np.array_equal(normalise(ink // 4, 28), normalise(ink, 28))


def test_area_averaging_keeps_the_share_of_ink() -> None:
    ink = np.zeros((1, 40, 40), np.uint8)
    ink[0, ::2, :] = 255  # every second line, two lines to an output pixel
    ink[0, 39, :] = 255
    image = normalise(ink, 28)[0]
    middle = image[image.any(axis=1)][:-1]
    assert np.unique(middle[middle > 0]).tolist() == [128]


def test_ink_that_is_heavy_on_one_side_is_not_cut() -> None:
    ink = np.zeros((1, 60, 60), np.uint8)
    ink[0, 0:60, 0:60] = 40
    ink[0, :, 0:6] = 255
    assert extent(normalise(ink, 28)[0]) == (20, 20)


def test_blank_and_wrong_arrays_are_refused() -> None:
    ink = np.concatenate([rectangle(5, 5), np.zeros((1, 90, 70), np.uint8)])
    with pytest.raises(ValueError, match="image 1 of 2 is blank"):
        normalise(ink, 28)
    with pytest.raises(ValueError, match="uint8"):
        normalise(ink.astype(np.float32), 28)
    with pytest.raises(ValueError, match="uint8"):
        normalise(ink[0], 28)
    assert normalise(ink[:0], 28).shape == (0, 28, 28)
