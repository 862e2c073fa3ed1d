"""CSV files of images, one per row, in the common formats.

A file may have a header; a label column that is first, last or named; an index; commas, semicolons
or tabs; quotes; a byte order mark; any line end; floats. It may be a .gz, or a .zip of one file.
"""

import contextlib
import gzip
import io
import math
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from core.errors import DigitsError

LABELS = ("label", "labels", "class", "character", "digit", "target", "y")  # label columns
INDEXES = ("", "id", "index", "unnamed: 0")
BLOCK = 1 << 23  # bytes of text parsed at a time, or looked at to find the columns
LINE_BYTES = 1 << 22  # maximum length of a line: a million pixels
BYTES = 1 << 30  # maximum of all images of a file, in memory
UNPACKED_BYTES = 8 * BYTES  # maximum of a compressed file, which may have few images
MEMORY = 4 * BYTES  # bytes that reading a file may need
LABEL_CHARACTERS = 200  # maximum read of a label; NumPy pads all labels to the longest
SIZES = range(16, 256**2 + 1)  # allowed numbers of pixels of an image
SAMPLE = 2000  # rows read to find the label among unnamed columns
NUMBER = re.compile(r" *[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)? *")


@dataclass(frozen=True)
class Table:
    """The images of a file, unconverted.

    images: (n, side, side), uint8, or float32 where not all values are whole numbers to 255
    labels: str (n,), or None where there is no column of labels
    first_line: the line of the first image, counted from 1; 0 if the file has no lines
    pictures: whether the images were decoded from picture files, so they are in normal form
    """

    images: np.ndarray
    labels: np.ndarray | None
    first_line: int = 0
    pictures: bool = False


@dataclass(frozen=True)
class _Layout:
    names: list[str]  # of all columns; generated if there is no header
    header: bool
    delimiter: str
    label: int | None
    pixels: list[int]  # the columns, row by row of the image


@contextlib.contextmanager
def limited_memory(path: Path) -> Iterator[None]:
    """Raise DigitsError where reading a file needs more than MEMORY, on Linux.

    Headers are checked first; this is for those that lie, and for whatever no header declares.
    """
    if sys.platform != "linux":
        yield
        return
    import resource  # Windows has none

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        known = [limit for limit in limits if limit != resource.RLIM_INFINITY]  # is -1
        resource.setrlimit(resource.RLIMIT_AS, (min([used + MEMORY, *known]), limits[1]))
        yield
    except MemoryError:
        raise DigitsError(f"{path}: needs over {MEMORY:,} bytes of memory. Split it.") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def check_regular(path: Path) -> None:
    """Raise DigitsError unless a path is a file: a pipe or a device might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DigitsError(f"{path}: is not a regular file. Name a file.")


def read_table(path: Path) -> Table:
    """Read a CSV in batches: it needs little memory beyond the images.

    Raises DigitsError with file, row (1 is the first line) and column for what cannot be read.
    """
    layout = _layout(path)
    for kind in (pa.uint8(), pa.float32()):
        try:
            with opened(path) as file:
                batches = list(_batches(path, file, layout, kind))
            break
        except (pa.ArrowException, ValueError) as error:
            reason = error
    else:
        found = _first_fault(path, layout)
        raise DigitsError(found or f"{path}: cannot be read as CSV ({reason}). Fix the file.")
    if not batches:
        raise DigitsError(f"{path}: has no rows. Add digits or remove the file.")
    side = math.isqrt(len(layout.pixels))
    images = np.concatenate([pixels for _, pixels in batches]).reshape(-1, side, side)
    if images.dtype != np.uint8:
        if not ((images >= 0) & (images <= 255)).all() and (fault := _first_fault(path, layout)):
            raise DigitsError(fault)
        images = images.astype(np.uint8) if (images % 1 == 0).all() else images
    known = np.concatenate([labels for labels, _ in batches])
    return Table(images, None if layout.label is None else known, 1 + layout.header)


def _batches(
    path: Path, file: IO[bytes], layout: _Layout, kind: pa.DataType
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield labels str (rows,) and pixels (rows, pixels)."""
    names = [str(number) for number in range(len(layout.names))]  # names in the file may repeat
    pixels = [names[column] for column in layout.pixels]
    label = [] if layout.label is None else [names[layout.label]]
    total = 0
    # Arrow's threads may outlive its reader (github.com/apache/arrow/issues/43604). A thread
    # that calls Python at exit aborts the process, so Arrow opens a plain file itself.
    plain = isinstance(file, io.BufferedReader)
    with pyarrow.csv.open_csv(
        str(file.name) if plain else pa.PythonFile(file, "r"),
        read_options=pyarrow.csv.ReadOptions(
            use_threads=plain,
            block_size=BLOCK,
            column_names=names,
            skip_rows=int(layout.header),
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=layout.delimiter),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(pixels, kind) | dict.fromkeys(label, pa.string()),
            include_columns=pixels + label,
        ),
    ) as reader:
        for batch in reader:
            total += batch.num_rows * len(pixels) * kind.bit_width // 8
            if total > BYTES:
                raise DigitsError(f"{path}: has more than {BYTES:,} bytes of images. Split it.")
            if batch.num_rows:
                texts = batch[label[0]].to_pylist() if label else []
                labels = np.array([text[:LABEL_CHARACTERS] for text in texts], str)
                yield labels, batch.select(pixels).to_tensor().to_numpy()  # raises on nulls


class _Gzip(gzip.GzipFile):  # limits the size of the unpacked file
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > UNPACKED_BYTES:
            raise DigitsError(f"{self.name}: has over {UNPACKED_BYTES:,} bytes unpacked. Split it.")
        return super().read(size)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; decompress a .gz, or a .zip with a single file."""
    check_regular(path)
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(path.open("rb"))
        start = plain.peek(4)
        file: Any = plain
        try:
            if start[:2] == b"\x1f\x8b":
                file = stack.enter_context(_Gzip(fileobj=plain))
            elif start[:4] == b"PK\3\4":
                archive = stack.enter_context(zipfile.ZipFile(plain))
                inside = [
                    name for name in archive.namelist() if not re.search("^__MACOSX/|/$", name)
                ]
                if len(inside) != 1 or archive.getinfo(inside[0]).file_size > UNPACKED_BYTES:
                    raise DigitsError(
                        f"{path}: holds {len(inside)} files. Expected one, below 8 GB. Unpack it."
                    )
                file = stack.enter_context(archive.open(inside[0]))
            yield file
        except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, RuntimeError) as error:
            raise DigitsError(f"{path}: is corrupted ({error}). Download it again.") from None


def _cells(line: bytes, delimiter: str) -> list[str]:
    text = line.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")
    return [cell.strip().strip('"') for cell in text.split(delimiter)]


def _layout(path: Path) -> _Layout:
    """Determine the columns from the header or the first rows."""
    with opened(path) as file:
        lines: list[bytes] = []
        while len(lines) < SAMPLE and file.tell() < BLOCK and (line := file.readline(LINE_BYTES)):
            lines.append(line)
            if len(lines) == 1 and (b"\0" in line or "\ufffd" in line.decode("utf-8", "replace")):
                raise DigitsError(f"{path}: is not text. Expected CSV in UTF-8.")
    if not lines or not lines[0].strip():
        raise DigitsError(f"{path}:1: the first line is empty. Expected a header or a digit.")
    delimiter = max(",;\t", key=lambda mark: lines[0].count(mark.encode()))
    first = _cells(lines[0], delimiter)
    words = [cell for cell in first if not NUMBER.fullmatch(cell)]
    counted = [cell for cell in first if cell.isdecimal()]  # pandas' names: 0, 1, 2 ...
    header = len(words) > 1 or any(word.lower() in (*LABELS, *INDEXES) for word in words)
    header = header or (len(counted) > 1 and counted == [*map(str, range(len(counted)))])
    if header:
        names = [cell.lower() for cell in first]
        index = [place for place, name in enumerate(names) if name in INDEXES]
        label = next((names.index(name) for name in LABELS if name in names), None)
    else:
        names = [f"column {place + 1}" for place in range(len(first))]
        square = math.isqrt(len(first)) ** 2
        index = [0] if len(first) == square + 2 else []
        label = None if len(first) == square else len(index)
        if len(first) == square + 1:
            label = _unnamed_label([_cells(line, delimiter) for line in lines[:-1] or lines])
    pixels = [place for place in range(len(names)) if place != label and place not in index]
    if math.isqrt(len(pixels)) ** 2 != len(pixels) or len(pixels) not in SIZES:
        longer = "more than " if len(lines[0]) == LINE_BYTES else ""
        raise DigitsError(
            f"{path}:1: found {longer}{len(first):,} columns. Expected a label and the pixels of a "
            "square image, for instance label,pixel0,...,pixel783."
        )
    numbers = [tuple(map(int, re.findall(r"\d{1,9}", names[place]))) for place in pixels]
    if header and len(set(numbers)) == len(numbers) and len(set(map(len, numbers))) == 1:
        pixels = [place for _, place in sorted(zip(numbers, pixels, strict=True))]
    return _Layout(names, header, delimiter, label, pixels)


def _unnamed_label(rows: list[list[str]]) -> int:
    """Return which unnamed column is the label: the first, or the last if only that one varies."""
    first, last = ({row[place] for row in rows} for place in (0, -1))
    words = [any(not NUMBER.fullmatch(value) for value in values) for values in (first, last)]
    is_last = words[1] if any(words) else len(first) == 1 and len(last) > 1
    return len(rows[0]) - 1 if is_last else 0


def _first_fault(path: Path, layout: _Layout) -> str | None:
    """Read value by value, which is slow, to locate the first error."""
    with opened(path) as binary:
        for number, line in enumerate(iter(partial(binary.readline, LINE_BYTES), b""), start=1):
            if (number == 1 and layout.header) or not line.strip():
                continue
            row = _cells(line, layout.delimiter)
            if len(row) != len(layout.names):
                return (
                    f"{path}:{number}: expected {len(layout.names):,} columns, found "
                    f"{len(row):,}. Fix or delete this row."
                )
            for column in layout.pixels:
                value = row[column]
                if not NUMBER.fullmatch(value) or not 0 <= float(value) <= 255:
                    return (
                        f"{path}:{number}: column {layout.names[column]}: expected a number from 0 "
                        f"to 255, found {value[:40]!r}. Fix or delete this row."
                    )
    return None
