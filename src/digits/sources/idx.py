"""IDX files, the format of the original MNIST: http://yann.lecun.com/exdb/mnist/."""

import struct
from pathlib import Path

import numpy as np

from core.errors import DigitsError


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an IDX file.

    Raises DigitsError for another magic number, type or number of dimensions, or another length.
    """
    data = path.read_bytes()
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    if data[:4] != magic:
        raise DigitsError(
            f"{path}: begins with {data[:4].hex() or 'nothing'} instead of {magic.hex()}, so it is "
            f"not an IDX file of bytes in {dimensions} dimensions; restore the original file"
        )
    if len(data) < header:
        raise DigitsError(f"{path}: is cut short in its header; restore the original file")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    expected = header + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DigitsError(
            f"{path}: has {len(data):,} bytes, its header says {expected:,}; "
            "restore the original file"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
