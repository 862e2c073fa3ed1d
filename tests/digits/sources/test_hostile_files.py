"""Hostile files: every reader ends, in bounded memory, with the digits or with a message.

The readers are those of params.yaml's formats and of `digits score`, and the decoders those of
picture.py, so a new one is covered too. The endpoint gets each file in every form of a request.
"""

import base64
import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import tarfile
import typing
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from archives import write_tar
from conftest import ROOT, mnist_part
from PIL import Image
from pyarrow import parquet

from core import tables
from core.dataset import write_csv
from core.errors import DigitsError
from digits.production import records, scoring
from digits.serving.picture import SIGNATURES
from digits.serving.request import BODY_BYTES, IMAGES, LARGE
from digits.sources import archives
from digits.sources.archives import Archive
from digits.sources.inspect import inspect
from digits.sources.readers import Files, read
from digits.sources.unlabelled import read_any

CLASSES = tuple("0123456789")
HANG_SECONDS = 30  # of processor time, and five times as long of waiting: only a hang lasts longer
MEMORY = 700_000_000  # bytes that reading any of these files may need
FORMATS = typing.get_args(Files.__dataclass_fields__["format"].type)
DIGITS = mnist_part("train", 40)


@contextlib.contextmanager
def watchdog() -> Iterator[None]:
    """Raise TimeoutError in what hangs; fail what needs more memory than MEMORY."""

    def stop(*_: object) -> None:
        raise TimeoutError

    kinds = ((signal.SIGVTALRM, signal.ITIMER_VIRTUAL, 1), (signal.SIGALRM, signal.ITIMER_REAL, 5))
    for number, timer, times in kinds:
        signal.signal(number, stop)
        signal.setitimer(timer, HANG_SECONDS * times)
    before = peak(reset=True)
    try:
        yield
    finally:
        for number, timer, _ in kinds:
            signal.setitimer(timer, 0)
            signal.signal(number, signal.SIG_DFL)
    assert peak() - before < MEMORY


def peak(reset: bool = False) -> int:
    """Return the largest memory of this process, bytes, since it was reset; Linux only."""
    if sys.platform != "linux":
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


class Pool:
    """Takes the place of the processes that score: what counts here is the one that reads."""

    def submit(self, *_: Any) -> Future:
        """Return what is done."""
        done: Future = Future()
        done.set_result(1)
        return done


def score(path: Path) -> None:
    """Read a file as `digits score` does."""
    out = path.parent / "answers"
    source = path if scoring.is_native(path, 28) else out / "converted.parquet"
    if source != path:
        scoring.convert(path, source, 28)
    list(scoring._score(typing.cast(Any, Pool()), source, out, {}, 28))


def reader(name: str) -> Callable[[Path], object]:
    """Return what reads a file by the name of its reader."""
    if name == "score":
        return score
    if name == "monitor":
        return lambda path: list(records.read(path, records.REQUESTS))
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


READERS = [*FORMATS, "archive", "score", "monitor", "inspect"]


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(DIGITS.images[0]).save(out, kind)
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
    return found | {".idx": idx} | {f".{kind}": picture(kind) for kind in PICTURES}


def npy(shape: tuple[int, ...], kind: str, version: bytes = b"\1\0") -> bytes:
    """Return an .npz whose only array promises a shape, and holds nothing."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}) + "\n"
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return packed("x.npy", b"\x93NUMPY" + version + length + text.encode())


def packed(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def declaring(archive: bytes, size: int) -> bytes:
    """Return a .zip whose directory declares a size of its first file."""
    place = archive.index(b"PK\1\2") + 24
    return archive[:place] + struct.pack("<I", size) + archive[place + 4 :]


def tar(
    size: bytes, kind: bytes = b"0", content: bytes = b"", name: bytes = b"own/1/1.png"
) -> bytes:
    """Return a .tar of one header, whose size is 12 bytes at will."""
    head = bytearray(tarfile.BLOCKSIZE)
    head[: len(name)], head[124:136], head[156:157] = name, size, kind
    head[257:265] = b"ustar\x0000"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + content


def pax(text: bytes) -> bytes:
    """Return a .tar of an extended header and of a file after it."""
    line = next(b"%d %s\n" % (n, text) for n in range(9999) if len(b"%d %s\n" % (n, text)) == n)
    content = line + bytes(-len(line) % tarfile.BLOCKSIZE)
    return tar(b"%011o\0" % len(line), b"x", content) + tar(b"%011o\0" % 0)


def sparse_1_0(pairs: int) -> bytes:
    """Return a .tar of a file whose content begins with a map of so many pairs (GNU sparse 1.0)."""
    names = (b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=1")
    lines = b"".join(b"%d %s\n" % (len(name) + 4, name) for name in names)
    body = b"%d\n" % pairs + b"0\n" * (2 * pairs)
    body += bytes(-len(body) % tarfile.BLOCKSIZE)
    head = tar(b"%011o\0" % len(lines), b"x", lines.ljust(tarfile.BLOCKSIZE, b"\0"))
    return head + tar(b"%011o\0" % len(body), content=body) + bytes(2 * tarfile.BLOCKSIZE)


def sparse_old(blocks: int) -> bytes:
    """Return a .tar of a sparse file whose map goes on for so many blocks (GNU's old format)."""
    head = bytearray(tar(b"%011o\0" % 0, b"S"))
    head[482], head[483:495] = 1, b"%011o\0" % 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    more = (b"%011o\0" % 1) * 42 + b"\1" + bytes(7)
    return bytes(head) + more * blocks + bytes(3 * tarfile.BLOCKSIZE)


def of_parquet(image: pa.Array, **options: Any) -> bytes:
    """Return Parquet with a column `image`."""
    out = io.BytesIO()
    table = pa.table({"image": image}).replace_schema_metadata({})
    parquet.write_table(table, out, store_schema=False, **options)
    return out.getvalue()


def repeated(value: bytes, count: int) -> bytes:
    """Return Parquet with an image that is stored once, after one of the right size."""
    index = pa.array([0] + [1] * count, pa.int32())
    return of_parquet(pa.DictionaryArray.from_arrays(index, pa.array([bytes(784), value])))


def zeros_in_a_list(count: int, declared: int | None = None) -> bytes:
    """Return Parquet with one list of zeros, which takes 600 bytes; its footer may lie."""
    flat = pa.array(np.zeros(count, np.uint8))
    whole = of_parquet(pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), flat))
    length = struct.unpack("<I", whole[-8:-4])[0]
    footer = whole[-8 - length : -8]
    if declared is not None:
        new = b"".join(bytes([2 * declared >> 7 * n & 127 | 128]) for n in range(3))
        footer = footer.replace(varint(2 * count), new + bytes(len(varint(2 * count)) - 3))
    return whole[: -8 - length] + footer + whole[-8:]


def varint(number: int) -> bytes:
    """Return a whole number as Thrift writes it: seven bits a byte."""
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP of chunks."""
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp(side: int, frames: int) -> bytes:
    """Return an animated WebP of a large canvas and small frames."""
    out = io.BytesIO()
    Image.fromarray(DIGITS.images[0]).convert("RGB").save(out, "WEBP")
    canvas = struct.pack("<I", side - 1)[:3] * 2
    frame = bytes(6) + b"\x1b\0\0" * 2 + bytes(4) + out.getvalue()[12:]
    return riff((b"VP8X", b"\2\0\0\0" + canvas), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * frames)


def scans(side: int, size: int) -> bytes:
    """Return a progressive JPEG that repeats its last scan up to a size in bytes."""
    out = io.BytesIO()
    image = Image.fromarray(DIGITS.images[0]).resize((side, side))
    image.save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scan * (size // len(scan)) + whole[-2:]


def gif(blocks: bytes) -> bytes:
    """Return a GIF with blocks before its picture."""
    out = io.BytesIO()
    Image.fromarray(DIGITS.images[0]).save(out, "GIF")
    data = out.getvalue()
    start = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 128 else 0)
    return data[:start] + blocks + data[start:]


def bmp(compression: int, pixels: bytes, width: int = 5000, height: int = 5000) -> bytes:
    """Return a BMP of 8 bits a pixel."""
    size, place = len(pixels), 14 + 40 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, size, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", place + size, 0, 0, place) + head + bytes(1024) + pixels


def in_png(*chunks: bytes, side: int = 28) -> bytes:
    """Return a PNG of a digit with chunks before its pixels."""
    whole = png(np.asarray(Image.fromarray(DIGITS.images[0]).resize((side, side))))
    return whole[:33] + b"".join(chunks) + whole[33:]


def in_jpeg(marker: int, content: bytes, count: int) -> bytes:
    """Return a JPEG of a digit with blocks of this content."""
    whole = picture("JPEG")
    block = struct.pack(">HH", marker, len(content) + 2) + content
    return whole[:2] + block * count + whole[2:]


def exif(tags: int, size: int) -> bytes:
    """Return Exif of tags that all have the same content of a size."""
    entries = b"".join(struct.pack(">HHLL", tag, 7, size, 0) for tag in range(1, tags + 1))
    found = b"MM\0*" + struct.pack(">LH", 8, tags) + entries + bytes(4)
    return found + bytes(max(0, size - len(found)))


def frames(side: int, step: int) -> bytes:
    """Return a PNG of frames in frames: of all pictures tried the slowest to find a digit in."""
    image = np.full((side, side), 255, np.uint8)
    for n in range(0, side // 2, step):
        image[[n, side - 1 - n], n : side - n] = image[n : side - n, [n, side - 1 - n]] = 0
    return png(image)


def squares(side: int, size: int) -> bytes:
    """Return a PNG of squares at random, a third of the picture."""
    some = np.random.default_rng(0).random((-(-side // size),) * 2) < 0.3
    image = np.where(np.kron(some, np.ones((size, size))) > 0, 0, 255)
    return png(image[:side, :side].astype(np.uint8))


ZEROS = bytes(51_000_000)  # more than a picture may have
MEGABYTE = b"\0\0" + zlib.compress(bytes(10**6))  # in a chunk of a PNG
HEADER = ",".join(["label", *(f"pixel{number}" for number in range(784))]).encode() + b"\n"
IDX = bytes((0, 0, 8, 3))
PICTURES: dict[str, dict[str, Callable[[], bytes]]] = {  # of each decoder
    "PNG": {
        "a picture of 2^62 pixels": lambda: (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 31, 1 << 31, 8, 0, 0, 0, 0))
        ),
        "a PNG of 4,900 colour profiles": lambda: in_png(chunk(b"iCCP", b"a" + MEGABYTE) * 4900),
        "a PNG of 4,900 texts without a name": lambda: in_png(chunk(b"zTXt", MEGABYTE) * 4900),
        "a PNG of 2,000 tags of a megabyte": lambda: in_png(chunk(b"eXIf", exif(2000, 10**6))),
        "a PNG of 4,900 palettes": lambda: in_png(chunk(b"PLTE", bytes(768)) * 4900),
        "a PNG of frames": lambda: frames(500, 4),
        "a PNG of squares": lambda: squares(250, 5),
        "a PNG of squares up to which it counts as cropped": lambda: squares(128, 4),
    },
    "JPEG": {
        "a JPEG of nothing but fill bytes": lambda: b"\xff\xd8" + b"\xff" * 5_000_000,
        "a JPEG of 5,000 tags": lambda: in_jpeg(0xFFE1, b"Exif\0\0" + exif(5000, 65_000), 1),
        "a JPEG of 110 blocks of Exif": lambda: in_jpeg(0xFFE1, b"Exif\0\0" + bytes(65_000), 110),
        "a JPEG of an index of 5,000 pictures": lambda: in_jpeg(
            0xFFE2, b"MPF\0" + exif(5000, 65_000), 1
        ),
        "a JPEG of empty resources": lambda: in_jpeg(
            0xFFED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5400, 110
        ),
        "a JPEG of 100,000 tables": lambda: in_jpeg(0xFFDB, bytes(65) * 1000, 110),
        "a JPEG of scans of one pixel": lambda: scans(8, 9_000_000),
    },
    "GIF": {
        "a GIF of comments of one byte": lambda: gif(b"\x21\xfe" + b"\1a" * 4_000_000 + b"\0"),
        "a GIF of empty blocks": lambda: gif(b"\x21\xfe\0" * 700_000),
    },
    "BMP": {
        "a compressed BMP of single pixels": lambda: bmp(1, b"\1\5" * 4_000_000),
        "a compressed BMP of empty lines": lambda: bmp(1, bytes(8_000_000)),
        "a BMP of 2^60 pixels": lambda: bmp(0, b"", 1 << 30, -(1 << 30)),
    },
    "WEBP": {
        "a WebP of 2^28 pixels": lambda: webp(1 << 14, 3),
        "a WebP of 50,000 frames": lambda: webp(28, 50_000),
        "a WebP of 2,000 tags of a megabyte": lambda: riff(
            (b"VP8X", b"\x08\0\0\0" + b"\x1b\0\0" * 2),
            (b"VP8 ", picture("WEBP")[20:]),
            (b"EXIF", exif(2000, 10**6)),
        ),
    },
}
LONG_NAMES = {
    "bz2": lambda: bz2.compress(tar(b"%011o\0" % len(ZEROS), b"x", ZEROS)),
    "xz": lambda: lzma.compress(tar(b"%011o\0" % len(ZEROS), b"x", ZEROS), preset=0),
}
BOMBS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a line feed": lambda: b"\n" * 1000,
    "zeros": lambda: ZEROS[:5_000_000],
    "zeros in gzip": lambda: gzip.compress(ZEROS, 1),
    "line feeds in gzip": lambda: gzip.compress(HEADER + b"\n" * 50_000_000, 1),
    "one line in gzip": lambda: gzip.compress(HEADER + b"0," * 20_000_000, 1),
    "a long label in gzip": lambda: gzip.compress(
        HEADER + (b"0," * 784 + b"0\n") * 2000 + b"a" * 4_000_000 + b",0" * 784 + b"\n", 1
    ),
    "ones without an end": lambda: HEADER + b"1" * 5_000_000,
    "zeros as a CSV in a zip": lambda: packed("a.csv", ZEROS),
    "a large picture in a zip": lambda: packed("own/1/1.png", ZEROS),
    "a large file that is no picture": lambda: packed("other.bin", ZEROS),
    "a zip that declares 4 GB": lambda: declaring(packed("own/1/1.png", ZEROS), (1 << 32) - 2),
    "an array of 8 TB": lambda: npy((10**5, 10**4, 1000), "|u1"),
    "an array of 20 GB": lambda: npy((2 * 10**4, 1000, 1000), "|u1"),
    "an array that its zip declares as 4 GB": lambda: declaring(
        npy((5000, 900, 900), "|u1"), (1 << 32) - 2
    ),
    "an array of a newer version": lambda: npy((10, 28, 28), "|u1", b"\2\0"),
    "an array of nothing": lambda: npy((0, 28, 28), "|u1"),
    "an array without a shape": lambda: npy((), "<f8"),
    "an array of objects": lambda: npy((10, 28, 28), "|O"),
    "an array of long texts": lambda: npy((10, 28), "<U10000000"),
    "IDX of 2^96": lambda: IDX + b"\xff" * 12,
    "IDX of 3 GB in gzip": lambda: gzip.compress(IDX + struct.pack(">3I", 4000, 900, 900), 1),
    "IDX of nothing": lambda: IDX + bytes(12),
    "IDX in gzip that goes on": lambda: gzip.compress(
        IDX + struct.pack(">3I", 1, 28, 28) + ZEROS, 1
    ),
    "a value of Parquet in many rows": lambda: repeated(bytes(900 * 900), 3000),
    "a .tar with a name of 50 MB": lambda: gzip.compress(
        tar(b"%011o\0" % len(ZEROS), b"x", ZEROS), 1
    ),
    "a .tar with a long name of 50 MB": lambda: gzip.compress(
        tar(b"%011o\0" % len(ZEROS), b"L", ZEROS), 1
    ),
    "a .tar with a name of negative size": lambda: gzip.compress(tar(b"\xff" * 12, b"x", ZEROS), 1),
    "a .tar with a file of negative size": lambda: pax(b"size=-1024"),
    "a .tar with a file of 2^80 bytes": lambda: tar(b"\x80" + b"\xff" * 11),
    "a .tar that goes on": lambda: gzip.compress(tar(b"%011o\0" % 0) + ZEROS, 1),
    **{f"a .tar.{name} with a name of 50 MB": pack for name, pack in LONG_NAMES.items()},
    "a .tar with a sparse map": lambda: gzip.compress(sparse_1_0(1_000_000)),
    "a .tar with an old sparse map": lambda: gzip.compress(sparse_old(20_000)),
    "Parquet without rows": lambda: of_parquet(pa.array([], pa.binary())),
    "Parquet of empty lists": lambda: of_parquet(pa.array([[]] * 3, pa.list_(pa.int8()))),
    "Parquet of times": lambda: of_parquet(pa.array([1, 2], pa.timestamp("s"))),
    "an array of empty texts": lambda: npy((10, 28, 28), "|S0"),
    "a name of many figures": lambda: packed("1" * 5000 + "/1.png", b"x"),
    "PostScript": lambda: packed("own/1/1.png", b"%!PS\n(x) run\n"),
    "a row of 10^6 columns": lambda: b"0," * 10**6 + b"0\n",
}
for found in PICTURES.values():
    BOMBS |= found
SUFFIXES = [".csv", ".npz", ".parquet", ".zip", ".tar", ".idx", *(f".{kind}" for kind in PICTURES)]


def test_each_decoder_has_hostile_pictures() -> None:
    assert set(PICTURES) == {*SIGNATURES.values(), "WEBP"}


def attempt(name: str, path: Path) -> None:
    """Read a file; nothing but a message for a person may come of what cannot be read."""
    with watchdog():
        try:
            reader(name)(path)
        except DigitsError as error:
            assert str(path.parent) in str(error)
            assert len(str(error)) < 1000 and "\n" not in str(error)
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


@pytest.mark.parametrize(
    "bomb",
    [  # every third in `make test`
        pytest.param(name, marks=pytest.mark.prove if number % 3 else pytest.mark.slow)
        for number, name in enumerate(BOMBS)
    ],
)
def test_every_reader_ends_with_a_message(tmp_path: Path, bomb: str) -> None:
    for name in READERS:
        path = tmp_path / name / "file"
        path.parent.mkdir()
        path.write_bytes(BOMBS[bomb]())
        (path.parent / "file-images-idx3-ubyte").symlink_to("file")
        attempt(name, path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
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


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such limit")
@pytest.mark.parametrize("name", ["parquet", "score"])
def test_a_header_that_lies_is_stopped_by_the_memory_that_reading_may_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tables, "MEMORY", 100_000_000)
    path = tmp_path / "file"
    path.write_bytes(zeros_in_a_list(50_000_000, declared=20))
    with watchdog(), pytest.raises(DigitsError, match="needs over 100,000,000 bytes"):
        reader(name)(path)


@pytest.mark.parametrize("data", [sparse_1_0(4), sparse_old(2)], ids=["1.0", "old"])
def test_sparse_files_are_refused_without_reading_their_map(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DigitsError, match="sparse files"):
        reader("archive")(path)


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such limit")
@pytest.mark.parametrize("soft", [2_000_000_000, 3_000_000_000])
def test_a_limit_of_memory_that_is_there_stays(tmp_path: Path, soft: int) -> None:
    code = (
        "import resource as r; from pathlib import Path\n"
        f"limits = ({soft}, 3_000_000_000); r.setrlimit(r.RLIMIT_AS, limits)\n"
        "from core.tables import limited_memory\n"
        "with limited_memory(Path('x')): assert r.getrlimit(r.RLIMIT_AS) == limits\n"
        "assert r.getrlimit(r.RLIMIT_AS) == limits\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such limit")
@pytest.mark.parametrize("pack", LONG_NAMES.values(), ids=LONG_NAMES)
def test_a_packed_name_takes_no_memory_before_it_is_refused(
    tmp_path: Path, pack: Callable[[], bytes]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack())
    before = peak(reset=True)
    with pytest.raises(DigitsError, match="declares 51,000,000 bytes"):
        scoring.convert(path, tmp_path / "out", 28)
    assert scoring.is_native(path, 28) is False
    assert peak() - before < len(ZEROS) // 2


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("csv", HEADER + (b"0" + b",1" * 784 + b"\n") * 50, "has more than 10,000 bytes"),
        ("csv", gzip.compress(HEADER + b"\n" * 30_000_000), "has over 10,000,000 bytes unpacked"),
        ("npz", packed("x.npy", bytes(10_001)), "at most .* 10,000 bytes, found 0 and 10,001"),
        ("idx", IDX + struct.pack(">3I", 20, 28, 28), "at most .* found 20 and 15,680"),
        ("parquet", repeated(bytes(784), 20), "at most .* found 21 and 16,464"),
        ("parquet", zeros_in_a_list(2000), "at most .* found 1 and 16,000"),
    ],
)
def test_what_a_file_declares_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: bytes, said: str
) -> None:
    monkeypatch.setattr(tables, "BYTES", 10_000)
    monkeypatch.setattr(tables, "UNPACKED_BYTES", 10_000_000)
    monkeypatch.setattr(archives, "BYTES", 10_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    (tmp_path / "file-images-idx3-ubyte").symlink_to("file")
    with pytest.raises(DigitsError, match=said):
        reader(kind)(path)


@pytest.mark.parametrize(
    "data",
    [
        packed("own/1/1.png", bytes(100_000)),
        gzip.compress(tar(b"%011o\0" % 10**6, content=bytes(2_000_000))),
        gzip.compress(tar(b"%011o\0" % 0, content=bytes(2_000_000))),
    ],
    ids=["zip", "tar of a large file", "tar that goes on"],
)
def test_what_an_archive_unpacks_to_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 3_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DigitsError, match=r"at most .* bytes, found"):
        reader("archive")(path)


@pytest.mark.parametrize("name", ["archive", "parquet", "score"])
def test_the_more_pictures_there_are_the_smaller_they_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(archives, "ANY_SIZE", 4)
    monkeypatch.setattr(archives, "SIDE_PIXELS", 100)
    large = [png(np.kron(image, np.ones((2, 2), np.uint8))) for image in DIGITS.images[:13]]
    files = {f"{number}/1.png": data for number, data in enumerate(large)}
    path = tmp_path / "file"
    for count in (12, 13):  # 100 * (4 / 12) ** 0.5 is 57, and 100 * (4 / 13) ** 0.5 is 55
        if name == "archive":
            write_tar(path, dict(list(files.items())[:count]))
        else:
            path.write_bytes(of_parquet(pa.array(large[:count])))
        if count == 12:
            read_any(path, 28)
        else:
            with pytest.raises(DigitsError, match="has 56 x 56 pixels; send at most 55 a side"):
                reader(name)(path)


FORM = b'--b\r\nContent-Disposition: form-data; name="'
FORMS: dict[str, bytes] = {
    "a form of quotes": FORM + b'\\"' * 4_000_000 + b'"\r\n\r\n1\r\n--b--\r\n',
    "a form of options": FORM + b'f"' + b"; a=b" * 1_900_000 + b"\r\n\r\n1\r\n--b--\r\n",
    "a form of headers": FORM + b'f"\r\n' + b"A: b\r\n" * 1_500_000 + b"\r\n1\r\n--b--\r\n",
    "a form of quotes in its second part": (
        FORM + b'f"\r\n\r\n1\r--b\r\n' + FORM[5:] + b'\\"' * 4_000_000 + b'"\r\n\r\n1\r\n--b--\r\n'
    ),
    "a form of quotes between boundaries": FORM + (b'\\"' * 3900 + b"\r\n--b") * 1200,
    "a form of a boundary without an end": b"--content-disposition" + b"b" * 9_000_000,
    "a form of spaces": FORM + b'f"\r\n\r\n1\r\n--b' + b" " * 9_000_000,
}


def requests(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a file in each form of a request, cut off at ten megabytes."""
    data = data[:BODY_BYTES]
    text = base64.b64encode(data[:7_000_000])
    yield f"{name}, alone", data
    yield f"{name}, in gzip", gzip.compress(data, 1)
    yield f"{name}, in a form", FORM + b'f"; filename="f"\r\n\r\n' + data[:-200] + b"\r\n--b--\r\n"
    yield f"{name}, in base64", text
    for count in (1, LARGE, IMAGES):
        fit = min(count, BODY_BYTES // (len(text) + 3) or 1)
        yield f"{name}, {fit} times in JSON", b'{"data":["' + b'","'.join([text] * fit) + b'"]}'


@pytest.mark.skipif(sys.platform != "linux", reason="others count neither time nor memory so")
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(
            [*PICTURES[kind]],
            marks=pytest.mark.slow if kind == "PNG" else pytest.mark.prove,
            id=kind,
        )
        for kind in PICTURES
    ]
    + [
        pytest.param([*FORMS], id="forms"),
        pytest.param(
            sorted({*BOMBS}.difference(*PICTURES.values())), marks=pytest.mark.prove, id="others"
        ),
    ],
)
def test_a_request_takes_a_bounded_time(names: list[str]) -> None:
    bodies = [
        request
        for name in names
        for request in (
            [(name, FORMS[name]), (f"{name}, in gzip", gzip.compress(FORMS[name], 1))]
            if name in FORMS
            else requests(name, BOMBS[name]())
        )
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "bounded.py"],
        input=pickle.dumps(bodies),
        capture_output=True,
    )
    last = done.stdout.decode().splitlines()[-1:]
    assert (done.returncode, last) == (0, ["all"]), done.stderr.decode()[-500:]
