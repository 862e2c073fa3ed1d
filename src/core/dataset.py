"""Labelled images of digits: the class Digits, and its two file formats.

A CSV file has the header `label,pixel0,...` and one row per digit; people exchange it. A split is
an uncompressed .npz file with the digits of several sources, which one stage passes to another.
"""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from core.errors import DigitsError
from core.files import atomic_write

MNIST = "mnist"  # the script that every model is trained on; all others are called foreign
ROWS_PER_BATCH = 4096
BLOCK_BYTES = 1 << 23  # CSV text parsed at a time
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


def write_csv(path: Path, digits: Digits) -> None:
    """Write one row per digit: its label, then its pixels row by row (0 black .. 255 white)."""
    names = _header(digits.images.shape[1]).split(",")
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
    """Read and validate a CSV file in batches, so that memory holds little more than the digits.

    Raises DigitsError with file, line (the header is line 1) and column.
    """
    rows_bytes, line_end = _check_ends(path, image_size)
    tables = []
    try:
        for table in _batches(path, image_size):
            tables.append(table)
            if table[:, 0].max() >= class_count:
                raise ValueError("a label is out of range")
            # Values, commas and line ends; Arrow also accepts 007, 0x7 and spaces.
            longer = np.count_nonzero(table >= 10) + np.count_nonzero(table >= 100)
            rows_bytes -= 2 * table.size + int(longer) + (line_end - 1) * len(table)
        if rows_bytes:
            raise ValueError("expected plain decimal numbers and equal line ends")
    except (pa.ArrowException, ValueError) as error:
        reason = _first_error(path, image_size, class_count) or f" {error}"
        raise DigitsError(f"{path}:{reason}. Fix or delete this row.") from None
    labels = np.concatenate([table[:, 0] for table in tables])
    images = np.empty((len(labels), image_size, image_size), np.uint8)
    start = 0
    for index, table in enumerate(tables):
        images[start : start + len(table)] = table[:, 1:].reshape(-1, image_size, image_size)
        start += len(table)
        tables[index] = table[:0]  # free its memory
    return Digits(images, labels, script, rendered, class_count)


def _header(image_size: int) -> str:
    return ",".join(["label", *(f"pixel{index}" for index in range(image_size**2))])


def _batches(path: Path, image_size: int) -> Iterator[np.ndarray]:
    """Yield uint8 (rows, 1 + pixels) tables: the label, then the pixels."""
    names = _header(image_size).split(",")
    with pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False, quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.uint8())),
    ) as reader:
        for batch in reader:
            if batch.num_rows:
                yield batch.to_tensor().to_numpy()  # raises on a missing value


def _check_ends(path: Path, image_size: int) -> tuple[int, int]:
    """Check the header and the last byte, which the parser ignores.

    Returns the number of bytes of all rows, and of one line end.
    """
    expected = _header(image_size)
    with path.open("rb") as file:
        start = file.read(len(expected) + 2)
        size = file.seek(0, 2)
        if not start:
            raise DigitsError(f"{path}: is empty. Expected a header and rows.")
        file.seek(-1, 2)
        last = file.read()
        file.seek(0)
        line = file.readline(1 << 20)
        text = line.rstrip(b"\r\n")
        first = text.decode("utf-8", "replace")
    if first != expected:
        if "\ufffd" in first or "\0" in first:
            raise DigitsError(f"{path}: is not a text file. Expected CSV in UTF-8.")
        if first.startswith("\ufeff"):
            raise DigitsError(f"{path}: begins with a byte order mark. Save it as plain UTF-8.")
        columns, wanted = first.split(","), expected.split(",")
        pairs = enumerate(zip([*columns, "(none)"], [*wanted, "(none)"], strict=False))
        place = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
        more = "more than " if size > len(first) >= 1 << 20 else ""
        raise DigitsError(
            f"{path}:1: expected {len(wanted):,} columns for images of {image_size} x "
            f"{image_size} pixels, found {more}{len(columns):,}; column {place[0] + 1}: expected "
            f"{place[1][1]!r}, found {place[1][0][:40]!r}. Correct the header or image_size."
        )
    if size <= len(expected) + 2:
        raise DigitsError(f"{path}: has a header but no rows. Add rows or delete the file.")
    if last != b"\n":
        raise DigitsError(
            f"{path}: the last row has no line end, so the file may be truncated. Restore it."
        )
    return size - len(line), len(line) - len(text)


def _first_error(path: Path, image_size: int, class_count: int) -> str | None:
    """Return `LINE: what is wrong` for the first invalid row, by checking value after value."""
    names = _header(image_size).split(",")
    pixels = {str(value) for value in range(256)}
    labels = {str(value) for value in range(class_count)}
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        ending = "\r\n" if next(file).endswith("\r\n") else "\n"
        for number, line in enumerate(file, start=2):
            if line.endswith("\r\n") != (ending == "\r\n") and line.endswith("\n"):
                return f"{number}: expected the line end of the header, found another"
            row = line.rstrip("\r\n").split(",")
            if len(row) != len(names):
                return f"{number}: expected {len(names):,} columns, found {len(row):,}"
            if row[0] not in labels:
                return (
                    f"{number}: column label: expected a whole number from 0 to "
                    f"{class_count - 1}, found {row[0][:40]!r}"
                )
            if not pixels.issuperset(row[1:]):
                column = next(i for i, value in enumerate(row) if i and value not in pixels)
                return (
                    f"{number}: column {names[column]}: expected a whole number from 0 to 255, "
                    f"found {row[column][:40]!r}"
                )
    return None


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
            # Like np.savez, which however makes zipfile mark every entry as large (ZIP64), in
            # bytes that differ between Python 3.11.2 and 3.11.7. An entry of known size is
            # marked only if it is large.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.file_size = array.nbytes
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_split(path: Path, class_count: int, image_size: int) -> list[Digits]:
    """Return the sources of a split in the order in which they were written.

    Raises DigitsError when the file is missing, corrupted or no split, and when it has another
    version or images of another size.
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
