"""What a client sends, decoded: JSON, PNG or JPEG to images as the model was trained on.

It imports nothing of this project, since it is uploaded with score.py alone; the caller gives
`normalise`, which travels with the model. Simulation decodes by the same function.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pydantic_core import from_json

BODY_BYTES = 10_000_000  # the most that a managed online endpoint lets through
IMAGES = 1000  # in one request: a tenth of a second's work
SIDE_PIXELS = 5000  # of a PNG or JPEG, either side: more than most telephones' photographs
ENOUGH_PIXELS = 140  # a side, 5 x 28: larger images are averaged first, which also takes noise off
JPEG_NOISE = 8  # of 255: what its compression leaves around a stroke
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
KEYS = ("data", "script")


class RefusedError(Exception):
    """A request that no answer fits: an HTTP status from 400 to 499, and one sentence why."""

    def __init__(self, status: int, sentence: str) -> None:
        """Keep the status beside the sentence."""
        super().__init__(sentence)
        self.status = status


def decode(
    body: bytes, size: int, normalise: Callable[[np.ndarray, int], np.ndarray]
) -> tuple[np.ndarray, str | None]:
    """Return images uint8 (n, size, size), white on black, and the script told, if any.

    A PNG or JPEG is one image of any size, dark on light or light on dark; it is brought to the
    normal form of the data. JSON is `{"data": [image, ...], "script": name}` with images in that
    form already: size * size numbers from 0 to 255, flat or in rows, rounded to whole ones.

    Raises RefusedError for anything else.
    """
    for signature, kind in SIGNATURES.items():
        if body.startswith(signature):
            return normalise(_ink(body, kind)[np.newaxis], size), None
    if not body:
        raise RefusedError(400, "the body is empty; send JSON, a PNG or a JPEG")
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is no PNG, no JPEG and no JSON: {error}") from None
    if not isinstance(content, dict) or "data" not in content:
        raise RefusedError(400, 'JSON must be an object with the key "data": a list of images')
    if unknown := [key for key in content if key not in KEYS]:
        raise RefusedError(400, f"unknown key {unknown[0][:40]!r}; known are data and script")
    script = content.get("script")
    if not (script is None or isinstance(script, str)):
        raise RefusedError(400, "script must be text or be left out")
    return _images(content["data"], size, b"true" not in body and b"false" not in body), script


def _images(data: Any, size: int, plain: bool) -> np.ndarray:
    """Return uint8 (n, size, size) from lists of numbers; `plain` promises that none is a bool."""
    if not isinstance(data, list) or not data:
        raise RefusedError(400, "data must be a list of at least one image")
    if len(data) > IMAGES:
        raise RefusedError(413, f"data has {len(data):,} images; send at most {IMAGES:,} at a time")
    if plain and all(type(image) is list for image in data):  # bytes(10**10) is 10 GB of zeros
        try:  # whole numbers, five times as fast as NumPy, which looks at each one's type
            flat = bytes if type(data[0][0]) is int else _join
            rows = b"".join(map(flat, data))
            sizes = {len(image) * (1 if flat is bytes else size) for image in data}
            if sizes == {size * size} and len(rows) == len(data) * size * size:
                return np.frombuffer(rows, np.uint8).reshape(-1, size, size)
        except (ValueError, TypeError, IndexError):
            pass  # something else than whole numbers from 0 to 255: look again, slowly
    return np.stack([_pixels(image, number, size) for number, image in enumerate(data)])


def _join(rows: list[list[int]]) -> bytes:
    """Return the bytes of one image in rows of equal length, or raise ValueError."""
    lines = [bytes(row) for row in rows if type(row) is list]
    if {len(line) for line in lines} != {len(rows)}:
        raise ValueError("rows differ")
    return b"".join(lines)


def _pixels(image: Any, number: int, size: int) -> np.ndarray:
    """Return one image uint8 (size, size); raise RefusedError that names it by its number."""
    wanted = f"{size * size} numbers or {size} rows of {size}"
    count = 0
    for row in image if isinstance(image, list) else ():
        cells = row if isinstance(row, list) else (row,)
        count += len(cells) or 1
        if count > size * size:
            raise RefusedError(400, f"image {number} has too many numbers; send {wanted}")
        for cell in cells:  # before NumPy: it would give each one the width of the longest text
            if type(cell) not in (int, float):
                odd = "true or false" if type(cell) is bool else "something else than numbers"
                raise RefusedError(400, f"image {number} holds {odd}; send {wanted}")
    try:
        values = np.array(image)
    except ValueError:  # rows of different lengths
        raise RefusedError(400, f"image {number} has uneven rows; send {wanted}") from None
    if values.shape not in ((size * size,), (size, size)):
        raise RefusedError(400, f"image {number} has shape {values.shape}; send {wanted}")
    if values.dtype.kind not in "iuf":
        raise RefusedError(400, f"image {number} holds something else than numbers; send {wanted}")
    if not ((values >= 0) & (values <= 255)).all():
        raise RefusedError(400, f"image {number} has a value that is not from 0 to 255")
    return np.rint(values).astype(np.uint8).reshape(size, size)


def _ink(body: bytes, kind: str) -> np.ndarray:
    """Return the ink of one PNG or JPEG, uint8 (height, width): white on black.

    The paper is the median of the image's edge; what is furthest from it, lighter or darker, is
    ink. What is as near to it as twice the edge's noise is paper too: almost nothing in a clean
    image. Where ink touches the edge, the noise is that of the half that is nearest to the paper:
    in noise of Gauss nine tenths lie within 2.4 times the median distance, so 3 times is enough.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            image: Image.Image = Image.open(io.BytesIO(body), formats=[kind])
            if max(image.size) > SIDE_PIXELS:
                width, height = image.size
                raise RefusedError(
                    413,
                    f"the image has {width:,} x {height:,} pixels; send at most {SIDE_PIXELS:,} "
                    "a side",
                )
            grey = _grey(ImageOps.exif_transpose(image)).astype(np.int16)
    except RefusedError:
        raise
    except Image.DecompressionBombError:
        raise RefusedError(413, f"the image is too large: {SIDE_PIXELS:,} pixels a side") from None
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise RefusedError(400, f"the {kind} cannot be read ({type(error).__name__})") from None
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = int(np.median(edge))
    half, most = np.quantile(np.abs(edge - paper), (0.5, 0.9))
    noise = max(int(min(most, 1 + 3 * half)), JPEG_NOISE if kind == "JPEG" else 0)
    lighter = grey.max() - paper >= paper - grey.min()
    distance = grey - paper if lighter else paper - grey
    ink = np.where(distance > 2 * noise, distance, 0).astype(np.uint8)
    if not ink.any():
        raise RefusedError(400, "the image is blank: nothing is darker or lighter than its edge")
    return ink


def _grey(image: Image.Image) -> np.ndarray:
    """Return uint8 (height, width) of an image of any mode; transparent pixels are paper."""
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGBA" if image.has_transparency_data else "L")
    image = image.reduce(max(1, max(image.size) // ENOUGH_PIXELS))
    if image.mode == "L":
        return np.asarray(image)
    for paper in ("white", "black"):  # black where all ink is white
        under = Image.new("RGBA", image.size, paper)
        grey = np.asarray(Image.alpha_composite(under, image).convert("L"))
        if grey.min() < grey.max():
            break
    return grey
