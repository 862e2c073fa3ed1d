"""Ink in photographs: the digit alone is left, whatever it was written on."""

import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from benchmarks.photos import CONDITIONS, photograph
from conftest import ROOT, environment, mnist_part, python
from PIL import Image
from skimage.measure import label, regionprops

from digits.runtime.normalise import normalise
from digits.runtime.photograph import NO_MARK, SEVERAL, Ink, _components, find_ink

DIGITS = mnist_part("t10k", 6).images
NORMAL = normalise(DIGITS, 28)
READ = [name for name, (kind, *_) in CONDITIONS.items() if kind != "other"]
READ = [name for name in READ if name != "12 megapixels"]  # the same, enlarged


MACHINES = {
    "as it is": {},
    "NumPy with AVX512": {"NPY_DISABLE_CPU_FEATURES": ""},
    "NumPy without AVX2": {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX"},
    "NumPy without AVX2, old C library": {
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX512F,-FMA,-FMA4,-ERMS",
    },
}
DIGESTS = """
import hashlib, sys
import numpy as np
from digits.runtime.normalise import normalise
from digits.runtime.photograph import find_ink

with np.load(sys.argv[1]) as pictures:
    for name in pictures.files:
        ink = find_ink(pictures[name])
        parts = [normalise(ink.pixels[np.newaxis], 28), *ink.steps.values()]
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
        print(name, ink.light, ink.warnings, digest)
"""


def grey_of(name: str, place: int) -> tuple[np.ndarray, bool]:
    """Return a photograph of the digit at a place, and whether it is a JPEG."""
    with Image.open(io.BytesIO(photograph(name, DIGITS[place:], place))) as image:
        return np.asarray(image.convert("L")), image.format == "JPEG"


def ink_of(name: str, place: int) -> Ink:
    """Return what is found in a photograph of the digit at a place."""
    return find_ink(*grey_of(name, place))


@pytest.mark.prove
def test_bytes_are_the_same_on_imitated_processors(tmp_path: Path) -> None:
    pictures = {name: grey_of(name, 0)[0] for name in (*READ, "two digits", "chalk")}
    np.savez(tmp_path / "pictures.npz", allow_pickle=False, **pictures)
    command = python(DIGESTS, str(tmp_path / "pictures.npz"))
    found = {
        machine: subprocess.run(
            command,
            cwd=ROOT / "src",
            env=environment() | settings,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for machine, settings in MACHINES.items()
    }
    assert len(found["as it is"].splitlines()) == len(pictures)
    assert len(set(found.values())) == 1


def wedge(grey: np.ndarray, tip: tuple[int, int]) -> np.ndarray:
    """Return a picture with the corner of a hard shadow, whose tip is at (row, column)."""
    y, x = np.indices(grey.shape)
    shaded = (x - tip[1] > np.abs(y - tip[0])) & (x > tip[1])
    return np.where(shaded, grey * 0.5, grey).astype(np.uint8)


@pytest.mark.parametrize("tip", [(300, 430), (300, 400), (260, 330), (330, 360)])
def test_the_corner_of_a_shadow_is_no_mark(tip: tuple[int, int]) -> None:
    """Beside the digit, across it, or around it."""
    grey = np.full((600, 800), 225, np.uint8)
    ink = np.asarray(Image.fromarray(np.pad(DIGITS[0], 2)).resize((256, 256)))
    grey[172:428, 200:456] -= (ink / 255 * 190).astype(np.uint8)
    found = find_ink(wedge(grey, tip))
    assert found.warnings == []
    assert not found.light
    assert likeness(normalise(found.pixels[None], 28)[0], NORMAL[0]) > 0.75


@pytest.mark.parametrize("near", [0, 3, 8])
def test_a_frame_along_the_edge_does_not_change_the_ink(near: int) -> None:
    for digit in mnist_part("t10k", 10).images:
        grey = 255 - np.pad(np.kron(digit, np.ones((2, 2), np.uint8)), 82)
        grey[near : near + 5] = grey[-near - 5 : 220 - near] = 20
        grey[:, near : near + 5] = grey[:, -near - 5 : 220 - near] = 20
        assert not find_ink(grey).light


@pytest.mark.parametrize("flip", [0, 255], ids=["light on dark", "dark on light"])
def test_large_clean_digits_keep_their_ink(flip: int) -> None:
    """Also where they fill the picture; the ink of a light digit takes much of it."""
    for digit in mnist_part("t10k", 30).images:
        large = Image.fromarray(digit ^ np.uint8(flip)).resize((280, 280))
        assert find_ink(np.asarray(large)).light == (flip == 0)


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
