"""IDX files, the format of the original MNIST: http://yann.lecun.com/exdb/mnist/."""

import math
import re
import struct
from pathlib import Path

import numpy as np

from core.errors import DigitsError
from core.tables import Table, opened
from digits.sources.archives import check_size


def read_pair(path: Path) -> Table:
    """Return the images and labels of a part, named by its prefix or by its file of images.

    Some copies are compressed, and some have a dot before idx. Labels may be absent.
    """
    prefix = re.split(r"-images[-.]idx3", path.name)[0]
    images = read_idx(path if path.exists() else _find(path.parent, f"{prefix}-images-idx3"), 3)
    file = _find(path.parent, f"{prefix}-labels-idx1")
    labels = read_idx(file, dimensions=1) if file.exists() else None
    if labels is not None and len(images) != len(labels):
        raise DigitsError(f"{file}: {len(images):,} images but {len(labels):,} labels.")
    return Table(images, None if labels is None else labels.astype(str))


def _find(folder: Path, name: str) -> Path:
    """Return the path of the first variant of a file's name that exists."""
    names = [f"{variant}-ubyte" for variant in (name, name.replace("-idx", ".idx"))]
    found = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    return next((path for path in found if path.exists()), found[0])


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an IDX file, which may be compressed with gzip.

    Raises DigitsError for a wrong magic number, type, number of dimensions or length.
    """
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    with opened(path) as file:
        header = file.read(4 + 4 * dimensions)
        if header[:4] != magic:
            raise DigitsError(
                f"{path}: begins with {header[:4].hex() or 'nothing'} instead of {magic.hex()}, so "
                f"it is not an IDX file of bytes in {dimensions} dimensions; restore the original"
            )
        if len(header) < 4 + 4 * dimensions:
            raise DigitsError(f"{path}: is truncated in its header; restore the original file")
        shape = struct.unpack(f">{dimensions}I", header[4:])
        expected = math.prod(shape)
        check_size(path, shape[0], expected)
        data = file.read(expected + 1)
    if len(data) != expected:
        more = "more" if len(data) > expected else f"{len(data) + len(header):,}"
        raise DigitsError(
            f"{path}: has {more} bytes, its header says {expected + len(header):,}; "
            "restore the original file"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
