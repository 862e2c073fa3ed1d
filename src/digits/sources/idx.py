"""IDX files, the format of the original MNIST: http://yann.lecun.com/exdb/mnist/."""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DigitsError
from core.tables import PIXELS, Table, check_regular


def read_pair(path: Path) -> Table:
    """Return the images and labels of a part, named by its prefix or by its file of images.

    Some copies are compressed, and some have a dot before idx. Labels may be absent.
    """
    prefix = re.split(r"-images[-.]idx3", path.name)[0]
    images = read_idx(path if path.exists() else _find(path.parent, f"{prefix}-images-idx3"), 3)
    file = _find(path.parent, f"{prefix}-labels-idx1")
    labels = read_idx(file, dimensions=1).astype(str) if file.exists() else None
    if labels is not None and len(images) != len(labels):
        raise DigitsError(f"{file}: {len(images):,} images but {len(labels):,} labels.")
    return Table(images, labels)


def _find(folder: Path, name: str) -> Path:
    """Return the path of the first variant of a file's name that exists."""
    names = [f"{variant}-ubyte" for variant in (name, name.replace("-idx", ".idx"))]
    found = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    return next((path for path in found if path.exists()), found[0])


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an IDX file, which may be compressed with gzip.

    Raises DigitsError for a wrong magic number, type, number of dimensions or length.
    """
    check_regular(path)
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            return _read(file, path, dimensions)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DigitsError(f"{path}: is corrupted ({error}); restore the original") from None


def _read(file: Any, path: Path, dimensions: int) -> np.ndarray:
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    header = file.read(4 + 4 * dimensions)
    if header[:4] != magic:
        raise DigitsError(
            f"{path}: begins with {header[:4].hex() or 'nothing'} instead of {magic.hex()}, so it "
            f"is not an IDX file of bytes in {dimensions} dimensions; restore the original file"
        )
    if len(header) < 4 + 4 * dimensions:
        raise DigitsError(f"{path}: is truncated in its header; restore the original file")
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
