"""Rendered digits: what they look like, that their bytes are exact, and which fonts are refused."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont

from core.errors import DigitsError
from digits.sources.fonts import Glyphs, Hand, load_glyphs, render

ROOT = Path(__file__).parents[3]
FONTS = ROOT / "node_modules" / "@fontsource"
DEVANAGARI = tuple("०१२३४५६७८९")
HAND = Hand(
    rotation_degrees=15.0,
    shear=0.25,
    size_spread=0.12,
    widening=(-0.05, 0.4),
    bends_pixels=((12.0, 3.0), (5.0, 0.8)),
    bend_range=(0.3, 1.0),
    pen_share=0.7,
    half_width_pixels=(0.6, 1.6),
    weight_factors=(0.6, 1.6),
    width_wobble=0.12,
    edge_pixels=(0.1, 0.4),
    gain=(1.0, 1.4),
    regional_share=0.5,
)
DIGEST = """
import hashlib, sys
sys.path[:0] = ["src", "tests", "tests/digits/sources"]
import numpy as np
from test_glyphs import FONTS, HAND
from digits.sources.fonts import load_glyphs, render
digest = hashlib.sha256()
for family, characters in ("mukta", ["०", "५"]), ("yomogi", ["〇零", "五"]):
    glyphs = load_glyphs(FONTS, [family], characters)
    images, _ = render(glyphs, 100, HAND, 28, np.random.default_rng(5))
    for part in (glyphs.distances, glyphs.half_widths, images):
        digest.update(part.tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return load_glyphs(FONTS, ["kalam", "noto-sans-devanagari"], DEVANAGARI)


def test_every_class_is_drawn_in_normal_form(glyphs: Glyphs) -> None:
    images, labels = render(glyphs, 7, HAND, 28, np.random.default_rng(0))
    assert images.shape == (70, 28, 28) and images.dtype == labels.dtype == np.uint8
    assert np.array_equal(labels, np.repeat(np.arange(10), 7))
    assert (images.max(axis=(1, 2)) == 255).all()
    sides = np.maximum(images.any(axis=1).sum(axis=1), images.any(axis=2).sum(axis=1))
    assert ((sides >= 19) & (sides <= 21)).all()
    assert len(np.unique(images, axis=0)) == 70
    assert render(glyphs, 1, HAND, 20, np.random.default_rng(0))[0].shape == (10, 20, 20)


def test_seed_alone_decides(glyphs: Glyphs) -> None:
    first, again, other = (
        render(glyphs, 3, HAND, 28, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_regional_forms_are_found_and_drawn_at_their_share(glyphs: Glyphs) -> None:
    regional = {character for character, _, is_regional in glyphs.origins if is_regional}
    assert regional == set("५८९")  # Noto's Nepali forms; Kalam has none
    eights = [index for index, origin in enumerate(glyphs.origins) if origin[0] == "८"]
    steady = dataclasses.replace(
        HAND, rotation_degrees=0.0, shear=0.0, size_spread=0.0, widening=(0.0, 0.0), bends_pixels=()
    )
    part = Glyphs(
        glyphs.labels[eights],
        tuple(glyphs.origins[index] for index in eights),
        glyphs.half_widths[eights],
        glyphs.distances[:, eights],
    )
    for share in (0.0, 1.0):
        hand = dataclasses.replace(steady, regional_share=share, pen_share=1.0)
        images, _ = render(part, 30, hand, 28, np.random.default_rng(0))
        # The regional form hangs from a bar: its upper left corner has ink, the other has none.
        assert (images[:, 4:9, 4:9].mean() > 20) == bool(share)


def test_all_characters_of_a_class_are_used() -> None:
    mixed = load_glyphs(FONTS, ["yomogi"], ["〇零", "一"])
    labels = {
        origin[0]: int(label) for origin, label in zip(mixed.origins, mixed.labels, strict=True)
    }
    assert labels == {"〇": 0, "零": 0, "一": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1"}, marks=pytest.mark.prove
        ),
        {
            "OPENBLAS_CORETYPE": "Prescott",
            "OPENBLAS_NUM_THREADS": "2",
            "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-FMA,-FMA4",
        },
    ],
)
def test_other_processors_give_the_same_bytes(settings: dict[str, str]) -> None:
    digests = []
    for change in ({}, settings):
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", **change}
        command = [sys.executable, "-c", DIGEST]
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        digests.append(result.stdout)
    assert digests[0] == digests[1] and len(digests[0]) == 65


def test_missing_family_is_named() -> None:
    with pytest.raises(DigitsError, match="no-such-font is not installed"):
        load_glyphs(FONTS, ["no-such-font"], DEVANAGARI)


def test_character_that_no_piece_has_is_named() -> None:
    with pytest.raises(DigitsError, match=r"kalam has the character 一 \(U\+4E00\)"):
        load_glyphs(FONTS, ["kalam"], ["一"])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a folder with a copy of Kalam in one weight."""
    files = tmp_path / "kalam" / "files"
    files.mkdir(parents=True)
    shutil.copy(FONTS / "kalam" / "unicode.json", tmp_path / "kalam")
    for subset in ("latin", "devanagari"):
        shutil.copy(FONTS / "kalam" / "files" / f"kalam-{subset}-400-normal.woff", files)
    return tmp_path


def test_missing_glyph_is_named(copied: Path) -> None:
    file = copied / "kalam" / "files" / "kalam-devanagari-400-normal.woff"
    with TTFont(file) as font:
        for table in font["cmap"].tables:
            table.cmap.pop(ord("३"), None)
        font.save(file)
    with pytest.raises(DigitsError, match=rf"{file.name}: has no glyph for the character ३"):
        load_glyphs(copied, ["kalam"], DEVANAGARI)


def test_damaged_font_is_named(copied: Path) -> None:
    file = copied / "kalam" / "files" / "kalam-devanagari-400-normal.woff"
    whole = file.read_bytes()
    for damaged in (b"no font", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(DigitsError, match=rf"{file.name}: is corrupted"):
            load_glyphs(copied, ["kalam"], DEVANAGARI)


def test_latin_shape_in_place_of_another_is_refused(copied: Path) -> None:
    """The font's own Latin 4, put where ४ is looked for."""
    load_glyphs(copied, ["kalam"], DEVANAGARI)
    files = copied / "kalam" / "files"
    with TTFont(files / "kalam-latin-400-normal.woff") as latin:
        for table in latin["cmap"].tables:
            if table.isUnicode():
                table.cmap[ord("४")] = table.cmap[ord("4")]
        latin.save(files / "kalam-devanagari-400-normal.woff")
    with pytest.raises(DigitsError, match=r"the character ४ .* has the shape of the Latin 4"):
        load_glyphs(copied, ["kalam"], ["४"])
