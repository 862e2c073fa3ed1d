"""Real digits on disk, as params.yaml names them: tables, arrays, or pictures.

Input: a file or folder that DVC watches. Output: `Digits`, white on black. Detectable differences
(scale, ink, rows and columns, labels) are converted and printed, or rejected with the setting to
change.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from core.dataset import MNIST, Digits, as_bytes, common, concatenate, light_paper, positions, split
from core.errors import DigitsError
from core.params import strict
from core.tables import Table, limited_memory, read_table
from digits.runtime.normalise import normalise
from digits.sources.archives import Archive, read_archive
from digits.sources.arrays import read_npz, read_parquet
from digits.sources.idx import read_pair

PAPER = (3, 64)  # brightness of paper that is not quite black: it is subtracted
EVEN = 8  # maximum distance of most edge pixels from it
# The mean of each of MNIST's digits in 7 x 7 pixels, 0 to 15: it shows whether rows and columns
# were exchanged.
MEANS = (
    "0000000003bd4002cbab007c25c10a93b8005ff9100011000",
    "00000000006610000a700000f200003e10000691000000000",
    "0001100017ca200145b300149b2005dfb5104a86400000000",
    "0000000028da200149c20007fc200223c4005bda200022000",
    "000000000224300294a4005e9f30037cb2000275100001100",
    "0000000004ab7101cd85102ee9200347c4004dfa200022100",
    "0002200003a610018921002dac6002fed60006b6100000000",
    "0000000012331005ccf400233d20001a810004a3000045100",
    "0000000003a9300198a60017f910019b71002ac7100012100",
    "0000000001651002b9c3003caf20015a91000285100023200",
)
ORIENTED = 0.05  # by how much the correlation must rise when they are exchanged


@strict
class Files:
    """Files in a folder: `train` and `test` are names, with * and ? if needed, or IDX prefixes."""

    format: Literal["csv", "idx", "npz", "parquet"]
    train: str
    test: str | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of train, instead of test
    names: tuple[str, ...] | None = None  # the label of each class; others are omitted
    ink: Literal["white", "black"] | None = None
    transposed: bool = False  # whether rows and columns are exchanged, as in EMNIST

    def __post_init__(self) -> None:
        """Raise ValueError unless either `test` or `test_share` is given."""
        if (self.test is None) == (self.test_share is None):
            raise ValueError("give either test or test_share")


def read_parts(
    reader: Files | Archive, source: Path, image_size: int, classes: Sequence[str], script: str
) -> tuple[Digits, Digits]:
    """Return a real data set's digits for training and for testing.

    Raises DigitsError that names the file and what is wrong in it.
    """
    train = read(reader, source, "train", image_size, classes, script)
    if reader.test_share is not None:
        # The test digits do not depend on params.yaml's seed.
        test, train = split(train, round(len(train) * reader.test_share), seed=0)
        _check_classes(source, "test", test, classes)
    else:
        test = read(reader, source, "test", image_size, classes, script)
    if count := common(train, test):
        print(
            f"{source}: warning: {count:,} of {len(test):,} test images are training images. Use "
            "others, or hold out a part of train: test_share: 0.1 instead of test."
        )
    return train, test


def read(
    reader: Files | Archive,
    source: Path,
    part: Literal["train", "test"],
    image_size: int,
    classes: Sequence[str],
    script: str,
) -> Digits:
    """Return one part of a real data set; images of another size are normalised as MNIST was.

    Raises DigitsError that names the file and what is wrong in it.
    """
    if isinstance(reader, Archive):
        with limited_memory(source):
            return read_archive(reader, source, part, image_size, len(classes), script)
    name = str(reader.train if part == "train" else reader.test)
    found = sorted(source.glob(name)) if set("*?[") & set(name) else [source / name]
    if not found:
        raise DigitsError(f"{source}: no file matches {name}. Correct {part} in params.yaml.")
    with limited_memory(source):
        parts = [_digits(reader, path, part, image_size, classes, script) for path in found]
        digits = concatenate(parts)
    _check_classes(source / name, part, digits, classes)
    if script == MNIST and list(classes) == list("0123456789") and _exchanged(digits):
        raise DigitsError(
            f"{source / name}: rows and columns seem to be exchanged. "
            f"Set transposed: {'false' if reader.transposed else 'true'} in params.yaml."
        )
    return digits


def _digits(
    reader: Files, path: Path, part: str, image_size: int, classes: Sequence[str], script: str
) -> Digits:
    """Read one file."""
    table = read_file(reader.format, path, part, image_size, reader.ink)
    if table.labels is None:
        raise DigitsError(
            f"{path}: has no labels, so it can only be scored. For testing, hold out a part of "
            "train: test_share: 0.1 instead of test."
        )
    if not len(table.images):
        raise DigitsError(f"{path}: holds no image. Restore the file.")
    images, labels, notes = table.images, _labels(path, table, reader.names, classes), []
    if left_out := np.count_nonzero(labels < 0):
        notes.append(f"{left_out:,} digits whose label is not in names were omitted")
        images, labels = images[labels >= 0], labels[labels >= 0]
    ink = None if table.pictures else reader.ink  # already used to decode them
    images, more = in_normal_form(path, images, image_size, ink, reader.transposed)
    for note in notes + more:
        print(f"{path}: {note}")
    return Digits(images, labels.astype(np.uint8), script, False, len(classes))


def read_file(kind: str, path: Path, part: str, image_size: int, ink: str | None) -> Table:
    """Return the images and labels of a file of this kind, unconverted.

    `part` selects arrays of an .npz; `image_size` and `ink` apply to pictures in Parquet.
    """
    if kind == "csv":
        return read_table(path)
    if kind == "npz":
        return read_npz(path, part)
    return read_parquet(path, image_size, ink) if kind == "parquet" else read_pair(path)


def in_normal_form(
    path: Path, images: np.ndarray, image_size: int, ink: str | None, transposed: bool
) -> tuple[np.ndarray, list[str]]:
    """Return images (n, side, side) as uint8 of `image_size`, white on black, and what was changed.

    Raises DigitsError unless the ink is `ink` (white if None).
    """
    if images.shape[1] != images.shape[2]:
        raise DigitsError(f"{path}: images are {images.shape[1:]} pixels. Expected square ones.")
    images, notes = as_bytes(images)
    found = "black" if light_paper(images) else "white"
    if found != (ink or "white"):
        raise DigitsError(f"{path}: the ink is {found}. Set ink: {found} in params.yaml.")
    images = 255 - images if found == "black" else images
    images = images.transpose(0, 2, 1) if transposed else images
    edges = np.concatenate([images[:1000, 0], images[:1000, -1]])
    paper = int(np.median(edges))
    if PAPER[0] <= paper <= PAPER[1] and np.quantile(np.abs(edges - float(paper)), 0.75) <= EVEN:
        images = np.maximum(images, paper) - np.uint8(paper)
        notes.append(f"the paper was {paper}, not 0; it was subtracted")
    if len(blank := np.flatnonzero(images.max(axis=(1, 2)) == 0)):
        notes.append(f"warning: {len(blank):,} images are blank, image {blank[0]} (from 0) first")
    if images.shape[1] != image_size:
        if len(blank):
            raise DigitsError(f"{path}: image {blank[0]} (from 0) is blank. Delete it.")
        notes.append(f"{images.shape[1]} x {images.shape[1]} pixels, normalised to {image_size}")
        chunks = range(0, len(images), 1000)
        images = np.concatenate(
            [normalise(images[start : start + 1000], image_size) for start in chunks]
        )
    return np.ascontiguousarray(images), notes


def _labels(
    path: Path, table: Table, names: Sequence[str] | None, classes: Sequence[str]
) -> np.ndarray:
    """Return the class of each image, -1 for one with a label that `names` does not have."""
    assert table.labels is not None
    if names is not None:
        if len(names) != len(classes):
            raise DigitsError(
                f"params.yaml: names has {len(names)} entries for {len(classes)} classes. Give one "
                "for each class, in their order."
            )
        return positions(table.labels, names)
    labels = positions(table.labels, [str(label) for label in range(len(classes))])
    if (labels < 0).any():
        named = positions(table.labels, classes)
        if (named >= 0).all():
            return named
        place = int(np.flatnonzero(labels < 0)[0])
        line = f":{table.first_line + place}" if table.first_line else f": image {place}"
        known = ", ".join(sorted(set(table.labels.tolist()))[:12])
        raise DigitsError(
            f"{path}{line}: label {str(table.labels[place])[:40]!r} is neither a number from 0 to "
            f"{len(classes) - 1} nor in classes. Set classes, or the reader's names, in "
            f"params.yaml to labels of the file: {known}."
        )
    return labels


def _check_classes(path: Path, part: str, digits: Digits, classes: Sequence[str]) -> None:
    """Raise DigitsError for a class without digits."""
    counts = np.bincount(digits.labels, minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DigitsError(
            f"{path}: no digit of class {missing[0]!r} to {part} with. Add some, or "
            "remove the class from classes in params.yaml."
        )


def _exchanged(digits: Digits) -> bool:
    """Return whether the mean digits are more like MNIST's with rows and columns exchanged."""
    straight = turned = 0.0
    for label, text in enumerate(MEANS):
        images = digits.images[digits.labels == label]
        images = images[images.any(axis=(1, 2))][:1000]
        if len(images):
            mean = normalise(images, 28).mean(axis=0).reshape(7, 4, 7, 4).mean(axis=(1, 3))
            expected = np.array([int(value, 16) for value in text], float)
            straight += float(np.corrcoef(mean.ravel(), expected)[0, 1])
            turned += float(np.corrcoef(mean.T.ravel(), expected)[0, 1])
    return turned - straight > ORIENTED * len(MEANS)
