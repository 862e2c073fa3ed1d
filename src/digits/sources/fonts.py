"""Render digits of scripts that MNIST lacks, from open fonts, varied like handwriting.

`load_glyphs` reads the shapes from the fonts. `render` imitates handwriting: a pen follows the
middle of the strokes (or the outline is kept); the shape is shifted, rotated and bent, and
`normalise` brings it to MNIST's normal form.

The output is bit-identical on every processor with AVX2: elementwise + - * / and square roots are
correctly rounded (IEEE 754), matrix products are of integers small enough that sums are exact in
any order, and no exp, log, power, sine or cosine is taken of random numbers.
"""

import io
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont
from pydantic import AfterValidator, Field
from scipy.ndimage import distance_transform_edt
from skimage.morphology import skeletonize

from core.errors import DigitsError
from core.params import ordered, strict
from digits.runtime.normalise import BOX_PIXELS, normalise

FONTS = Path("node_modules/@fontsource")  # where npm installs the fonts
FIELD = 128  # side of the square in which a glyph's distances are kept
GLYPH = 88  # long side of a glyph in it; the margin lets strokes move
CANVAS = 64  # side of the canvas that a digit is drawn on before it is normalised
UNIT = GLYPH / BOX_PIXELS  # field pixels to one pixel of MNIST
DRAWN = 256  # font size in pixels at which glyphs are drawn
WOBBLE_LENGTH_PIXELS = 5  # distance of the points at which a line's width is drawn
BATCH = 100  # digits drawn at a time: their arrays stay in the processor's cache
PRIVATE_USE = 0xE000  # first private-use code point of Unicode
LATIN_OVERLAP = 0.8  # measured: true glyphs up to 0.6, Latin ones in their place 0.72 to 1
REMOVE = "remove the family from the fonts in params.yaml"

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Shape = npt.NDArray[np.bool_]  # (FIELD, FIELD)
Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[float, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(gt=-1, lt=1)]
Changes = Annotated[tuple[Change, Change], AfterValidator(ordered)]
Bends = Annotated[tuple[tuple[AtLeastOne, Positive], ...], Field(min_length=1)]
Gains = Annotated[tuple[AtLeastOne, AtLeastOne], AfterValidator(ordered)]
Lengths = Annotated[tuple[Positive, Positive], AfterValidator(ordered)]


@strict
class Hand:
    """How digits vary from one to the next.

    Pairs are ranges, drawn from uniformly; pixels are those of a 28-pixel image.
    """

    rotation_degrees: Annotated[float, Field(ge=0, lt=90)]  # up to this much either way
    shear: float  # pixels sideways per pixel of height, up to this much either way
    # width and height each by (1 + s) / (1 - s), s up to this either way
    size_spread: Annotated[float, Field(ge=0, lt=1)]
    widening: Changes  # then the width by (1 + w) / (1 - w); negative: narrower
    bends_pixels: Bends  # distance of points, standard deviation of their shifts
    bend_range: Annotated[tuple[float, float], AfterValidator(ordered)]  # factor for these shifts
    pen_share: Share  # share drawn with a pen along the middle of the strokes
    half_width_pixels: Lengths  # half the width of any line
    weight_factors: Lengths  # the other digits: the font's line width times this
    width_wobble: Share  # deviation of the width along a line, as a share of it
    edge_pixels: Lengths  # half the way from full ink to paper
    gain: Gains  # ink times this, at most white: above 1 sharpens the edges
    regional_share: Share  # share drawn with another language's form, where fonts have one


@strict
class Fonts:
    """A script's `reader` in params.yaml that renders digits instead of reading them."""

    format: Literal["fonts"]
    characters: tuple[Annotated[str, Field(min_length=1)], ...]  # of each class: one or several
    train_fonts: Annotated[tuple[str, ...], Field(min_length=1)]  # packages below @fontsource
    unseen_fonts: Annotated[tuple[str, ...], Field(min_length=1)]
    hand: Hand

    def __post_init__(self) -> None:
        """Raise ValueError when a character or a font is listed twice."""
        for many, where in (
            ("".join(self.characters), "characters"),
            (self.train_fonts + self.unseen_fonts, "train_fonts and unseen_fonts"),
        ):
            if twice := sorted(one for one in set(many) if many.count(one) > 1):
                raise ValueError(f"{twice[0]} occurs twice in {where}")


@dataclass(frozen=True)
class Glyphs:
    """The shapes of a script in every family and weight; distances in field pixels."""

    labels: Bytes  # (g,)
    origins: tuple[tuple[str, str, bool], ...]  # (g,): character, family, whether regional
    half_widths: Floats  # (g,): from the middle of the strokes to their edge, the median
    distances: Floats  # (2, g, FIELD, FIELD): to the middle; to the edge, negative inside


def load_glyphs(folder: Path, families: Sequence[str], characters: Sequence[str]) -> Glyphs:
    """Read the shapes of `characters` from fonts of the npm scope @fontsource.

    `folder` is node_modules/@fontsource; `characters` has one string per class, with all its
    characters. Every upright weight is read, and the regional forms that a font keeps for other
    languages (OpenType's `locl`: ५ ८ ९ in Hindi and in Nepali).

    Raises DigitsError for a family that is not installed, a font without a character, and one
    that has the shape of a Latin digit in its place (khand, hind and teko do; measured by how
    much the two shapes overlap).
    """
    labels, origins, half_widths, to_middle, to_edge = [], [], [], [], []
    for family in families:
        for file, wanted in _font_files(folder, family, "".join(characters)):
            try:
                shapes = list(_shapes(file, family, wanted))
            except (TTLibError, struct.error, zlib.error) as error:
                raise DigitsError(f"{file}: is corrupted ({error}); run `make env` again") from None
            for character, regional, shape in shapes:
                middle = skeletonize(shape)
                edge = distance_transform_edt(~shape) - distance_transform_edt(shape)
                labels.append(next(i for i, text in enumerate(characters) if character in text))
                origins.append((character, family, regional))
                half_widths.append(-np.median(edge[middle]))
                to_middle.append(distance_transform_edt(~middle).astype(np.float32))
                to_edge.append(edge.astype(np.float32))
    return Glyphs(
        np.array(labels, np.uint8),
        tuple(origins),
        np.array(half_widths, np.float32),
        np.stack([to_middle, to_edge]),
    )


def render(
    glyphs: Glyphs, per_class: int, hand: Hand, image_size: int, rng: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """Draw `per_class` digits of each class, one class after the other.

    Returns images uint8 (n, image_size, image_size) in MNIST's normal form, white (255) on black
    (0), and labels uint8 (n,). A class's characters are equally likely; so are a character's
    families, and a family's weights. tests/benchmarks/realism.py measures how well such digits
    represent real handwriting.
    """
    chosen = np.concatenate(
        [_choose(glyphs, label, per_class, hand, rng) for label in np.unique(glyphs.labels)]
    )
    batches = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    images = [_draw(glyphs, batch, hand, image_size, rng) for batch in batches]
    return np.concatenate(images), glyphs.labels[chosen]


def _font_files(folder: Path, family: str, characters: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of the family that are needed, one per weight, and the characters of each.

    Large fonts are split into about 120 files; unicode.json lists the characters of each.
    """
    index = folder / family / "unicode.json"
    if not index.is_file():
        raise DigitsError(
            f"{index}: not found, so font family {family} is not installed; add "
            f"@fontsource/{family} to package.json and run `make env`, or {REMOVE}"
        )
    missing = characters
    for piece, ranges in json.loads(index.read_text(encoding="utf-8")).items():
        covered: set[int] = set()
        for part in ranges.split(","):
            first, _, last = part.strip().removeprefix("U+").partition("-")
            covered.update(range(int(first, 16), int(last or first, 16) + 1))
        wanted = "".join(character for character in missing if ord(character) in covered)
        name = f"{family}-{piece.strip('[]')}-*-normal.woff"
        if wanted and (files := sorted((folder / family / "files").glob(name))):
            missing = "".join(character for character in missing if character not in wanted)
            yield from ((file, wanted) for file in files)
    if missing:
        raise DigitsError(f"{index}: no file of {family} has {_name(missing[0])}; {REMOVE}")


def _shapes(file: Path, family: str, characters: str) -> Iterator[tuple[str, bool, Shape]]:
    """Yield character, whether it is a regional form, and shape."""
    weight = file.name.split("-")[-2]
    latin_shapes = _latin_shapes(file.with_name(f"{family}-latin-{weight}-normal.woff"))
    font, forms = _open(file, characters)
    for character in characters:
        for form in forms[character]:
            shape = _shape(font, form)
            if not shape.any():
                raise DigitsError(f"{file}: the glyph for {_name(character)} is empty; {REMOVE}")
            for digit, latin in latin_shapes.items():
                if (shape & latin).sum() > LATIN_OVERLAP * (shape | latin).sum():
                    raise DigitsError(
                        f"{file}: {_name(character)} has the shape of the Latin {digit}; {REMOVE}"
                    )
            yield character, form != character, shape


@lru_cache(maxsize=16)  # the files of a large font share their Latin digits
def _latin_shapes(file: Path) -> dict[str, Shape]:
    if not file.is_file():
        return {}
    font, _ = _open(file, "0123456789")
    return {digit: _shape(font, digit) for digit in "0123456789"}


def _name(character: str) -> str:
    return f"the character {character} (U+{ord(character):04X})"


def _open(file: Path, characters: str) -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """Return the font, and the code points to draw for each character, regional forms last.

    Regional forms have no code point, so they are given private ones: Pillow without Raqm (whose
    library differs between machines) draws by code point alone.
    """
    forms: dict[str, str] = {}
    private: dict[int, str] = {}
    plain = io.BytesIO()
    data = io.BytesIO(file.read_bytes())
    with TTFont(data, lazy=True, recalcBBoxes=False, recalcTimestamp=False) as font:
        glyph_names = font.getBestCmap()
        for character in characters:
            if ord(character) not in glyph_names:
                raise DigitsError(f"{file}: has no glyph for {_name(character)}; {REMOVE}")
            forms[character] = character
            for glyph_name in _regional_forms(font, glyph_names[ord(character)]):
                code = PRIVATE_USE + len(private)
                private[code] = glyph_name
                forms[character] += chr(code)
        for table in font["cmap"].tables:
            if table.isUnicode():
                table.cmap.update(private)
        for tag in {"GDEF", "GPOS", "GSUB"} & set(font.keys()):
            del font[tag]  # not used below, and slow to write
        font.flavor = None
        font.save(plain)
    plain.seek(0)
    return ImageFont.truetype(plain, DRAWN, layout_engine=ImageFont.Layout.BASIC), forms


def _regional_forms(font: TTFont, glyph_name: str) -> list[str]:
    """Return the glyphs with which the font replaces this one in some language."""
    if "GSUB" not in font or not font["GSUB"].table.FeatureList:
        return []
    table = font["GSUB"].table
    found = set()
    for record in table.FeatureList.FeatureRecord:
        if record.FeatureTag == "locl":
            for index in record.Feature.LookupListIndex:
                for subtable in table.LookupList.Lookup[index].SubTable:
                    mapping = getattr(getattr(subtable, "ExtSubTable", subtable), "mapping", {})
                    found.add(mapping.get(glyph_name, glyph_name))
    return sorted(found - {glyph_name})


def _shape(font: ImageFont.FreeTypeFont, character: str) -> Shape:
    """Draw a character with its long side GLYPH, in the middle of the field."""
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    drawn = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(drawn).text((-left, -top), character, fill=255, font=font)
    scale = GLYPH / max(drawn.size)
    small = drawn.resize(
        (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))),
        Image.Resampling.BOX,
    )
    field = Image.new("L", (FIELD, FIELD))
    field.paste(small, ((FIELD - small.width) // 2, (FIELD - small.height) // 2))
    return np.asarray(field) > 127


def _choose(
    glyphs: Glyphs, label: int, count: int, hand: Hand, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return indices into the glyphs, int64 (count,)."""
    candidates = np.flatnonzero(glyphs.labels == label)
    origins = [glyphs.origins[index] for index in candidates]
    character_count = len({character for character, _, _ in origins})
    chances = []
    for character, family, regional in origins:
        kin = [origin for origin in origins if origin[0] == character]
        pool = [origin for origin in kin if origin[2] == regional]
        share = hand.regional_share if regional else 1 - hand.regional_share
        if len(pool) == len(kin):
            share = 1
        families = len({origin[1] for origin in pool})
        shapes = pool.count((character, family, regional))
        chances.append(share / (character_count * families * shapes))
    return candidates[np.searchsorted(np.cumsum(chances)[:-1], rng.random(count))]


def _draw(
    glyphs: Glyphs, chosen: npt.NDArray[np.int64], hand: Hand, size: int, rng: np.random.Generator
) -> Bytes:
    """Draw one batch, uint8 (n, size, size); every array of draws is (n, 1, 1)."""
    n = len(chosen)

    def uniform(low: float, high: float) -> Floats:
        return (low + (high - low) * rng.random((n, 1, 1))).astype(np.float32)

    # The circle's rational parametrisation, with the tangent of half the angle: no sine, no cosine.
    limit = round(math.tan(math.radians(hand.rotation_degrees) / 2), 6)
    tangent = uniform(-limit, limit)
    cosine = (1 - tangent * tangent) / (1 + tangent * tangent)
    sine = 2 * tangent / (1 + tangent * tangent)
    shear = uniform(-hand.shear, hand.shear)
    margin = 1.12 + 0.06 * sum(shift for _, shift in hand.bends_pixels)  # keeps ink on the canvas
    spread = hand.size_spread
    width = _factor(uniform(-spread, spread)) * _factor(uniform(*hand.widening))
    height = _factor(uniform(-spread, spread))
    across = (np.arange(CANVAS, dtype=np.float32) + (0.5 - CANVAS / 2)) * (margin * FIELD / CANVAS)
    down = across[:, None]
    x = (cosine * across + (sine + shear) * down) / width + FIELD / 2
    y = (cosine * down - sine * across) / height + FIELD / 2  # (n, CANVAS, CANVAS)
    for length, shift in hand.bends_pixels:
        amount = uniform(*hand.bend_range) * np.float32(shift * UNIT)
        x += amount * _smooth(n, length, rng)
        y += amount * _smooth(n, length, rng)

    with_pen = rng.random((n, 1, 1)) < hand.pen_share
    font_line = glyphs.half_widths[chosen][:, None, None]
    low, high = (UNIT * bound for bound in hand.half_width_pixels)
    line = np.where(
        with_pen,
        uniform(low, high),
        np.clip(font_line * uniform(*hand.weight_factors), low, high),
    )
    reach = line * (1 + np.float32(hand.width_wobble) * _smooth(n, WOBBLE_LENGTH_PIXELS, rng))
    reach -= np.where(with_pen, 0, font_line)
    table = np.where(with_pen[:, 0, 0], 0, len(glyphs.labels)) + chosen
    distance = _interpolate(glyphs.distances.reshape(-1, FIELD, FIELD), table, x, y)
    edge = uniform(*hand.edge_pixels) * UNIT
    ink = np.clip(0.5 + (reach - distance) / (2 * edge), 0, 1)
    images = normalise(np.rint(ink * 255).astype(np.uint8), size)
    return np.rint(np.minimum(images * uniform(*hand.gain), 255)).astype(np.uint8)


def _factor(change: Floats) -> Floats:
    """Return approximately exp(2 * change), using correctly rounded operations only."""
    return (1 + change) / (1 - change)


def _smooth(n: int, length_pixels: float, rng: np.random.Generator) -> Floats:
    """Return smooth random fields of mean 0 and variance 1, float32 (n, CANVAS, CANVAS).

    Random whole numbers at points `length_pixels` apart, joined by cubic B-splines.
    """
    spacing = length_pixels * CANVAS * UNIT / FIELD  # in pixels of the canvas
    points = int(CANVAS / spacing) + 4
    away = np.abs((np.arange(CANVAS)[:, None] + 0.5) / spacing + 1 - np.arange(points))
    near, far = 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6
    spline = np.rint(np.where(away < 1, near, far) * 2**10)
    spline = np.rint(spline * 2**10 / np.sqrt((spline**2).sum(axis=1, keepdims=True)))
    # Exact in any order of BLAS: |draw| < 2^7, |spline| <= 2^10, four terms of a sum are not zero,
    # so |result| < 2^(7 + 10 + 2 + 10 + 2) = 2^31, far below 2^53.
    draws = rng.integers(-127, 128, (n, points, points)).astype(np.float64)
    deviation = math.sqrt((255**2 - 1) / 12)  # of whole numbers from -127 to 127
    return np.asarray(spline @ draws @ spline.T / (deviation * 2**20), dtype=np.float32)


def _interpolate(tables: Floats, index: npt.NDArray[np.int64], x: Floats, y: Floats) -> Floats:
    """Return tables[index] between its points, float32 (n, CANVAS, CANVAS)."""
    x, y = np.clip(x - 0.5, 0, FIELD - 1.01), np.clip(y - 0.5, 0, FIELD - 1.01)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x, y = x - left, y - top
    corner = index[:, None, None] * FIELD**2 + top * FIELD + left
    upper, lower = (
        tables.take(corner + row) * (1 - x) + tables.take(corner + row + 1) * x
        for row in (0, FIELD)
    )
    return np.asarray(upper * (1 - y) + lower * y)
