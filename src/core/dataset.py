"""Labelled images of digits: the class Digits, and its two file formats.

A CSV file, for exchange, has the header `label,pixel0,...` and one row per digit. A split is an
uncompressed .npz file with the digits of several sources, which one stage passes to another.
"""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from core.errors import DigitsError
from core.files import atomic_write
from core.tables import read_table

MNIST = "mnist"  # the script that every model is trained on; all others are called foreign
ROWS_PER_BATCH = 4096
SPLIT_FORMAT = 1  # version of the .npz files


@dataclass(frozen=True)
class Digits:
    """Digits of one source, validated when an instance is created.

    images: uint8 (n, size, size), white ink (255) on black (0)
    labels: uint8 (n,), 0 .. class_count - 1
    script: `mnist` or a key of params.yaml's section `foreign`
    rendered: True if they were drawn from fonts, False if written by hand
    """

    images: np.ndarray
    labels: np.ndarray
    script: str
    rendered: bool
    class_count: int

    def __post_init__(self) -> None:
        """Raise DigitsError unless shapes, types and labels are as documented."""
        images, labels = self.images, self.labels
        square = images.ndim == 3 and images.shape[1] == images.shape[2]
        if not square or images.dtype != np.uint8 or labels.dtype != np.uint8:
            raise DigitsError(
                f"{self.name}: expected images uint8 (n, size, size) and labels uint8, found "
                f"{images.dtype} {images.shape} and {labels.dtype}"
            )
        if labels.shape != images.shape[:1]:
            raise DigitsError(f"{self.name}: {len(images)} images but {labels.size} labels")
        if wrong := np.flatnonzero(labels >= self.class_count).tolist():
            raise DigitsError(
                f"{self.name}: digit {wrong[0]}: expected a label from 0 to "
                f"{self.class_count - 1} (classes in params.yaml), found {labels[wrong[0]]}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def name(self) -> str:
        """The script, followed by `_rendered` for rendered digits."""
        return f"{self.script}_rendered" if self.rendered else self.script

    def __getitem__(self, index: np.ndarray | slice) -> "Digits":
        """Return the digits that a NumPy index or a slice selects."""
        return Digits(
            self.images[index], self.labels[index], self.script, self.rendered, self.class_count
        )


def concatenate(parts: list[Digits]) -> Digits:
    """Join digits of one script; the result is rendered only if all parts are."""
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    rendered = all(part.rendered for part in parts)
    return Digits(images, labels, parts[0].script, rendered, parts[0].class_count)


def split(digits: Digits, count: int, seed: int) -> tuple[Digits, Digits]:
    """Return `count` digits and the rest, each in file order, by a seeded, stratified split.

    The digits are sorted by class, shuffled within each class, and selected at equal distances, so
    that each class contributes its share, rounded.

    Raises DigitsError when there are too few digits.
    """
    if count > len(digits):
        raise DigitsError(
            f"{digits.name}: expected at least {count:,} digits (params.yaml's prepare), found "
            f"{len(digits):,}. Add digits or reduce the number."
        )
    shuffled = np.random.default_rng(seed).permutation(len(digits))
    ordered = shuffled[np.argsort(digits.labels[shuffled], kind="stable")]
    picked = np.zeros(len(digits), bool)
    picked[ordered[(2 * np.arange(count) + 1) * len(digits) // (2 * max(count, 1))]] = True
    return digits[picked], digits[~picked]


def common(train: Digits, test: Digits) -> int:
    """Return how many test images are training images, byte for byte."""
    seen = {image.tobytes() for image in train.images}
    return sum(image.tobytes() in seen for image in test.images)


def write_csv(path: Path, digits: Digits) -> None:
    """Write one row per digit: its label, then its pixels row by row (0 black .. 255 white)."""
    names = ["label", *(f"pixel{index}" for index in range(digits.images[0].size))]
    schema = pa.schema([(name, pa.uint8()) for name in names])
    options = pyarrow.csv.WriteOptions(quoting_style="none", quoting_header="none")
    with (
        atomic_write(path) as partial,
        pyarrow.csv.CSVWriter(str(partial), schema, write_options=options) as writer,
    ):
        for start in range(0, len(digits), ROWS_PER_BATCH):
            batch = digits[start : start + ROWS_PER_BATCH]
            table = np.column_stack([batch.labels, batch.images.reshape(len(batch), -1)])
            columns = [pa.array(column) for column in np.ascontiguousarray(table.T)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def read_csv(
    path: Path, image_size: int, class_count: int, script: str, rendered: bool = False
) -> Digits:
    """Read a CSV of any form that `read_table` knows; its labels count from 0.

    Raises DigitsError that names file, line and column.
    """
    table = read_table(path)
    if table.labels is None:
        raise DigitsError(f"{path}: has no column of labels. Add one, named label.")
    if (side := table.images.shape[1]) != image_size:
        raise DigitsError(
            f"{path}: images are {side} x {side} pixels, params.yaml's image_size is "
            f"{image_size}. Change one of them."
        )
    labels = positions(table.labels, [str(label) for label in range(class_count)])
    if len(wrong := np.flatnonzero(labels < 0)):
        line, found = table.first_line + wrong[0], str(table.labels[wrong[0]])[:40]
        raise DigitsError(
            f"{path}:{line}: column label: expected a whole number from 0 to {class_count - 1}, "
            f"found {found!r}. Fix or delete this row."
        )
    images, notes = as_bytes(table.images)
    if light_paper(images):
        raise DigitsError(f"{path}: the paper is light. Expected ink 255 on paper 0. Invert it.")
    for note in notes:
        print(f"{path}: {note}")
    return Digits(images, labels.astype(np.uint8), script, rendered, class_count)


def positions(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the index of each label in `names`, int64 (n,), -1 for an unknown label."""
    values, inverse = np.unique(labels, return_inverse=True)
    known = {name: place for place, name in enumerate(names)}
    plain = (str(value).strip().removesuffix(".0") for value in values)  # 3.0 means 3
    return np.array([known.get(value, -1) for value in plain], np.int64)[inverse]


def as_bytes(images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return images of numbers from 0 to 255, or from 0 to 1, as uint8, and what was changed."""
    scaled = 0 < images.max(initial=0) <= 1
    images = np.round(images * np.float32(255) if scaled else images)
    notes = ["values from 0 to 1 were multiplied by 255"] if scaled else []
    return images.astype(np.uint8, copy=False), notes


def light_paper(images: np.ndarray) -> bool:
    """Return whether most of uint8 (n, size, size) have light edges, that is dark ink on paper."""
    edges = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return len(images) > 0 and bool(np.median((edges > 127).mean(axis=1)) > 0.75)


def write_split(path: Path, parts: Iterable[Digits]) -> None:
    """Write digits of several sources to a .npz file; equal digits give equal bytes."""
    arrays = {"format": np.array(SPLIT_FORMAT)}
    for part in parts:
        if f"{part.name}.images" in arrays:
            raise DigitsError(f"{path}: the source {part.name} occurs twice. Join its parts first.")
        arrays[f"{part.name}.images"] = part.images
        arrays[f"{part.name}.labels"] = part.labels
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            # Like np.savez, except that np.savez makes zipfile mark every entry as large (ZIP64),
            # with bytes that differ between Python 3.11.2 and 3.11.7. An entry of known size is
            # marked only if it is large.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.file_size = array.nbytes
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_split(path: Path, class_count: int, image_size: int) -> list[Digits]:
    """Return the sources of a split in the order in which they were written.

    Raises DigitsError when the file is missing, corrupted or not a split, and when its version or
    image size differs.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            if "format" not in arrays or int(arrays["format"]) != SPLIT_FORMAT:
                raise DigitsError(
                    f"{path}: was written by another version of this code. "
                    "Run `dvc repro -f prepare`."
                )
            names = [key.removesuffix(".images") for key in arrays.files if ".images" in key]
            if not names:
                raise ValueError("it contains no digits")
            parts = [
                Digits(
                    arrays[f"{name}.images"],
                    arrays[f"{name}.labels"],
                    name.removesuffix("_rendered"),
                    name.endswith("_rendered"),
                    class_count,
                )
                for name in names
            ]
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found. Run `dvc repro` first.") from None
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DigitsError(f"{path}: is corrupted ({error}). Run `dvc repro -f prepare`.") from None
    for part in parts:
        if part.images.shape[1:] != (image_size, image_size):
            raise DigitsError(
                f"{path}: expected images of {image_size} pixels per side (image_size in "
                f"params.yaml), found {part.images.shape[1]}. Run `dvc repro`."
            )
    return parts
