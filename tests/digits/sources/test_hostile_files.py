"""Hostile files: every reader ends soon, with the digits or with a message for a person.

The readers are those of params.yaml's formats and of `digits score`, so a new one is covered too.
"""

import gzip
import io
import os
import random
import signal
import struct
import typing
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from archives import write_tar
from conftest import mnist_part
from PIL import Image
from pyarrow import parquet

from core.dataset import write_csv
from core.errors import DigitsError
from digits.production import scoring
from digits.runtime.normalise import normalise
from digits.runtime.photograph import find_ink
from digits.serving.request import Reader, RefusedError, decode
from digits.sources.archives import Archive
from digits.sources.inspect import inspect
from digits.sources.readers import Files, read

CLASSES = tuple("0123456789")
SECONDS = 10  # of processor time: a loaded machine is no fault of the reader
FORMATS = typing.get_args(Files.__dataclass_fields__["format"].type)
READER = Reader(find_ink, normalise)
DIGITS = mnist_part("train", 40)


@contextmanager
def watchdog() -> Iterator[None]:
    """Raise TimeoutError in what takes longer than SECONDS, or waits five times as long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    kinds = ((signal.SIGVTALRM, signal.ITIMER_VIRTUAL, 1), (signal.SIGALRM, signal.ITIMER_REAL, 5))
    for number, timer, times in kinds:
        signal.signal(number, stop)
        signal.setitimer(timer, SECONDS * times)
    try:
        yield
    finally:
        for number, timer, _ in kinds:
            signal.setitimer(timer, 0)
            signal.signal(number, signal.SIG_DFL)


def reader(name: str) -> Callable[[Path], object]:
    """Return what reads a file by the name of its reader."""
    if name == "score":
        return lambda path: scoring.convert(path, path.parent / "out", 28)
    if name == "inspect":
        return lambda path: inspect(path, 28, CLASSES, "mnist")
    if name == "archive":
        archive = Archive("archive", ("*{class}/*",), CLASSES, "white", ("*",))
        return lambda path: read(archive, path, "train", 28, CLASSES, "mnist")
    return lambda path: read(
        Files(typing.cast(typing.Any, name), path.name, path.name),
        path.parent,
        "train",
        28,
        CLASSES,
        "mnist",
    )


READERS = [*FORMATS, "archive", "score", "inspect"]


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def valid(folder: Path) -> dict[str, bytes]:
    """Return a small file of each format."""
    write_csv(folder / "a.csv", DIGITS[:10])
    np.savez(folder / "a.npz", x=DIGITS.images, y=DIGITS.labels)
    table = pa.table({"image": [png(image) for image in DIGITS.images], "label": DIGITS.labels})
    parquet.write_table(table, folder / "a.parquet")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, label in enumerate(DIGITS.labels.tolist()):
            archive.writestr(f"own/{label}/{number}.png", png(DIGITS.images[number]))
    write_tar(folder / "a.tar", {"own/1/1.png": png(DIGITS.images[0])})
    idx = bytes((0, 0, 8, 3)) + struct.pack(">3I", 40, 28, 28) + DIGITS.images.tobytes()
    found = {path.suffix: path.read_bytes() for path in folder.iterdir()}
    return found | {".idx": idx, ".png": png(DIGITS.images[0])}


def npy(shape: tuple[int, ...], kind: str) -> bytes:
    """Return an .npz whose only array promises a shape, and holds nothing."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}) + "\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
        archive.writestr("x.npy", head)
    return out.getvalue()


def packed(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


ZEROS = bytes(51_000_000)  # more than a picture may have
HEADER = ",".join(["label", *(f"pixel{number}" for number in range(784))]).encode() + b"\n"
BOMBS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a line feed": lambda: b"\n" * 1000,
    "zeros": lambda: ZEROS[:5_000_000],
    "zeros in gzip": lambda: gzip.compress(ZEROS, 1),
    "one line in gzip": lambda: gzip.compress(HEADER + b"0," * 20_000_000, 1),
    "ones without an end": lambda: HEADER + b"1" * 5_000_000,
    "zeros as a CSV in a zip": lambda: packed("a.csv", ZEROS),
    "a large picture in a zip": lambda: packed("own/1/1.png", ZEROS),
    "a large file that is no picture": lambda: packed("other.bin", ZEROS),
    "an array of 8 TB": lambda: npy((10**5, 10**4, 1000), "|u1"),
    "an array of nothing": lambda: npy((0, 28, 28), "|u1"),
    "an array without a shape": lambda: npy((), "<f8"),
    "an array of objects": lambda: npy((10, 28, 28), "|O"),
    "IDX of 2^96": lambda: bytes((0, 0, 8, 3)) + b"\xff" * 12,
    "IDX of nothing": lambda: bytes((0, 0, 8, 3)) + bytes(12),
    "IDX in gzip that goes on": lambda: gzip.compress(
        bytes((0, 0, 8, 3)) + struct.pack(">3I", 1, 28, 28) + ZEROS, 1
    ),
    "a picture of 2^62 pixels": lambda: (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 31, 1 << 31, 8, 0, 0, 0, 0))
    ),
    "PostScript": lambda: packed("own/1/1.png", b"%!PS\n(x) run\n"),
    "a row of 10^6 columns": lambda: b"0," * 10**6 + b"0\n",
}


def attempt(name: str, path: Path) -> None:
    """Read a file; nothing but a message for a person may come of what cannot be read."""
    with watchdog():
        try:
            reader(name)(path)
        except DigitsError as error:
            assert str(path.parent) in str(error)
            assert len(str(error)) < 1000
        except FileNotFoundError as error:  # IDX's labels, which a command names as well
            assert "labels-idx1" in str(error.filename)


@pytest.mark.parametrize("name", READERS)
def test_what_never_ends_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe-images-idx3-ubyte").symlink_to("pipe")
    for device in ("zero", "urandom"):
        for ending in ("", "-images-idx3-ubyte"):
            (tmp_path / f"{device}{ending}").symlink_to(f"/dev/{device}")
    for file in ("pipe", "zero", "urandom"):
        with watchdog(), pytest.raises(DigitsError, match="is not a regular file"):
            reader(name)(tmp_path / file)


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_every_reader_ends_with_a_message(tmp_path: Path, bomb: str) -> None:
    for name in READERS[:-1]:  # inspect reads as score does
        path = tmp_path / name / "file"
        path.parent.mkdir()
        path.write_bytes(BOMBS[bomb]())
        (path.parent / "file-images-idx3-ubyte").symlink_to("file")
        attempt(name, path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet", ".zip", ".tar", ".idx", ".png"])
def test_damaged_files_end_with_a_message(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "valid").mkdir()
    whole = valid(tmp_path / "valid")[suffix]
    path = tmp_path / "file"
    (tmp_path / "file-images-idx3-ubyte").symlink_to("file")
    for seed in range(8):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        for name in READERS[:-1]:
            attempt(name, path)


@pytest.mark.slow
def test_the_endpoint_ends_as_soon() -> None:
    for make in BOMBS.values():
        data = make()
        with watchdog():
            for body in (data, b'{"data": "' + data[:1000].hex().encode() + b'"}'):
                with pytest.raises(RefusedError):
                    decode(body[:10_000_000], 28, READER)
