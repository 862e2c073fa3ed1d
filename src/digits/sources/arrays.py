"""Images with labels in NumPy's .npz and in Parquet, in their common layouts."""

import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from core.errors import DigitsError
from core.tables import LABEL_CHARACTERS, LABELS, Table, check_regular
from digits.sources.archives import DAMAGES, Pictures, check_size

IMAGES = ("image", "img", "images", "pixels", "picture", "x")  # columns of Parquet
LABEL_NAME = re.compile(r"label|target|class|^y(_|\b)")
LABEL_FILES = (("imgs", "labels"), ("images", "labels"), ("X_", "y_"))  # paired names of files
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")  # first bytes of encoded pictures
ROWS = 200  # of Parquet, read at a time: each may repeat a value that the file holds once
BATCH_BYTES = 500_000_000  # of them, at most
LABEL_BYTES = ROWS * 1000  # of them, at most


def read_npz(path: Path, part: str) -> Table:
    """Return images and labels, from the arrays whose names contain `part` if there are any.

    Labels may be in a second file, as in KMNIST. Raises DigitsError unless there is one array of
    images.
    """
    images, labels = _of_npz(path, part)
    for old, new in LABEL_FILES if labels is None else ():
        beside = path.with_name(path.name.replace(old, new))
        if beside != path and beside.exists():
            _, labels = _of_npz(beside, part)
    if images is None:
        raise DigitsError(f"{path}: holds no images. Expected an array (n, height, width).")
    if labels is not None and len(labels) != len(images):
        raise DigitsError(f"{path}: {len(images):,} images, but {len(labels):,} labels.")
    side = math.isqrt(images[0].size) if len(images) else 0
    if not side or side**2 != images[0].size:
        raise DigitsError(f"{path}: images have shape {images.shape[1:]}. Expected grey squares.")
    images = images.reshape(-1, side, side)
    whole = images.dtype.kind in "ui" and images.min() >= 0 and images.max() <= 255
    if not whole and not ((images >= 0) & (images <= 255)).all():
        raise DigitsError(f"{path}: values are not from 0 to 255, nor from 0 to 1. Scale them.")
    images = images.astype(np.uint8 if whole else np.float32, copy=False)
    return Table(images, None if labels is None else labels.astype(f"U{LABEL_CHARACTERS}"))


def _of_npz(path: Path, part: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the only array of two or more dimensions and the only one-dimensional array."""
    check_regular(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            check_size(path, 0, sum(entry.file_size for entry in archive.zip.filelist))
            names = [name for name in archive.files if part in name.lower()] or archive.files
            found = {name: archive[name] for name in names}
    except (*DAMAGES, AttributeError, TypeError, ValueError) as error:
        if getattr(error, "errno", None):
            raise
        raise DigitsError(f"{path}: is not a readable .npz ({error}). Download it again.") from None
    arrays = {
        name: array
        for name, array in found.items()
        if isinstance(array, np.ndarray) and array.ndim and array.dtype.kind in "biufUS"
    }
    flat = [name for name, array in arrays.items() if array.size == len(array)]
    if len(flat) > 1:  # other values of each image besides its label
        flat = [name for name in flat if LABEL_NAME.search(name.lower())]
    deep = [a for a in arrays.values() if a.size > len(a) and a.dtype.kind in "biuf"]
    if len(deep) > 1 or len(flat) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DigitsError(
            f"{path}: has {shapes}. Expected one array of images and one of labels for {part}, "
            f"such as x_{part} and y_{part}."
        )
    return deep[0] if deep else None, arrays[flat[0]].ravel() if flat else None


def read_parquet(path: Path, image_size: int, ink: str | None) -> Table:
    """Return images and labels of a Parquet file.

    The column of images has encoded pictures as published by Hugging Face (normalised to
    `image_size`), raw bytes, or lists of numbers.

    Raises DigitsError that names column or row.
    """
    check_regular(path)
    try:
        with parquet.ParquetFile(path) as file:
            names = {name.lower(): name for name in file.schema_arrow.names}
            image = next((names[name] for name in IMAGES if name in names), None)
            label = next((names[name] for name in LABELS if name in names), None)
            if image is None:
                raise DigitsError(
                    f"{path}: has the columns {', '.join(names.values())[:200]}. Expected one "
                    "named image; a table with a column for each pixel is read as CSV."
                )
            columns = [image] if label is None else [image, label]
            groups = [file.metadata.row_group(n).to_dict() for n in range(file.num_row_groups)]
            values = sum(column["num_values"] for group in groups for column in group["columns"])
            count = file.metadata.num_rows
            check_size(path, count, max(count * image_size**2, values * 8))
            pictures, arrays, labels, row = Pictures(ink, image_size), [], [], 0
            largest = max(group["total_byte_size"] for group in groups) if groups else 0
            rows = max(1, min(ROWS, BATCH_BYTES // max(1, largest)))
            for batch in file.iter_batches(rows, columns=columns, use_threads=False):
                if label is not None and batch[label].nbytes > LABEL_BYTES:
                    raise DigitsError(
                        f"{path}: column {label} has more than {LABEL_BYTES:,} bytes in "
                        f"{len(batch)} rows. Expected labels."
                    )
                texts = [] if label is None else map(str, batch[label].to_pylist())
                labels += [text[:LABEL_CHARACTERS] for text in texts]
                arrays.append(_of_column(f"{path}: row", row, batch[image], pictures))
                row += len(batch)
                check_size(path, row, sum(array.nbytes for array in arrays))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DigitsError(f"{path}: cannot be read as Parquet ({reason}). Fix it.") from None
    if not row:
        raise DigitsError(f"{path}: holds no image.")
    images = pictures.images(path) if pictures.light else np.concatenate(arrays)
    if len(images) != row:
        raise DigitsError(f"{path}: column {image} mixes pictures and numbers. Split the file.")
    found = None if label is None else np.array(labels)
    return Table(images, found, pictures=bool(pictures.light))


def _of_column(where: str, start: int, column: pa.Array, pictures: Pictures) -> np.ndarray:
    """Return the images (n, side, side) of a column of numbers; add pictures to `pictures`."""
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        place = start + column.is_null().to_pylist().index(True)
        raise DigitsError(f"{where} {place}: the image is missing. Fix or delete this row.")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        if pa.types.is_fixed_size_binary(column.type):
            column = column.cast(pa.binary())
        else:
            values = np.array(column.to_pylist(), np.float32)
            side = math.isqrt(values[0].size)
            if not side:
                raise DigitsError(f"{where} {start}: the image is empty. Fix or delete this row.")
            if not ((values >= 0) & (values <= 255)).all():
                raise DigitsError(f"{where}s from {start}: values are not from 0 to 255.")
            return values.reshape(len(values), side, side)
    found = []
    for number, data in enumerate(column.to_pylist(), start=start):
        side = math.isqrt(len(data))
        if side**2 == len(data) and side >= 8 and not data.startswith(PICTURES):
            found.append(np.frombuffer(data, np.uint8).reshape(side, side))
        else:
            pictures.add(f"{where} {number}", data)
    return np.stack(found) if found else np.empty((0, 0, 0), np.uint8)
