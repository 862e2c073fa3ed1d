"""IDX files, the format of the original MNIST: http://yann.lecun.com/exdb/mnist/."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DigitsError
from core.tables import PIXELS, check_regular


def find_idx(folder: Path, part: str, kind: str) -> Path:
    """Return the file of a part's images (idx3) or labels (idx1) as it lies on disk.

    Some copies are compressed, and some have a dot before idx.
    """
    name = f"{part}-{kind}-ubyte"
    for variant in (name, name.replace("-idx", ".idx")):
        for ending in ("", ".gz"):
            if (path := folder / f"{variant}{ending}").exists():
                return path
    return folder / name


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an IDX file, which may be compressed with gzip.

    Raises DigitsError for another magic number, type or number of dimensions, or another length.
    """
    check_regular(path)
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            return _read(file, path, dimensions)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DigitsError(f"{path}: is damaged ({error}); restore the original file") from None


def _read(file: Any, path: Path, dimensions: int) -> np.ndarray:
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    header = file.read(4 + 4 * dimensions)
    if header[:4] != magic:
        raise DigitsError(
            f"{path}: begins with {header[:4].hex() or 'nothing'} instead of {magic.hex()}, so it "
            f"is not an IDX file of bytes in {dimensions} dimensions; restore the original file"
        )
    if len(header) < 4 + 4 * dimensions:
        raise DigitsError(f"{path}: is cut short in its header; restore the original file")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    expected = math.prod(shape)
    data = file.read(min(expected, PIXELS) + 1)
    if len(data) != expected:
        more = "more" if len(data) > expected else f"{len(data) + len(header):,}"
        raise DigitsError(
            f"{path}: has {more} bytes, its header says {expected + len(header):,}; "
            "restore the original file"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
