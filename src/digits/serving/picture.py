"""Read a picture file: PNG, JPEG, WebP, GIF or BMP, from a request or a data set.

It imports nothing from this project, since it is uploaded with score.py. Limits on time and memory
(bytes, pixels, scans, blocks, frames) are checked before Pillow decodes; it gets no metadata.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIDE_PIXELS = 5000  # maximum width and height: most phone photographs are smaller
SCANS = 16  # of a JPEG of maximum size, more of a smaller one; programs write at most 13
BLOCKS = {"PNG": 5000, "JPEG": 1000}  # of a picture, of a JPEG before its pixels
GIF_BYTES = 2_000_000  # a third of a second of work, if its blocks have one byte each
CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND")  # used of a PNG
ENOUGH_PIXELS = 600  # of the longer side: larger pictures are averaged to about this size
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP"}
# The first turn in Exif (2.32, 4.6.2: tag, kind, count, value), which Pillow would load whole.
ORIENTATION = re.compile(
    rb"\x01\x12\0\x03\0{3}\x01\0([\x02-\x08])|\x12\x01\x03\0\x01\0{3}([\x02-\x08])\0"
)
TURNS = (0, 3, 1, 5, 4, 6, 2)  # for its values from 2 to 8: Pillow's numbers of Image.Transpose
OTHERS = {  # recognised by their first bytes: the refusal names them
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"<svg": "an SVG",
    b"PK\3\4": "a ZIP archive",
    b"PAR1": "Parquet",
    b"\x93NUMPY": "a NumPy file",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}
PICTURES = "send a PNG, JPEG, WebP, GIF or BMP"


class RefusedError(Exception):
    """A rejected request: an HTTP status from 400 to 499, and one sentence with the reason."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def picture_kind(data: bytes) -> str | None:
    """Return the format of a picture by its first bytes, None if it is not a picture.

    Raises RefusedError for known formats that are not supported.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":  # the container of HEIC, AVIF and video
        raise RefusedError(422, f"the file is HEIC, AVIF or a video; {PICTURES}")
    for signature, name in OTHERS.items():
        if data.startswith(signature):
            raise RefusedError(422, f"the file is {name}; {PICTURES}")
    return next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)


def read_picture(
    data: bytes, find_ink: Callable, white_ink: bool | None = None, side: int = SIDE_PIXELS
) -> Any:
    """Return the ink of a picture file, as `find_ink` of photograph.py does."""
    kind = picture_kind(data)
    if kind is None:
        raise RefusedError(400, f"the file is not a picture; {PICTURES}")
    try:
        return find_ink(_pixels_of(data, kind, side), kind == "JPEG", white_ink)
    except ValueError as error:
        raise RefusedError(400, str(error)) from None


def _pixels_of(data: bytes, kind: str, side: int) -> np.ndarray:
    """Return a picture in grey, uint8 (height, width), each side below 2 * ENOUGH_PIXELS."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual metadata
            data, exif = _bare(data, kind)
            image: Image.Image = Image.open(io.BytesIO(data), formats=[kind])
            width, height = image.size
            if max(width, height) > side:
                found = f"the image has {width:,} x {height:,} pixels"
                raise RefusedError(413, f"{found}; send at most {side:,} a side")
            if kind == "JPEG" and data.count(b"\xff\xda") * width * height > SCANS * side**2:
                raise RefusedError(413, "the JPEG has too many scans; save it as baseline JPEG")
            if getattr(image, "is_animated", False):
                raise RefusedError(422, f"the {kind} is animated; send a single picture")
            if turn := ORIENTATION.search(exif or image.info.get("exif", b"")):
                image = image.transpose(Image.Transpose(TURNS[(turn[1] or turn[2])[0] - 2]))
            return _grey(image)
    except RefusedError:
        raise
    except Image.DecompressionBombError:
        raise RefusedError(413, f"the picture must have at most {side:,} pixels a side") from None
    except Exception as error:  # Pillow raises many types for a broken file
        raise RefusedError(400, f"the {kind} cannot be read ({type(error).__name__})") from None


def _bare(data: bytes, kind: str) -> tuple[bytes, bytes]:
    """Return a picture without metadata, and its Exif; raise RefusedError for too many blocks."""
    if kind == "GIF" and len(data) > GIF_BYTES:
        raise RefusedError(413, f"the GIF has more than {GIF_BYTES:,} bytes; save it as PNG")
    if kind == "BMP" and data[14:15] != b"\x0c" and data[30:31] in (b"\1", b"\2"):
        raise RefusedError(422, "the BMP is compressed (RLE); save it as PNG")
    if kind not in BLOCKS:
        return data, b""
    place = 8 if kind == "PNG" else 2
    parts, exif = [data[:place]], b""
    for _ in range(BLOCKS[kind]):
        if place + 8 > len(data):
            return b"".join(parts), exif
        if kind == "PNG":
            length, name = struct.unpack_from(">I4s", data, place)
            end = place + length + 12
            used, is_exif = name in CHUNKS, name == b"eXIf"
        else:
            marker, length = struct.unpack_from(">HH", data, place)
            if marker == 0xFFDA:  # the pixels begin
                return b"".join([*parts, data[place:]]), exif
            if marker < 0xFF00:  # Pillow would search the whole file for the next block
                raise RefusedError(400, "the JPEG is damaged between its blocks; save it again")
            alone = marker in (0xFF00, 0xFF01) or 0xFFD0 <= marker <= 0xFFD9  # without a length
            end = place + (1 if marker == 0xFFFF else 2 if alone else length + 2)  # FFFF: a filler
            used = not (0xFFE1 <= marker <= 0xFFED or marker in (0xFFEF, 0xFFFE))
            is_exif = marker == 0xFFE1 and data.startswith(b"Exif\0\0", place + 4)
        if used:
            parts.append(data[place:end])
        elif is_exif and not exif:
            exif = data[place:end]
        place = end
    raise RefusedError(413, f"the {kind} has more than {BLOCKS[kind]:,} blocks; save it again")


def _grey(image: Image.Image) -> np.ndarray:
    """Return uint8 (height, width) of an image of any mode; transparent pixels are paper."""
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGBA" if image.has_transparency_data else "L")
    image = image.reduce(max(1, max(image.size) // ENOUGH_PIXELS))
    if image.mode == "L":
        return np.asarray(image)
    for paper in ("white", "black"):  # black if all ink is white
        under = Image.new("RGBA", image.size, paper)
        grey = np.asarray(Image.alpha_composite(under, image).convert("L"))
        if grey.min() < grey.max():
            break
    return grey
