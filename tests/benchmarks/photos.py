"""Photograph digits by program and let the endpoint's code read them: `make bench-photos`.

    python run.py bench-photos [--test] [--record] [--count N] [--only NAME ...] [--sheet FILE.png]
    python run.py bench-photos --scripts --package FOLDER --digits FILE.npz [--record]

Input: the handwritten digits of the validation split, while the code is changed, or with --test
those of the test split, once at the end; the packaged model. Output, on standard output and with
--record in BENCHMARKS.md, for each condition in percent: photographs that are read correctly, how
many of these with a warning or an OOD score above 0.5 (flagged), wrong and flagged, refused, wrong
with a confidence below 0.9, and silent: wrong, sure and unflagged. With --scripts, the points that
each script of the split loses on the papers that have a goal, against plain paper, by a model that
was trained on them, in requests that give the script.

A photograph is a digit in pen strokes on a sheet, 800 x 600 pixels: paper and what is printed on
it, ink, what lies beside the sheet, light, the sensor's noise, JPEG. It is painted in grey, which
is all that the endpoint uses of a picture: of each colour its luma, as in JPEG. Everything is drawn
from a seed, which is the digit's place in the split.
"""

import argparse
import io
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from benchmarks.record import Goal, finish
from core import params
from core.dataset import MNIST, Digits, read_split
from core.errors import DigitsError
from digits.production.service import Service
from digits.serving.picture import RefusedError
from digits.serving.request import Reader, decode

PACKAGE, CODE = Path("data/package"), Path("src/digits/serving")
VALIDATION, TEST = Path("data/prepared/validation.npz"), Path("data/prepared/test.npz")
WIDTH, HEIGHT = 800, 600
SLOWER = 20  # times as many seconds that a photograph of 12 megapixels takes
SURE, OOD_LIMIT = 0.9, 0.5
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601
PEN, PENCIL, BLUE, RED = (35, 37, 55), (128, 128, 130), (45, 70, 165), (200, 70, 70)
Kind = Literal["plain", "goal", "other"]
Rng = np.random.Generator
Painter = Callable[["Scene"], None]


@dataclass
class Scene:
    """A photograph on its way: luma and light, float32 (height, width).

    `digits` is uint8 (n, 28, 28), white on black, the first one is written; the sensor's noise and
    JPEG come last.
    """

    rng: Rng
    digits: np.ndarray
    luma: np.ndarray  # of what is photographed, 0 to 255
    light: np.ndarray
    noise: float = 2.0
    quality: int | None = 85  # of JPEG; None: PNG
    enlarged: int = 1

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x float32 (1, width) and y float32 (height, 1), in pixels."""
        height, width = self.light.shape
        return np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[
            :, None
        ]

    def blend(self, alpha: np.ndarray, colour: tuple[int, ...] | np.ndarray) -> None:
        """Cover with a colour, or with luma (height, width), where alpha, float32, is 1."""
        shade = np.dot(LUMA, colour) if isinstance(colour, tuple) else colour
        self.luma += alpha * (shade - self.luma)

    def write(
        self,
        colour: tuple[int, ...] = PEN,
        size: float | None = None,
        opacity: float = 1.0,
        box: tuple[float, float, float, float] = (0.03, 0.03, 0.97, 0.97),
        which: int = 0,
    ) -> None:
        """Write a digit somewhere in `box` (shares of the frame: left, top, right, bottom).

        `size` is the height of its ink as a share of the frame's.
        """
        height, width = self.light.shape
        size = self.rng.uniform(0.22, 0.5) if size is None else size
        alpha = strokes(self.digits[which], round(size * height), round(0.97 * width), self.rng)
        tall, wide = alpha.shape
        left, right = box[0] * width, box[2] * width - wide
        top, bottom = box[1] * height, box[3] * height - tall
        x, y = (
            round(self.rng.uniform(low, max(low, high)))
            for low, high in ((left, right), (top, bottom))
        )
        x, y = min(x, width - wide), min(y, height - tall)
        place = self.luma[y : y + tall, x : x + wide]
        place += alpha * opacity * (np.dot(LUMA, colour) - place)

    def lines(
        self,
        spacing: float,
        thickness: float,
        colour: tuple[int, ...],
        contrast: float,
        directions: tuple[float, ...] = (0.0,),
        only: float | None = None,
    ) -> None:
        """Print parallel lines at angles in radians, on a page that is slightly turned and bent.

        `only` is the place of a single line, as a share of the frame.
        """
        x, y = self.coordinates()
        turn, bend = self.rng.uniform(-0.07, 0.07), self.rng.uniform(-4e-5, 4e-5)
        perspective = self.rng.uniform(-1e-4, 1e-4)
        for direction in directions:
            angle = direction + turn
            along = x * np.cos(angle) + y * np.sin(angle)
            across = y * np.cos(angle) - x * np.sin(angle)
            across = across * (1 + perspective * along) + bend * (along - along.mean()) ** 2
            if only is None:
                distance = np.abs((across + self.rng.uniform(0, spacing)) % spacing - spacing / 2)
            else:
                distance = np.abs(across - across.min() - only * np.ptp(across))
            self.blend(contrast * np.clip(thickness / 2 + 0.5 - distance, 0, 1), colour)

    def shadow(self, softness: float) -> None:
        """Cast a shadow with a straight edge, at times of a wedge, over a part of the sheet."""
        x, y = self.coordinates()
        height, width = self.light.shape
        depth = self.rng.uniform(0.35, 0.65)
        shade = np.ones_like(self.light)
        angle = self.rng.uniform(0, 2 * np.pi)
        for turn in (0.0, self.rng.uniform(0.5, 2.2)) if self.rng.random() < 0.4 else (0.0,):
            across = np.cos(angle + turn) * (x - self.rng.uniform(0.25, 0.75) * width)
            across = across + np.sin(angle + turn) * (y - self.rng.uniform(0.25, 0.75) * height)
            shade = np.minimum(shade, np.clip(0.5 + across / softness, 0, 1))
        self.light *= 1 - depth * shade

    def table(self, sheet: np.ndarray) -> None:
        """Show a dark table, with grain as of wood, where `sheet`, float32, is 0."""
        x, y = self.coordinates()
        grain = np.sin((y + 6 * np.sin(x / 90)) / self.rng.uniform(2, 6)) * 8
        grain = grain + 5 * self.rng.standard_normal(self.light.shape, np.float32)
        wood = [(70, 48, 34), (110, 80, 55), (45, 45, 50)][self.rng.integers(3)]
        self.blend(1 - sheet, np.dot(LUMA, wood) + grain)

    def photograph(self) -> bytes:
        """Return the file."""
        grain = self.noise * self.rng.standard_normal(self.light.shape, np.float32)
        seen = self.luma * self.light + grain
        image = Image.fromarray(seen.clip(0, 255).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur(0.7 if self.quality else 0))
        image = image.resize((image.width * self.enlarged, image.height * self.enlarged))
        file = io.BytesIO()
        if self.quality is None:
            image.save(file, "PNG", compress_level=1)
        else:
            image.save(file, "JPEG", quality=self.quality)
        return file.getvalue()


def strokes(digit: np.ndarray, height: int, most: int, rng: Rng) -> np.ndarray:
    """Return a digit in pen strokes, float32 of 0 to 1, cut to its ink, slightly turned.

    It has this height, but is at most `most` pixels wide.
    """
    large = Image.fromarray(np.pad(digit, 8)).resize((176, 176), Image.Resampling.BICUBIC)
    large = large.filter(ImageFilter.GaussianBlur(2))
    large = large.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    level = rng.uniform(70, 120)  # the lower, the broader the pen
    alpha = np.clip((np.asarray(large, np.float32) - level) / 40 + 0.5, 0, 1)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    cut = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(height / cut.shape[0], most / cut.shape[1])
    width, height = (max(2, round(scale * side)) for side in cut.shape[::-1])
    shrunk = Image.fromarray(cut).resize((width, height), Image.Resampling.BOX)
    return np.asarray(shrunk, np.float32)


def sheet(rng: Rng, digits: np.ndarray) -> Scene:
    """Return paper in uneven light, without the digit."""
    upright = rng.random() < 0.2
    shape = (WIDTH, HEIGHT) if upright else (HEIGHT, WIDTH)
    paper = [(236, 232, 222), (245, 245, 243), (225, 228, 232)][rng.integers(3)]
    fibres = 3 * rng.standard_normal((shape[0] // 4, shape[1] // 4), np.float32)
    fibres = np.asarray(Image.fromarray(fibres).resize(shape[::-1], Image.Resampling.BILINEAR))
    luma = np.dot(LUMA, paper) + fibres
    x, y = np.linspace(-0.5, 0.5, shape[1])[None], np.linspace(-0.5, 0.5, shape[0])[:, None]
    slope, angle = rng.uniform(0, 0.25), rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.75, 0.98) * (1 + slope * (x * np.cos(angle) + y * np.sin(angle)))
    return Scene(rng, digits, luma.astype(np.float32), light.astype(np.float32))


def canvas(rng: Rng, digits: np.ndarray, side: int = 220) -> Scene:
    """Return a white canvas of a drawing program, a PNG without noise."""
    white = np.full((side, side), 255, np.float32)
    return Scene(rng, digits, white, np.ones_like(white), 0, None)


def lines(*settings: Any, **options: Any) -> Painter:
    """Return what prints lines and writes on them."""

    def paint(scene: Scene) -> None:
        scene.lines(*settings, **options)
        scene.write(BLUE if scene.rng.random() < 0.3 else PEN)

    return paint


def shadow(sharpest: float, softest: float) -> Painter:
    """Return what writes and casts a shadow, whose edge has a width in pixels, over it."""

    def paint(scene: Scene) -> None:
        scene.write()
        scene.shadow(scene.rng.uniform(sharpest, softest))

    return paint


def pen(**options: Any) -> Painter:
    """Return what only writes."""
    return lambda scene: scene.write(**options)


def lamp(scene: Scene) -> None:
    """A desk lamp: a bright spot, dark corners."""
    scene.write()
    x, y = scene.coordinates()
    height, width = scene.light.shape
    distance = np.hypot(x - scene.rng.uniform(0, 1) * width, y - scene.rng.uniform(0, 1) * height)
    scene.light *= 0.18 + 0.95 * np.exp(-((distance / (0.55 * width)) ** 2))


def beside(scene: Scene) -> None:
    """A dark table along one side of the sheet."""
    x, y = scene.coordinates()
    height, width = scene.light.shape
    share, tilt = scene.rng.uniform(0.06, 0.25), scene.rng.uniform(-0.1, 0.1)
    from_left = x - share * width + tilt * (y - height / 2)
    from_top = y - share * height + tilt * (x - width / 2)
    near, far = share + 0.1, 0.9 - share
    depth, box = [
        (from_left, (near, 0.03, 0.97, 0.97)),
        (from_left[:, ::-1], (0.03, 0.03, far, 0.97)),
        (from_top, (0.03, near, 0.97, 0.97)),
        (from_top[::-1], (0.03, 0.03, 0.97, far)),
    ][scene.rng.integers(4)]
    scene.write(box=box)
    scene.table(np.clip(depth + 0.5, 0, 1))


def around(scene: Scene) -> None:
    """A sheet that is slightly turned, with a dark table all around."""
    x, y = scene.coordinates()
    height, width = scene.light.shape
    angle = scene.rng.uniform(-0.12, 0.12)
    across = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
    down = (y - height / 2) * np.cos(angle) - (x - width / 2) * np.sin(angle)
    half = scene.rng.uniform(0.3, 0.4, 2) * (width, height)
    depth = np.minimum(half[0] - np.abs(across), half[1] - np.abs(down))
    scene.write(size=scene.rng.uniform(0.2, 0.32), box=(0.28, 0.28, 0.72, 0.72))
    scene.table(np.clip(depth + 0.5, 0, 1))


def frame(scene: Scene) -> None:
    """A black line along the edge of the picture, or near it."""
    scene.write(box=(0.12, 0.12, 0.88, 0.88))
    height, width = scene.light.shape
    near, thick = scene.rng.choice([0, 0, 3, 8]), scene.rng.integers(1, 6)
    drawn = np.zeros_like(scene.light)
    drawn[near : height - near, near : width - near] = 1
    inner = near + thick
    drawn[inner : height - inner, inner : width - inner] = 0
    scene.blend(drawn, (20, 20, 20))


def grain(scene: Scene) -> None:
    """The noise of a sensor in little light, kept by PNG."""
    scene.write(size=scene.rng.uniform(0.35, 0.6))
    scene.light *= 0.9 if scene.rng.random() < 0.5 else 1
    scene.noise, scene.quality = scene.rng.uniform(4, 16), None


def speck(scene: Scene) -> None:
    """One to three dark dots apart from the digit."""
    scene.write(size=scene.rng.uniform(0.3, 0.55), box=(0.2, 0.2, 0.8, 0.8))
    x, y = scene.coordinates()
    height, width = scene.light.shape
    for _ in range(scene.rng.integers(1, 4)):
        along, edge = scene.rng.uniform(0.02, 0.98), scene.rng.choice([0.04, 0.1, 0.9, 0.96])
        share_x, share_y = (along, edge) if scene.rng.random() < 0.5 else (edge, along)
        distance = np.hypot(x - share_x * width, y - share_y * height)
        radius = scene.rng.uniform(0.004, 0.012) * height
        scene.blend(np.clip(radius + 0.5 - distance, 0, 1), (30, 30, 30))


def status_bar(scene: Scene) -> None:
    """The screenshot of a telephone: a bar with the time and signs, a drawing below."""
    height, width = scene.light.shape
    scene.write((0, 0, 0), scene.rng.uniform(0.25, 0.5), box=(0.08, 0.15, 0.92, 0.95))
    bar, dark = round(height * scene.rng.uniform(0.04, 0.07)), scene.rng.random() < 0.6
    ground, sign = (30, 255) if dark else (255, 20)
    image = Image.new("L", (width, bar), ground)
    draw = ImageDraw.Draw(image)
    draw.text((width * 0.04, bar * 0.2), "12:47", sign, font_size=bar * 0.6)
    draw.text((width * 0.8, bar * 0.2), "87 %", sign, font_size=bar * 0.6)
    draw.rectangle((width * 0.93, bar * 0.3, width * 0.97, bar * 0.7), sign)
    scene.luma[:bar] = np.asarray(image)


def chalk(scene: Scene) -> None:
    """Chalk on a blackboard with traces of the sponge."""
    board = [(38, 60, 50), (40, 42, 45)][scene.rng.integers(2)]
    scene.luma[:] = np.dot(LUMA, board)
    traces = scene.rng.normal(0, 10, (9, 12)).astype(np.float32)
    size = scene.light.shape[::-1]
    scene.luma += np.asarray(Image.fromarray(traces).resize(size, Image.Resampling.BICUBIC))
    scene.write((215, 215, 205), opacity=0.85)
    scene.noise = 6


def finger(scene: Scene) -> None:
    """A finger that reaches into the picture from below."""
    scene.write(box=(0.05, 0.05, 0.95, 0.6))
    x, y = scene.coordinates()
    height, width = scene.light.shape
    centre, thick = scene.rng.uniform(0.1, 0.9) * width, scene.rng.uniform(0.05, 0.09) * width
    top = scene.rng.uniform(0.68, 0.85) * height
    tip = np.hypot(x - centre, np.minimum(y - top, 0) * 0.7)
    scene.blend(np.clip((thick - tip) / 3, 0, 1), (205, 150, 125))


def several(count: int) -> Painter:
    """Return what writes some digits side by side."""

    def paint(scene: Scene) -> None:
        height, width = scene.light.shape
        size = scene.rng.uniform(0.2, 0.3) * min(1, width / height)
        start = scene.rng.uniform(0.05, 0.9 - 0.28 * count)
        down = scene.rng.uniform(0.1, 0.5)
        for place in range(count):
            left = start + 0.28 * place
            scene.write(size=size, box=(left, down, left + 0.24, down + 0.34), which=place)

    return paint


def printed(scene: Scene) -> None:
    """A worksheet with a line of print above the digit."""
    image = Image.new("L", scene.light.shape[::-1], 0)
    size = scene.rng.uniform(14, 22)
    text = "Write the number in the box. Name: ................"
    ImageDraw.Draw(image).text((40, scene.rng.uniform(20, 60)), text, 255, font_size=size)
    scene.blend(np.asarray(image, np.float32) / 255, (40, 40, 40))
    scene.write(BLUE, box=(0.05, 0.22, 0.95, 0.95))


def glare(scene: Scene) -> None:
    """A whiteboard with the reflection of a lamp."""
    scene.luma[:] = 172
    scene.write((30, 40, 120))
    x, y = scene.coordinates()
    height, width = scene.light.shape
    distance = np.hypot(x - scene.rng.uniform(0, 1) * width, y - scene.rng.uniform(0, 1) * height)
    scene.luma += 120 * np.exp(-((distance / (0.13 * width)) ** 2))


def marker(scene: Scene) -> None:
    """A yellow highlighter."""
    paper = scene.luma.copy()
    scene.write(BLACK)
    covered = 1 - scene.luma / paper
    scene.luma = paper * (1 - covered * (1 - np.dot(LUMA, (0.99, 0.96, 0.35))))


def edge(scene: Scene) -> None:
    """A digit that almost touches the edge of the picture."""
    left = scene.rng.random() < 0.5
    scene.write(box=(0.0, 0.05, 0.02, 0.95) if left else (0.97, 0.05, 1.0, 0.95))


def cut(scene: Scene) -> None:
    """A digit cut to the box of its ink."""
    alpha = strokes(scene.digits[0], int(scene.rng.integers(100, 200)), 300, scene.rng)
    scene.light, scene.luma = np.ones_like(alpha), np.full_like(alpha, 255)
    scene.blend(alpha, BLACK)


def then(*painters: Painter) -> Painter:
    """Return what paints one after another."""

    def paint(scene: Scene) -> None:
        for painter in painters:
            painter(scene)

    return paint


def telephone(scene: Scene) -> None:
    """As many pixels as of a telephone: 12 million."""
    scene.enlarged, scene.noise = 5, 1


def messenger(scene: Scene) -> None:
    """JPEG as a messenger compresses it."""
    scene.quality = 25


def white(scene: Scene) -> None:
    """A sheet and nothing on it."""


GREY, DARK, BLACK = (150, 160, 185), (75, 80, 100), (0, 0, 0)
SQUARES = (0.0, np.pi / 2)
PHONE = partial(canvas, side=600)
ruled_dark, squared_dark = lines(24, 2.8, DARK, 1.0), lines(20, 2.4, DARK, 1.0, SQUARES)
CONDITIONS: dict[str, tuple[Kind, Painter, Callable[..., Scene]]] = {
    "plain paper": ("plain", pen(), sheet),
    "pencil": ("plain", pen(colour=PENCIL, opacity=0.85), sheet),
    "blue pen": ("plain", pen(colour=BLUE), sheet),
    "whiteboard, glare": ("plain", glare, sheet),
    "near the edge": ("plain", edge, sheet),
    "much compressed": ("plain", then(messenger, pen()), sheet),
    "12 megapixels": ("plain", then(telephone, pen()), sheet),
    "drawn, PNG": ("plain", pen(size=0.6, colour=BLACK), canvas),
    "cut to its ink": ("plain", cut, canvas),
    "soft shadow": ("goal", shadow(40, 160), sheet),
    "hard shadow": ("goal", shadow(1, 8), sheet),
    "desk lamp": ("goal", lamp, sheet),
    "ruled, light": ("goal", lines(32, 1.5, GREY, 0.6), sheet),
    "ruled, dark": ("goal", ruled_dark, sheet),
    "squared, light": ("goal", lines(20, 1.2, GREY, 0.6, SQUARES), sheet),
    "squared, dark": ("goal", squared_dark, sheet),
    "red margin": ("goal", lines(0, 2.5, RED, 0.9, (np.pi / 2,), only=0.15), sheet),
    "table beside": ("goal", beside, sheet),
    "table around": ("goal", around, sheet),
    "frame": ("goal", frame, canvas),
    "grain, PNG": ("goal", grain, canvas),
    "speck": ("goal", speck, canvas),
    "status bar": ("goal", status_bar, PHONE),
    "5 % of the frame": ("goal", pen(size=0.05), sheet),
    "chalk": ("other", chalk, sheet),
    "highlighter": ("other", marker, sheet),
    "finger": ("other", finger, sheet),
    "print": ("other", printed, sheet),
    "squared, in shadow": ("other", then(squared_dark, lambda scene: scene.shadow(60)), sheet),
    "two digits": ("other", several(2), sheet),
    "three digits": ("other", several(3), sheet),
    "nothing": ("other", white, sheet),
}
COLUMNS = ("right", "right, flagged", "flagged", "refused", "unsure", "silent")
NO_ANSWER = ("two digits", "three digits", "nothing")  # conditions where none is correct


def photograph(name: str, digits: np.ndarray, seed: int) -> bytes:
    """Return the file of a condition; digits uint8 (n, 28, 28), three where it shows several."""
    _, paint, base = CONDITIONS[name]
    scene = base(np.random.default_rng((zlib.crc32(name.encode()), seed)), digits)
    paint(scene)
    return scene.photograph()


def outcome(service: Any, body: bytes, label: str | None, script: str | None) -> str:
    """Return how a photograph was answered; `label` is None where no answer is correct."""
    try:
        images, _, warnings, _ = decode(body, service.size, service.reader)
    except RefusedError:
        return "refused"
    [found] = service.predict(images, script)["predictions"]
    flagged = bool(warnings) or found["ood_score"] > OOD_LIMIT
    if found["digit"] == label:
        return "right, flagged" if flagged else "right"
    if flagged:
        return "flagged"
    return "silent" if found["confidence"] >= SURE else "unsure"


def contact_sheet(names: list[str], digits: np.ndarray) -> Image.Image:
    """Return a picture with five photographs of each condition in a row."""
    side, across = 160, 5
    whole = Image.new("L", (side * across, side * len(names)))
    for row, name in enumerate(names):
        for column in range(across):
            body = photograph(name, digits[column:], column)
            with Image.open(io.BytesIO(body)) as image:
                small = image.copy()
            small.thumbnail((side - 4, side - 4))
            whole.paste(small, (column * side, row * side))
    return whole


def measured(
    service: Any, part: Digits, names: Iterable[str], count: int, script: str | None
) -> dict[str, Counter[str]]:
    """Return how many photographs of each condition had which outcome, in all `count`."""
    found: dict[str, Counter[str]] = {}
    for name in names:
        counts = found[name] = Counter[str]()
        for number in tqdm(range(count // share_of(name)), name, leave=False, disable=None):
            index = np.arange(number, number + 3) % len(part)
            body = photograph(name, part.images[index], number)
            label = None if name in NO_ANSWER else service.classes[part.labels[index[0]]]
            counts[outcome(service, body, label, script)] += 1
        counts["right"] += counts["right, flagged"]
    return found


def share_of(name: str) -> int:
    """Return how many times fewer photographs are taken of a condition."""
    return SLOWER if name == "12 megapixels" else 1


def timed(service: Any, milliseconds: list[float]) -> None:
    """Append to the list the processor time of finding the ink of each picture, once decoded."""
    find_ink, normalise = service.reader

    def find(*arguments: Any) -> Any:
        begin = time.process_time()
        found = find_ink(*arguments)
        milliseconds.append(1000 * (time.process_time() - begin))
        return found

    service.reader = Reader(find, normalise)


def conditions(service: Any, part: Digits, given: argparse.Namespace) -> None:
    """Measure each condition."""
    times: list[float] = []
    timed(service, times)
    outcomes = measured(service, part, given.only, given.count, given.script)
    rows = [["percent", *COLUMNS]]
    goals, silent = [], 0.0
    for name, counts in outcomes.items():
        shares = [100 * counts[column] / (given.count // share_of(name)) for column in COLUMNS]
        rows.append([name, *(f"{share:.1f}" for share in shares)])
        silent = max(silent, shares[-1])
        if CONDITIONS[name][0] == "goal":
            goals.append(Goal(f"right, {name}", shares[0], "at least", 95))
    goals.append(Goal("silent, most of a condition", silent, "at most", 1))
    if "12 megapixels" in outcomes:
        times.clear()
        measured(service, part, ["12 megapixels"], 10 * SLOWER, given.script)
        goals.append(
            Goal("12 megapixels, ms beyond decoding", statistics.median(times), "at most", 30)
        )
    what = f"{given.count} photographs of each condition, {given.split} digits"
    finish("photos", rows, goals, what, given.record)


def scripts(service: Any, parts: list[Digits], given: argparse.Namespace) -> None:
    """Compare the points that each script loses on the papers of the goals with MNIST's."""
    papers = [name for name, (kind, *_) in CONDITIONS.items() if kind == "goal"]
    rows, goals, most = [["percent right", "plain paper", "other papers", "lost"]], [], 0.0
    for part in parts:
        counts = measured(service, part, ["plain paper", *papers], given.count, part.script)
        plain, *others = (100 * found["right"] / given.count for found in counts.values())
        lost = round(plain - statistics.mean(others), 2)
        rows.append([part.name, *(f"{value:.1f}" for value in (plain, plain - lost, lost))])
        if part.script == MNIST:
            most = lost
        else:
            goals.append(Goal(f"points lost, {part.name}", lost, "at most", most))
    what = f"{given.count} photographs of each condition, {given.split} digits, script given"
    finish("photos_scripts", rows, goals, what, given.record)


def main(arguments: list[str]) -> None:
    """Measure the conditions or the scripts; with --sheet, write some photographs instead."""
    parser = argparse.ArgumentParser(prog="make bench-photos", description=__doc__)
    parser.add_argument("--test", action="store_true", help="the test split, once at the end")
    parser.add_argument("--count", type=int, default=200, help="photographs of each condition")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--sheet", type=Path, help="the picture to write")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="another model's folder")
    parser.add_argument("--digits", type=Path, help="the split in another file")
    parser.add_argument("--script", help="that the digits are written in")
    parser.add_argument("--scripts", action="store_true", help="compare all scripts of the split")
    parser.add_argument("--record", action="store_true", help="write the table into the page")
    given = parser.parse_args(arguments)
    given.split = "test" if given.test else "validation"
    task = params.task(params.load())
    split = given.digits or (TEST if given.test else VALIDATION)
    parts = read_split(split, len(task.classes), task.image_size)
    found = [part for part in parts if given.script in (None, part.script)]
    if not found:
        known = ", ".join(part.script for part in parts)
        raise DigitsError(f"--script {given.script}: expected a script of the split: {known}")
    if given.sheet:
        contact_sheet(given.only, found[0].images).save(given.sheet)
        return
    service = Service(CODE, given.package).service
    if given.scripts:
        scripts(service, parts, given)
    else:
        conditions(service, found[0], given)
