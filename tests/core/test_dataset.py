"""CSV files, splits and `Digits`: round trips, and exact messages for invalid files."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import random_digits

from core.dataset import (
    Digits,
    as_bytes,
    concatenate,
    read_csv,
    read_split,
    write_csv,
    write_split,
)
from core.errors import DigitsError

HEADER = ",".join(["label", *(f"pixel{index}" for index in range(784))])
ROW = ",".join(["3", *["0"] * 784])


def read(path: Path) -> Digits:
    return read_csv(path, 28, 10, "mnist")


def test_csv_round_trip(tmp_path: Path) -> None:
    digits = random_digits(5000)  # more than one batch, more than one block
    write_csv(tmp_path / "digits.csv", digits)
    again = read(tmp_path / "digits.csv")
    assert np.array_equal(again.images, digits.images)
    assert np.array_equal(again.labels, digits.labels)
    assert list(tmp_path.iterdir()) == [tmp_path / "digits.csv"]


def test_csv_is_the_documented_text(tmp_path: Path) -> None:
    digits = random_digits(3, size=8)
    write_csv(tmp_path / "digits.csv", digits)
    lines = (tmp_path / "digits.csv").read_bytes().split(b"\n")
    assert lines[0] == b"label," + b",".join(b"pixel%d" % index for index in range(64))
    row = [digits.labels[1], *digits.images[1].reshape(-1)]
    assert lines[2] == ",".join(str(value) for value in row).encode()
    assert lines[4:] == [b""]


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "digits.csv").write_bytes(f"{HEADER}\r\n{ROW}\r\n".encode())
    assert read(tmp_path / "digits.csv").labels.tolist() == [3]


def changed(value: str, column: int = 5) -> str:
    """Return two rows, the second with another value in one column (0 is the label)."""
    cells = ROW.split(",")
    cells[column] = value
    return f"{HEADER}\n{ROW}\n{','.join(cells)}\n"


LABEL = ":3: column label: expected a whole number from 0 to 9, found"
PIXEL = ":3: column pixel4: expected a number from 0 to 255, found"
BAD = {
    "missing column": (f"{HEADER}\n{ROW}\n{ROW[:-2]}\n", ":3: expected 785 columns, found 784"),
    "extra column": (f"{HEADER}\n{ROW},0\n", ":2: expected 785 columns, found 786"),
    "missing header column": (f"{HEADER[:-9]}\n{ROW}\n", ":1: found 784 columns"),
    "label 10": (changed("10", 0), f"{LABEL} '10'"),
    "label -1": (changed("-1", 0), f"{LABEL} '-1'"),
    "label 1.5": (changed("1.5", 0), f"{LABEL} '1.5'"),
    "pixel 256": (
        changed("256"),
        f"{PIXEL} '256'",
    ),
    "pixel -1": (changed("-1"), f"{PIXEL} '-1'"),
    "pixel NaN": (
        changed("NaN"),
        f"{PIXEL} 'NaN'",
    ),
    "pixel nothing": (changed(""), f"{PIXEL} ''"),
    "pixel text": (changed("ink"), ":3: column pixel4: expected a number from 0 to 255"),
    "pixel infinite": (changed("1e999"), ":3: column pixel4: expected a number from 0 to 255"),
    "pixel of 200,000 letters": (changed("9" * 200_000), ":3: column pixel4: expected a number"),
    "empty file": ("", ":1: the first line is empty"),
    "truncated last row": (f"{HEADER}\n{ROW}\n{ROW[:300]}", ":3: expected 785 columns, found 151"),
    "header only": (f"{HEADER}\n", "has no rows"),
    "two million columns": ("label" + ",pixel" * 2_000_000 + "\n", ":1: found more than 699,051"),
    "two million values": (f"{HEADER}\n{ROW}{',0' * 2_000_000}\n", ":2: expected 785 columns"),
    "20 MB of digits in the first row": ("1" * 20_000_000, ":1: found more than 1 columns"),
    "20 MB in a row": (f"{HEADER}\n{'0' * 20_000_000}", ":2: expected 785 columns, found 1"),
    "dark on light": (f"{HEADER}\n{ROW.replace(',0', ',255')}\n", "the paper is light"),
    "no labels": (f"{HEADER[6:]}\n{ROW[2:]}\n", "has no column of labels"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_an_invalid_csv_is_reported_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "digits.csv"
    path.write_text(text)
    with pytest.raises(DigitsError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_images_of_0_and_1_become_black_and_white(kind: type) -> None:
    found, notes = as_bytes(np.eye(8, dtype=kind)[np.newaxis])
    assert found.dtype == np.uint8
    assert np.array_equal(found[0], 255 * np.eye(8))
    assert notes == ["values from 0 to 1 were multiplied by 255"]


def test_a_binary_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv"
    path.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(DigitsError, match="is not text"):
        read(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv"
    write_csv(path, random_digits(2))
    before = path.read_bytes()
    broken = random_digits(2)
    object.__setattr__(broken, "labels", None)
    with pytest.raises(Exception, match="None"):
        write_csv(path, broken)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_split_round_trip_and_same_bytes(tmp_path: Path) -> None:
    mnist = random_digits(20)
    drawn = Digits(mnist.images[:5], mnist.labels[:5], "japanese", True, 10)
    write_split(tmp_path / "a.npz", [mnist, drawn])
    write_split(tmp_path / "b.npz", [mnist, drawn])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:  # what Python's releases do differently
        marks = {(entry.create_version, entry.extract_version) for entry in archive.infolist()}
    assert marks == {(20, 20)}
    again = read_split(tmp_path / "a.npz", 10, 28)
    assert [(part.name, part.script, part.rendered) for part in again] == [
        ("mnist", "mnist", False),
        ("japanese_rendered", "japanese", True),
    ]
    assert np.array_equal(again[1].images, drawn.images)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other(data: bytes) -> bytes:
    return b"no split"


def no_archive(data: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def test_a_split_of_another_image_size_is_reported(tmp_path: Path) -> None:
    write_split(tmp_path / "split.npz", [random_digits(20, size=20)])
    with pytest.raises(DigitsError, match=r"images of 28 .*params\.yaml.*, found 20"):
        read_split(tmp_path / "split.npz", 10, 28)


def test_a_split_without_digits_is_reported(tmp_path: Path) -> None:
    write_split(tmp_path / "split.npz", [])
    with pytest.raises(DigitsError, match="contains no digits"):
        read_split(tmp_path / "split.npz", 10, 28)


@pytest.mark.parametrize("damage", [cut, other, no_archive])
def test_a_corrupted_split_is_reported(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "split.npz"
    write_split(path, [random_digits(20)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DigitsError, match=r"split\.npz: is corrupted"):
        read_split(path, 10, 28)


def test_digits_are_validated() -> None:
    good = random_digits(10)
    with pytest.raises(DigitsError, match="3 images but 2 labels"):
        Digits(good.images[:3], good.labels[:2], "mnist", False, 10)
    with pytest.raises(DigitsError, match="uint8"):
        Digits(good.images.astype(np.float32), good.labels, "mnist", False, 10)
    with pytest.raises(DigitsError, match=r"digit 9: expected a label from 0 to 8 .*, found 9"):
        Digits(good.images, good.labels, "mnist", False, 9)


def test_concatenated_digits_are_rendered_only_if_all_are() -> None:
    real = random_digits(3)
    drawn = Digits(real.images, real.labels, "mnist", True, 10)
    assert not concatenate([real, drawn]).rendered
    assert concatenate([drawn, drawn]).rendered
    assert len(concatenate([real, drawn])) == 6


@pytest.mark.parametrize("entries", [{}, {"format": np.array(99)}], ids=["before", "after"])
def test_a_split_of_another_version_is_reported(
    tmp_path: Path, entries: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "split.npz"
    digits = random_digits(3)
    arrays = {"mnist.images": digits.images, "mnist.labels": digits.labels} | entries
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DigitsError, match=r"split\.npz: was written by another version"):
        read_split(path, 10, 28)
