"""Ink in photographs: the digit alone is left, whatever it was written on."""

import io

import numpy as np
import pytest
from benchmarks.photos import CONDITIONS, photograph
from conftest import mnist_part
from PIL import Image
from skimage.measure import label, regionprops

from digits.runtime.normalise import normalise
from digits.runtime.photograph import NO_MARK, SEVERAL, Ink, _components, find_ink

DIGITS = mnist_part("t10k", 6).images
NORMAL = normalise(DIGITS, 28)
READ = [name for name, (kind, *_) in CONDITIONS.items() if kind != "other"]
READ = [name for name in READ if name != "12 megapixels"]  # the same, enlarged


def ink_of(name: str, place: int) -> Ink:
    """Return what is found in a photograph of the digit at a place."""
    with Image.open(io.BytesIO(photograph(name, DIGITS[place:], place))) as image:
        return find_ink(np.asarray(image.convert("L")), image.format == "JPEG")


def likeness(found: np.ndarray, normal: np.ndarray) -> float:
    """Return the correlation of two images, at best two pixels apart and turned by 9 degrees."""
    large = Image.fromarray(found)
    turned = [
        np.asarray(large.rotate(angle, Image.Resampling.BILINEAR)) for angle in range(-9, 10, 3)
    ]
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    moved = (np.roll(image, by, (0, 1)) for image in turned for by in shifts)
    return max(float(np.corrcoef(image.ravel(), normal.ravel())[0, 1]) for image in moved)


@pytest.mark.parametrize("name", READ)
def test_the_digit_alone_is_left(name: str) -> None:
    for place in range(2):
        found = ink_of(name, place)
        assert found.warnings == []
        assert likeness(normalise(found.pixels[None], 28)[0], NORMAL[place]) > 0.75


@pytest.mark.parametrize("name", ["two digits", "three digits"])
def test_several_digits_are_reported(name: str) -> None:
    assert all(ink_of(name, place).warnings == [SEVERAL] for place in range(3))


def test_an_empty_sheet_is_blank() -> None:
    with pytest.raises(ValueError, match="is blank"):
        ink_of("nothing", 0)


def test_what_only_reaches_in_from_the_edge_is_reported() -> None:
    grey = np.full((300, 400), 220, np.uint8)
    grey[:, :30] = 60
    grey[200:, 180:230] = 130
    assert find_ink(grey).warnings == [NO_MARK]


def test_ink_is_lighter_or_darker_than_its_paper() -> None:
    assert [ink_of(name, 0).light for name in ("plain paper", "chalk", "table around")] == [
        False,
        True,
        False,
    ]


def test_strokes_above_one_another_are_one_digit() -> None:
    """As of the kanji for two and three."""
    grey = np.full((300, 300), 230, np.uint8)
    for top, left, right in ((90, 100, 190), (140, 105, 185), (195, 80, 210)):
        grey[top : top + 14, left:right] = 40
    found = find_ink(grey)
    assert found.warnings == []
    assert _components(found.pixels > 128).area.size == 3


def test_a_small_digit_is_read_in_all_its_pixels() -> None:
    found = ink_of("5 % of the frame", 0).pixels > 128
    assert np.ptp(np.flatnonzero(found.any(axis=1))) >= 25  # of 30; 8 in the coarse picture


def test_steps_show_how_it_was_read() -> None:
    steps = ink_of("ruled, dark", 0).steps
    assert list(steps) == ["closer", "paper", "contrast", "without lines", "ink"]
    assert {image.dtype for image in steps.values()} == {np.dtype(np.uint8)}
    strong = steps["contrast"] > 60
    assert (strong & (steps["without lines"] == 0)).any()  # lines that were removed


@pytest.mark.parametrize("density", [0.0, 0.1, 0.4, 0.6, 0.9, 1.0])
def test_components_are_those_of_scikit_image(density: float) -> None:
    mask = np.random.default_rng(0).random((40, 57)) < density
    expected = label(mask, connectivity=2)
    found = _components(mask)
    pairs = np.unique(np.stack([found.labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(found.area) + bool((~mask).any())
    for region in regionprops(expected):
        number = found.labels[tuple(region.coords[0])] - 1
        assert found.area[number] == region.area
        top, left, bottom, right = region.bbox
        assert found.box[:, number].tolist() == [top, bottom, left, right]


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (15, 700), (17, 300), (129, 129)])
def test_no_shape_is_a_fault(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    try:
        found = find_ink(grey)
    except ValueError as error:
        assert "is blank" in str(error)
    else:
        assert found.pixels.any()
