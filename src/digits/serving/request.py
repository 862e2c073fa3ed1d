"""Decode requests: JSON or a picture to images in the form of the training data.

It imports picture.py alone from this project, since both are uploaded with score.py. Limits on time
and memory (bytes, lists, headers, pictures) are checked before JSON or a form is decoded.
"""

import base64
import binascii
import io
import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import FormDataParser

if __package__:
    from digits.serving.picture import SIDE_PIXELS, RefusedError, picture_kind, read_picture
else:  # where the model is served, the files lie beside each other
    from picture import SIDE_PIXELS, RefusedError, picture_kind, read_picture  # type: ignore

BODY_BYTES = 10_000_000  # limit of a managed online endpoint
IMAGES = 1000  # per request: a tenth of a second of work
LARGE = 12  # pictures above SMALL in JSON, each of which may take a fifth of a second
SMALL = 128  # pixels a side: a millisecond of work, since photograph.py expects a cropped digit
FORM_PARTS, HEADER_BYTES, END = 20, 8000, rb"\r\n\r\n|\r\r|\n\n"  # of a part's header
LISTS = 100_000  # in a JSON body, with objects: ten megabytes of empty ones take seconds
# Keys of the images in JSON: of this project, MLflow, TensorFlow Serving and Azure ML.
KEYS = ("data", "inputs", "instances", "input_data", "dataframe_split", "dataframe_records")
# First bytes of pictures in base64, alone or in a data URI; no JSON begins so.
BASE64 = (b"data:image/", b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"Qk", b"UklGR")


class Decoded(NamedTuple):
    """A request."""

    images: np.ndarray  # uint8 (n, size, size), white on black
    script: str | None  # of the digits, if the request names it
    warnings: list[str]  # what was assumed about the images
    steps: dict[str, np.ndarray]  # of reading a single picture: uint8 (height, width)


class Reader(NamedTuple):
    """The functions that travel with the model."""

    find_ink: Callable[..., Any]  # of photograph.py
    normalise: Callable[[np.ndarray, int], np.ndarray]


def decode(body: bytes, size: int, reader: Reader) -> Decoded:
    """Return the images of a request.

    A picture (PNG, JPEG, WebP, GIF, BMP) is one image of any size, dark on light or light on dark;
    it is converted to the normal form of the data. It is the body itself, a file in a form
    (multipart), or base64 text. JSON is `{"data": [image, ...], "script": name}`: pictures in
    base64, or images that are already in the normal form: size * size numbers from 0 to 255, flat
    or in rows, rounded to integers. Numbers from 0 to 1 and dark ink on light paper are converted,
    with a warning. gzip is decompressed.

    Raises RefusedError for anything else.
    """
    if body.startswith(b"\x1f\x8b"):
        body = _unpacked(body)
    if body.startswith(b"--") and b"content-disposition" in body[:2000].lower():
        body = _uploaded(body)
    if body.startswith(BASE64):
        body = _from_base64(body.decode("latin-1"), "the body")
    if picture_kind(body):
        ink = read_picture(body, reader.find_ink)
        images = reader.normalise(ink.pixels[np.newaxis], size)
        return Decoded(images, None, ink.warnings, ink.steps)
    if not body:
        raise RefusedError(400, "the body is empty; send JSON, a PNG or a JPEG")
    if body.count(b"[") + body.count(b"{") > LISTS:
        raise RefusedError(413, f"the JSON has more than {LISTS:,} lists; send each image flat")
    try:
        content = from_json(body.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        status = 422 if "recursion" in str(error) else 400  # pydantic's limit of nesting
        reason = f"expected JSON or a picture, found neither: {error}"
        raise RefusedError(status, f'{reason}; send a picture, or {{"data": [image]}}') from None
    data, script = _fields(content)
    plain = b"true" not in body and b"false" not in body
    images, notes = _images(_listed(data, size), size, plain, reader)
    return Decoded(images, script, notes, {})


def _unpacked(body: bytes) -> bytes:
    """Decompress gzip, one level, up to BODY_BYTES."""
    unpacker = zlib.decompressobj(31)
    try:
        content = unpacker.decompress(body, BODY_BYTES)
    except zlib.error as error:
        raise RefusedError(400, f"the gzip cannot be read ({error})") from None
    if unpacker.unconsumed_tail:
        raise RefusedError(413, f"the body has more than {BODY_BYTES:,} bytes once unpacked")
    if not unpacker.eof:
        raise RefusedError(400, "the gzip is truncated; send all of it")
    return content


def _uploaded(body: bytes) -> bytes:
    """Return the only file of a form, or its only field."""
    boundary = body[2:200].partition(b"\n")[0].strip()
    for part in body.split(b"--" + boundary, FORM_PARTS + 1):
        if len(part) > HEADER_BYTES and not re.search(END, part[:HEADER_BYTES]):
            reason = f"the form has a header of more than {HEADER_BYTES:,} bytes"
            raise RefusedError(413, f"{reason}; send the file itself: --data-binary @FILE")
    parser = FormDataParser(
        lambda *_, **__: io.BytesIO(), BODY_BYTES, silent=False, max_form_parts=FORM_PARTS
    )
    options = {"boundary": boundary.decode("latin-1")}
    try:
        _, form, files = parser.parse(io.BytesIO(body), "multipart/form-data", len(body), options)
    except (ValueError, HTTPException) as error:
        reason = f"the form cannot be read ({type(error).__name__})"
        raise RefusedError(400, f"{reason}; send the file itself: --data-binary @FILE") from None
    found = [file.read() for file in files.values()]
    found = found or [str(value).encode() for value in form.values()]
    if len(found) != 1:
        raise RefusedError(400, f"the form has {len(found)} files; send one: --data-binary @FILE")
    return found[0]


def _from_base64(text: str, what: str) -> bytes:
    """Return the picture file in base64 text or in a data URI."""
    coded = text.partition(",")[2] if text.startswith("data:") else text
    coded = "".join(coded.split()).translate({ord("-"): "+", ord("_"): "/"})  # safe in a URL
    try:
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
        known = picture_kind(data)
    except (binascii.Error, ValueError):
        known = None
    if known is None:
        raise RefusedError(400, f"{what} is text but not a base64 picture; send numbers or a file")
    return data


def _fields(content: Any) -> tuple[Any, str | None]:
    """Return the undecoded images of a JSON body, and its script."""
    if not isinstance(content, dict) or not (named := [key for key in KEYS if key in content]):
        came = f"{', '.join(content)[:60]!r}" if isinstance(content, dict) else "no object"
        raise RefusedError(
            400, f'expected a JSON object with the key "data": a list of images; found {came}'
        )
    if unknown := [key for key in content if key not in (named[0], "script")]:
        raise RefusedError(400, f"unknown key {unknown[0][:40]!r}; known are data and script")
    script, data = content.get("script"), content[named[0]]
    if not (script is None or isinstance(script, str)):
        raise RefusedError(400, "script must be text or omitted")
    if isinstance(data, dict):  # a table with the names of its columns, or one named input
        data = _in_order(data["data"], data.get("columns")) if "data" in data else _bare(data)
    if named[0] == "dataframe_records" and isinstance(data, list):
        data = [
            _in_order([list(row.values())], list(row))[0] if isinstance(row, dict) else row
            for row in data
        ]
    return data, script


def _in_order(rows: Any, names: Any) -> Any:
    """Return rows of a table with its columns in the order of the numbers in all their names."""
    if not isinstance(names, list) or not isinstance(rows, list):
        return rows
    numbers = [[int(n[:9]) for n in re.findall(r"\d+", str(name))] for name in names]
    order = sorted(range(len(names)), key=numbers.__getitem__)
    if not all(numbers) or order == list(range(len(names))):
        return rows
    return [
        [row[n] for n in order] if isinstance(row, list) and len(row) == len(names) else row
        for row in rows
    ]


def _listed(data: Any, size: int) -> list[Any]:
    """Return the images as a list; a single image is wrapped in one."""
    if isinstance(data, str):
        return [data]
    if not isinstance(data, list) or not data:
        raise RefusedError(400, "data must be a list of at least one image")
    if len(data) == size * size and isinstance(data[0], int | float):
        return [data]
    square = len(data) == size and isinstance(data[0], list) and len(data[0]) == size
    if square and not isinstance(_bare(data[0][0]), list):  # a row of an image would be a list
        return [data]
    if len(data) > IMAGES:
        raise RefusedError(413, f"data has {len(data):,} images; send at most {IMAGES:,} at a time")
    return data


def _images(
    data: list[Any], size: int, plain: bool, reader: Reader
) -> tuple[np.ndarray, list[str]]:
    """Return uint8 (n, size, size) and warnings; `plain` means that no number is a bool."""
    images = _whole_numbers(data, size) if plain else None
    if images is not None:
        return _in_normal_form(images, np.arange(len(images)))
    data = [_bare(image) for image in data]
    texts = [number for number, image in enumerate(data) if isinstance(image, str)]
    side = SMALL if len(texts) > LARGE else int(SIDE_PIXELS / max(len(texts), 1) ** 0.5)
    images, notes = np.empty((len(data), size, size)), []
    for number, image in enumerate(data):
        if not isinstance(image, str):
            images[number] = _pixels(image, number, size)
            continue
        picture = _from_base64(image, f"image {number}")
        try:
            ink = read_picture(picture, reader.find_ink, side=side)
        except RefusedError as error:
            raise RefusedError(error.status, f"image {number}: {error}") from None
        images[number] = reader.normalise(ink.pixels[np.newaxis], size)[0]
        notes += [f"image {number}: {note}" for note in ink.warnings]
    images, changed = _in_normal_form(images, np.setdiff1d(np.arange(len(data)), texts))
    return images, notes + changed


def _bare(image: Any) -> Any:
    """Return what is in lists and objects of one element: a table's cell, {"b64": ...}."""
    while isinstance(image, list | dict) and len(image) == 1:
        [image] = image.values() if isinstance(image, dict) else image
    return image


def _in_normal_form(images: np.ndarray, sent: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return images (n, size, size) as uint8, white on black, and warnings about changes.

    `sent` are the indices of images sent as numbers. Raises RefusedError for a blank image.
    """
    found, notes = images[sent], []
    most = found.max(axis=(1, 2))
    if (unit := (most > 0) & (most <= 1)).any():
        found = np.where(unit[:, None, None], found * 255.0, found)
        notes.append("the values are from 0 to 1 and were multiplied by 255")
    found = np.rint(found).astype(np.uint8) if found.dtype != np.uint8 else found
    edges = np.concatenate([found[:, 0], found[:, -1], found[:, :, 0], found[:, :, -1]], axis=1)
    if (dark := (edges > 127).mean(axis=1) > 0.75).any():
        found = np.where(dark[:, None, None], 255 - found, found)
        few = ", ".join(map(str, sent[dark][:5])) + (", ..." if dark.sum() > 5 else "")
        notes.append(f"dark ink on light paper was inverted in image {few}")
    if len(blank := sent[found.max(axis=(1, 2)) == found.min(axis=(1, 2))]):
        raise RefusedError(400, f"image {blank[0]} is blank: all its numbers are the same")
    if len(sent) == len(images):
        return found, notes
    images = np.rint(images).astype(np.uint8)
    images[sent] = found
    return images, notes


def _whole_numbers(data: list[Any], size: int) -> np.ndarray | None:
    """Return images of whole numbers from 0 to 255, five times as fast as NumPy; None for others.

    NumPy checks the type of each number.
    """
    if all(type(image) is list for image in data):  # bytes(10**10) is 10 GB of zeros
        try:
            flat = bytes if type(data[0][0]) is int else _join
            rows = b"".join(map(flat, data))
            sizes = {len(image) * (1 if flat is bytes else size) for image in data}
            if sizes == {size * size} and len(rows) == len(data) * size * size:
                return np.frombuffer(rows, np.uint8).reshape(-1, size, size)
        except (ValueError, TypeError, IndexError):
            pass
    return None


def _join(rows: list[list[int]]) -> bytes:
    """Return the bytes of one image in rows of equal length, or raise ValueError."""
    lines = [bytes(row) for row in rows if type(row) is list]
    if {len(line) for line in lines} != {len(rows)}:
        raise ValueError("rows differ")
    return b"".join(lines)


def _pixels(image: Any, number: int, size: int) -> np.ndarray:
    """Return one image (size, size) as numbers; raise RefusedError with its index."""
    wanted = f"send {size * size} numbers or {size} rows of {size}"
    rows = image if isinstance(image, list) else [image]
    cells = [one for row in rows for one in (row if isinstance(row, list) else (row,))]
    if max(len(rows), len(cells)) > size * size:
        raise RefusedError(400, f"image {number} has too many numbers; {wanted}")
    cells = [one if type(one) in (int, float) else _bare(one) for one in cells]
    # Before NumPy: it would give each number the width of the longest text.
    if odd := {type(one) for one in cells} - {int, float}:
        what = "true or false" if bool in odd else "values that are not numbers"
        raise RefusedError(400, f"image {number} holds {what}; {wanted}")
    lengths = {len(row) for row in rows if isinstance(row, list)}
    if len(lengths) > 1 or (lengths and len(cells) != len(rows) * max(lengths)):
        raise RefusedError(400, f"image {number} has uneven rows; {wanted}")
    shape = (len(rows), *lengths)
    if shape not in ((size * size,), (size, size)):
        raise RefusedError(400, f"image {number} has shape {shape}; {wanted}")
    if not all(0 <= one <= 255 for one in cells):
        raise RefusedError(400, f"image {number} has a value that is not from 0 to 255")
    return np.array(cells).reshape(size, size)
