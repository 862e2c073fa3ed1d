"""Describe a file or folder of digits, and write the block of params.yaml that reads it."""

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from core import params
from core.dataset import MNIST, positions
from core.errors import DigitsError
from digits.sources.archives import Archive
from digits.sources.fetch import as_yaml
from digits.sources.readers import Files, read_parts
from digits.sources.unlabelled import Found, read_any

READER: Any = Annotated[Files | Archive, Field(discriminator="format")]
TEST = re.compile(  # in the names of test data
    r"(?<!la)test|t10k|valid|eval|holdout|(?<![a-z])(val|dev)(?![a-z])", re.IGNORECASE
)
IDX = re.compile(r"-images[-.]idx3-ubyte(\.gz)?$")
TABLES = (".csv", ".csv.gz", ".npz", ".parquet")
PART = re.compile(r"(train|test|valid)\w*", re.IGNORECASE)  # a folder that is not a class
EXCHANGED = "Set transposed: true"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 0.1  # share held out if there is no test data; larger for small data sets
PATTERNS = 20  # maximum of patterns of one part; more are written as one with *
SCRIPT_DIGITS = {"train": 1000, "test": 200, "production": 200}  # as params.yaml has them


def inspect(path: Path, image_size: int, classes: Sequence[str], script: str) -> str:
    """Return a description of a file or folder, and the block of params.yaml for it.

    Raises DigitsError that names the file and what is wrong in it.
    """
    if not path.exists():
        raise DigitsError(f"{path}: not found. Correct the name.")
    files = _files(path) if path.is_dir() else [path]
    train = next((file for file in files if not TEST.search(file.name)), files[0])
    test = next((file for file in files if file is not train and TEST.search(file.name)), None)
    found = read_any(train, image_size, "train")
    lines = [f"{train}: {line}" for line in _facts(found)]
    if found.names:
        (reader, notes), source = _of_pictures(found, classes), path
        lines += notes
    else:
        reader, source = _of_tables(found, train, test, classes), train.parent
        if found.table.labels is None:
            return "\n".join([*lines, "It has no labels, so it can only be scored: digits score"])
    try:
        own: Files | Archive = params.section(READER, {"reader": reader}, "reader")
        read_parts(own, source, image_size, classes, script)
    except DigitsError as error:
        if EXCHANGED in str(error):
            reader["transposed"] = True
        lines.append(f"{'noticed' if EXCHANGED in str(error) else 'cannot be read yet'}: {error}")
    if "names" in reader and not all(re.search(r"\d", name) for name in reader["names"]):
        lines.append("check that names has the labels in the order of classes")
    lines.append("For params.yaml:\n")
    counts = {} if script == MNIST else {"per_class": SCRIPT_DIGITS}
    block = {script: {"source": source.as_posix(), **counts, "reader": reader}}
    return "\n".join([*lines, as_yaml(block if script == MNIST else {"foreign": block})])


def _files(folder: Path) -> list[Path]:
    """Return the tables of a folder, or the folder itself for its pictures."""
    names = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    tables = [file for file in names if file.name.lower().endswith(TABLES) or IDX.search(file.name)]
    return [file for file in tables if "label" not in file.name or not IDX.search(file.name)] or [
        folder
    ]


def _facts(found: Found) -> list[str]:
    """Return a line for each property and each problem."""
    images, labels = found.table.images, found.table.labels
    count, side = images.shape[:2]
    what = "pictures, here normalised" if found.names or found.kind == "picture" else "images"
    lines = [f"{found.kind}, {count:,} {what}, {side} x {side}, {images.dtype}"]
    lines.append(f"values from {images.min():g} to {images.max():g}, {found.ink} ink")
    rows = [image.tobytes() for image in images]
    if twice := count - len(set(rows)):
        lines.append(f"{twice:,} images occur more than once")
    if len(blank := np.flatnonzero(images.max(axis=(1, 2)) == images.min(axis=(1, 2)))):
        lines.append(f"{len(blank):,} images are blank, number {blank[0]} (from 0) first")
    if labels is not None:
        counts = sorted(Counter(labels.tolist()).items(), key=lambda pair: _natural(pair[0]))
        lines.append("labels: " + ", ".join(f"{label} ({n:,})" for label, n in counts[:40]))
        pairs = set(zip(rows, labels.tolist(), strict=True))
        if odd := len(pairs) - len(set(rows)):
            lines.append(f"{odd:,} images occur with two labels")
    elif not found.names:
        lines.append("no labels")
    return lines


def _of_tables(
    found: Found, train: Path, test: Path | None, classes: Sequence[str]
) -> dict[str, Any]:
    """Return the reader of a table or an array."""
    names = [IDX.sub("", file.name) for file in (train, test) if file]
    reader: dict[str, Any] = {"format": found.kind, "train": names[0]}
    if found.kind == "npz" and test is None:
        with np.load(train) as arrays:  # those for testing may be in the same file
            names *= 1 + any("test" in name.lower() for name in arrays.files)
    reader |= {"test": names[1]} if names[1:] else {"test_share": _share(found, classes)}
    labels = found.table.labels
    if labels is not None and (positions(labels, [str(n) for n in range(len(classes))]) < 0).any():
        values = sorted(set(labels.tolist()), key=_natural)
        if set(values) != set(classes):
            reader["names"] = _numbered(set(values), len(classes))
    return reader | ({"ink": "black"} if found.ink == "black" else {})


def _of_pictures(found: Found, classes: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the reader of pictures whose class is a folder or a part of their names, and notes."""
    folders = [name.split("/")[:-1] for name in found.names]
    cells = [re.split(r"([^A-Za-z0-9]+)", name.split("/")[-1]) for name in found.names]
    common = Counter(map(len, cells)).most_common(1)[0][0]
    columns = list(zip(*(one for one in cells if len(one) == common), strict=True))
    places: dict[int, set[str]] = {}  # names by folder level, -1 the last, or by part of the file
    for level in range(-1, -1 - max(map(len, folders)), -1):
        places[level] = {parts[level] for parts in folders if len(parts) >= -level}
        places[level] -= {name for name in places[level] if PART.fullmatch(name)}
    places |= {n: set(column) for n, column in enumerate(columns)}
    most = len(found.names) // 2
    several = [n for n, names in places.items() if len(names) > 1 and (n < 0 or len(names) <= most)]
    fit = [n for n in several if len(_numbered(places[n], len(classes))) == len(classes)]
    place = next((n for n in fit if places[n] == set(classes)), next(iter([*fit, *several]), None))
    if place is None:
        raise DigitsError(
            f"Paths such as {found.names[0]} lack the class. Put each into its own folder."
        )
    notes: list[str] = []
    if len(fit or several) > 1:
        notes.append(f"check in {found.names[0]} which part is the class; others vary as well")
    fixed = [column[0] if len(set(column)) == 1 else "*" for column in columns]
    inside = "".join("{class}" if n == place else cell for n, cell in enumerate(fixed))
    if place < 0:
        folders, inside = [parts[:place] for parts in folders if len(parts) >= -place], "{class}/*"
    reader: dict[str, Any] = {"format": "archive", "ink": found.ink}
    reader["names"] = _numbered(places[place], len(classes))
    above = {"/".join(parts) for parts in folders}
    if len(above) > PATTERNS:  # one for each writer, for instance
        above = {"/".join(map(_general, parts)) for parts in folders}
    held = sorted(folder for folder in above if TEST.search(folder))
    learnt = sorted(folder for folder in above if folder not in held) or held
    if held != learnt and any(fnmatchcase(one, pattern) for one in held for pattern in learnt):
        raise DigitsError(
            f"{held[0]} is beside more than {PATTERNS} folders. Move them into one named train."
        )
    reader["train"] = [f"{folder}/{inside}".removeprefix("/") for folder in learnt]
    if held and held != learnt:
        reader["test"] = [f"{folder}/{inside}".removeprefix("/") for folder in held]
    else:
        reader["test_share"] = _share(found, classes)
    return reader, notes


def _general(folder: str) -> str:
    return folder if PART.fullmatch(folder) or TEST.search(folder) else "*"


def _numbered(names: set[str], count: int) -> list[str]:
    """Return names in natural order, only those of a numbered group with `count` members if any."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=_natural):
        groups.setdefault(re.sub(r"\d+$", "", name), []).append(name)
    fitting = [group for group in groups.values() if len(group) == count]
    return fitting[0] if len(fitting) == 1 else sorted(names, key=_natural)


def _share(found: Found, classes: Sequence[str]) -> float:
    """Return a test share with at least one digit per class, if the classes have equal counts."""
    each = max(1, len(found.table.images) // len(classes))
    return round(min(0.5, max(HELD_OUT, 1.5 / each)), 2)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key for natural order: 10 after 9, and the word ten after nine."""
    if text.lower() in WORDS:
        return [(WORDS.index(text.lower()), "")]
    return [(int(number[:300] or 0), word) for word, number in re.findall(r"(\D*)(\d*)", text)]
