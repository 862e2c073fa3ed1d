"""Real digits on disk: IDX files and archives in the layouts that params.yaml shows."""

import dataclasses
import gzip
import io
import struct
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from archives import png, write_tar, write_zip
from conftest import MNIST_FILES, mnist_part
from PIL import Image

from core.errors import DigitsError
from digits.runtime.normalise import normalise
from digits.sources.archives import Archive, read_archive
from digits.sources.idx import read_idx
from digits.sources.readers import Files, read

MAGIC = b"\x00\x00\x08\x03"  # of an IDX file of bytes in three dimensions


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def test_mnists_own_files_are_read() -> None:
    images = read_idx(MNIST_FILES / "t10k-images-idx3-ubyte", dimensions=3)
    labels = read_idx(MNIST_FILES / "t10k-labels-idx1-ubyte", dimensions=1)
    assert images.shape == (10_000, 28, 28)
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_idx_files_become_digits(tmp_path: Path) -> None:
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8)
    write_idx(tmp_path / "mine-images-idx3-ubyte", images)
    write_idx(tmp_path / "mine-labels-idx1-ubyte", np.array([1, 0], np.uint8))
    files = Files("idx", train="mine", test="mine")
    digits = read(files, tmp_path, "train", 8, "ab", "devanagari")
    assert np.array_equal(digits.images, images)
    assert (digits.labels.tolist(), digits.script, digits.rendered) == ([1, 0], "devanagari", False)
    larger = read(files, tmp_path, "train", 28, "ab", "devanagari")
    assert np.array_equal(larger.images, normalise(images, 28))
    write_idx(tmp_path / "mine-labels-idx1-ubyte", np.array([1, 2], np.uint8))
    with pytest.raises(DigitsError, match=r"image 1: label '2' is neither a number from 0 to 1"):
        read(files, tmp_path, "train", 8, "ab", "devanagari")
    write_idx(tmp_path / "mine-labels-idx1-ubyte", np.array([1], np.uint8))
    with pytest.raises(DigitsError, match=r"mine-labels-idx1-ubyte: 2 images but 1 labels"):
        read(files, tmp_path, "train", 8, "ab", "devanagari")


def test_idx_files_as_they_are_downloaded_are_read(tmp_path: Path) -> None:
    digits = mnist_part("train", 50)
    write_idx(tmp_path / "images", digits.images)
    write_idx(tmp_path / "labels", digits.labels)
    for name, source in (("images-idx3", "images"), ("labels.idx1", "labels")):
        packed = gzip.compress((tmp_path / source).read_bytes())
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(packed)
    found = read(Files("idx", "train", "train"), tmp_path, "train", 28, "0123456789", "mnist")
    assert np.array_equal(found.images, digits.images)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress((tmp_path / "images").read_bytes())[:-50]
    )
    with pytest.raises(DigitsError, match=r"ubyte\.gz: is corrupted"):
        read(Files("idx", "train", "train"), tmp_path, "train", 28, "0123456789", "mnist")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08\x01" + bytes(12), "begins with 00000801 instead of 00000803"),
        (MAGIC + bytes(2), "truncated in its header"),
        (
            b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 4, 4) + bytes(31),
            "has 47 bytes, its header says 48",
        ),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", *[2**32 - 1] * 3), "expected at most"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 4, 4) + bytes(33), "has more bytes"),
    ],
)
def test_a_bad_idx_file_is_reported(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(DigitsError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


DHCD = Archive(
    format="archive",
    train=("*/Train/digit_{class}/*.png",),
    test=("*/Test/digit_{class}/*.png",),
    names=("0", "1", "2"),
    ink="white",
)
KANJI = Archive(
    format="archive",
    train=("*input_[1-7]_*_{class}.jpg",),
    test=("*input_[89]_*_{class}.jpg",),
    names=("1", "2", "3"),
    ink="black",
)


def test_an_archive_of_class_folders_is_read(tmp_path: Path) -> None:
    root = "DevanagariHandwrittenCharacterDataset"
    files = {
        f"{root}/{part}/digit_{label}/{number}.png": png(number, 32 + number)
        for part, count in (("Train", 3), ("Test", 1))
        for label in range(3)
        for number in range(count)
    } | {f"{root}/Train/character_1_ka/1.png": b"no digit, not looked at"}
    write_zip(tmp_path / "dhcd.zip", files)
    write_tar(tmp_path / "dhcd.tar.gz", files)
    train = read_archive(DHCD, tmp_path / "dhcd.zip", "train", 28, 3, "devanagari")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(read_archive(DHCD, tmp_path / "dhcd.zip", "test", 28, 3, "devanagari")) == 3
    ink = train.images[0].any(axis=1)
    assert ink.sum() == 20  # normalised as MNIST was
    from_tar = read_archive(DHCD, tmp_path / "dhcd.tar.gz", "train", 28, 3, "devanagari")
    assert np.array_equal(from_tar.images, train.images)


def test_classes_in_file_names_and_black_ink(tmp_path: Path) -> None:
    files = {
        f"data/input_{writer}_1_{code}.jpg": png(0, 64, ink=0)
        for writer in (1, 8)
        for code in (1, 2, 3)
    }
    write_zip(tmp_path / "kanji.zip", files)
    train = read_archive(KANJI, tmp_path / "kanji.zip", "train", 28, 3, "japanese")
    assert train.labels.tolist() == [0, 1, 2]
    assert train.images[0, 14, 14] == 255
    assert train.images[0, 0, 0] == 0


def test_idx_files_without_images_are_reported(tmp_path: Path) -> None:
    write_idx(tmp_path / "mine-images-idx3-ubyte", np.empty((0, 28, 28), np.uint8))
    write_idx(tmp_path / "mine-labels-idx1-ubyte", np.empty(0, np.uint8))
    with pytest.raises(DigitsError, match="mine: holds no image"):
        read(Files("idx", "mine", "mine"), tmp_path, "train", 28, "0123456789", "mnist")


@pytest.mark.parametrize("kind", ["grey", "transparent", "16 bits"])
@pytest.mark.parametrize("ink", ["white", "black"])
def test_every_kind_of_png_is_read_alike(
    tmp_path: Path, kind: str, ink: Literal["white", "black"]
) -> None:
    shape = np.zeros((32, 32), np.uint8)
    shape[4:28, 6:10] = shape[24:28, 6:20] = 255  # an L
    grey = shape if ink == "white" else 255 - shape
    picture = Image.fromarray(grey)
    if kind == "transparent":
        picture = Image.new("L", (32, 32), ink)  # what is not to be seen has the ink's colour too
        picture.putalpha(Image.fromarray(shape))
    if kind == "16 bits":
        picture = Image.fromarray(grey.astype(np.uint16) * 200 + 3000)
    out = io.BytesIO()
    picture.save(out, "PNG")
    write_zip(tmp_path / "a.zip", {f"x/Train/digit_{n}/0.png": out.getvalue() for n in range(3)})
    archive = dataclasses.replace(DHCD, ink=ink)
    found = read_archive(archive, tmp_path / "a.zip", "train", 28, 3, "devanagari").images[0]
    assert 40 < np.count_nonzero(found > 128) < 200  # of 400 where it would be a filled square


@pytest.mark.parametrize("data", [b"no image", png(0, 32)[:60]], ids=["broken", "cut"])
def test_a_bad_image_is_reported(tmp_path: Path, data: bytes) -> None:
    write_zip(tmp_path / "a.zip", {"x/Train/digit_0/0.png": data})
    with pytest.raises(DigitsError, match=r"zip: x/Train/digit_0/0\.png: is not a picture of"):
        read_archive(DHCD, tmp_path / "a.zip", "train", 28, 3, "devanagari")


def test_a_blank_image_is_reported(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("L", (32, 32)).save(out, "PNG")
    write_zip(tmp_path / "a.zip", {"x/Train/digit_0/0.png": out.getvalue()})
    with pytest.raises(DigitsError, match=r"0\.png: is not a picture of a digit: the image"):
        read_archive(DHCD, tmp_path / "a.zip", "train", 28, 3, "devanagari")


def test_a_class_without_images_is_reported(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"x/Train/digit_0/0.png": png(0, 32)})
    with pytest.raises(DigitsError, match=r"no image matches \*/Train/digit_1/\*\.png"):
        read_archive(DHCD, tmp_path / "a.zip", "train", 28, 3, "devanagari")


def damaged(path: Path, compression: str) -> None:
    """Write an archive of three digits whose middle is overwritten."""
    files = {f"x/Train/digit_{label}/0.png": png(label, 32) for label in range(3)}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", {"deflate": 8, "lzma": 14}[compression]) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        place, wrong = 60, b"\xff" * 30
    else:
        write_tar(path, files, compression)
        data = path.read_bytes()
        # of a plain .tar the second digit's header, of a compressed one what the checksum is over
        place, wrong = (1024, b"?" * 512) if compression == "" else (len(data) // 2, b"\xff" * 9)
    data = path.read_bytes()
    path.write_bytes(data[:place] + wrong + data[place + len(wrong) :])


@pytest.mark.parametrize(
    ("suffix", "compression"),
    [(".tar", ""), (".tar", "gz"), (".tar", "xz"), (".zip", "deflate"), (".zip", "lzma")],
)
def test_a_damaged_archive_is_reported(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"a{suffix}"
    damaged(path, compression)
    with pytest.raises(DigitsError, match=r"a\.(zip|tar): is not a valid"):
        read_archive(DHCD, path, "train", 28, 3, "devanagari")


@pytest.mark.parametrize(("compression", "missing"), [("", 10_240), ("", 10_000), ("gz", 9)])
def test_a_tar_cut_short_is_reported(tmp_path: Path, compression: str, missing: int) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"x/Train/digit_{n % 3}/{n}.png": png(n, 32) for n in range(9)}, compression)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(DigitsError, match=r"a\.tar: is not a valid"):
        read_archive(DHCD, path, "train", 28, 3, "devanagari")


def test_what_is_no_archive_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(DigitsError, match="is not a valid"):
        read_archive(DHCD, tmp_path / "a.zip", "train", 28, 3, "devanagari")
    with pytest.raises(DigitsError, match="3 entries for 10 classes"):
        read_archive(DHCD, tmp_path / "a.zip", "train", 28, 10, "devanagari")
