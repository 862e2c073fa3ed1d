"""Real digits on disk, as params.yaml names them: CSV files, IDX files, or an archive of images.

Input: a file or folder that DVC watches. Output: `Digits`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.dataset import Digits, read_csv
from core.errors import DigitsError
from core.params import STRICT
from digits.sources.archives import Archive, read_archive
from digits.sources.idx import read_idx


@dataclass(frozen=True)
class Files:
    """CSV or IDX files in a folder: `train` and `test` are a file's name, or IDX's prefix."""

    __pydantic_config__ = STRICT

    format: Literal["csv", "idx"]
    train: str
    test: str


def read(
    reader: Files | Archive,
    source: Path,
    part: Literal["train", "test"],
    image_size: int,
    class_count: int,
    script: str,
) -> Digits:
    """Return one part of a real data set; images of an archive are normalised as MNIST was.

    Raises DigitsError that names the file and what is wrong in it.
    """
    if isinstance(reader, Archive):
        return read_archive(reader, source, part, image_size, class_count, script)
    name = reader.train if part == "train" else reader.test
    if reader.format == "csv":
        return read_csv(source / name, image_size, class_count, script)
    images = read_idx(source / f"{name}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(source / f"{name}-labels-idx1-ubyte", dimensions=1)
    if not len(images):
        raise DigitsError(f"{source / name}-images-idx3-ubyte: holds no image; restore the file")
    if images.shape[1:] != (image_size, image_size):
        raise DigitsError(
            f"{source / name}-images-idx3-ubyte: images are {images.shape[1]} x {images.shape[2]} "
            f"pixels, params.yaml's image_size says {image_size}; change one of them"
        )
    try:
        return Digits(images, labels, script, False, class_count)
    except DigitsError as error:
        raise DigitsError(
            f"{source / name}-labels-idx1-ubyte: does not fit the images ({error}); restore both "
            "files, or correct classes in params.yaml"
        ) from None
