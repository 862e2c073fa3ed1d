"""`digits data inspect`: the block that it prints reads the digits; what is odd is said."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from archives import write_zip
from conftest import mnist_part
from PIL import Image

from core import params
from core.dataset import Digits, write_csv
from core.errors import DigitsError
from digits.sources import unlabelled
from digits.sources.inspect import READER, inspect
from digits.sources.readers import read_parts
from mlops.cli import call

CLASSES = tuple("0123456789")
DIGITS = mnist_part("train", 200)


def block(text: str, script: str = "mnist") -> tuple[Digits, Digits]:
    """Return what the printed block of params.yaml reads."""
    found = yaml.safe_load(text[text.index("For params.yaml:") :].partition("\n")[2])
    own = found["mnist"] if script == "mnist" else found["foreign"][script]
    reader = params.section(READER, {"reader": own["reader"]}, "reader")
    return read_parts(reader, Path(own["source"]), 28, CLASSES, script)


def by_label(digits: Digits) -> dict[int, set[bytes]]:
    return {
        label: {image.tobytes() for image in digits.images[digits.labels == label]}
        for label in range(10)
    }


def same(parts: tuple[Digits, Digits]) -> bool:
    """Return whether the two parts are all digits with their labels."""
    train, test = map(by_label, parts)
    return {label: train[label] | test[label] for label in train} == by_label(DIGITS)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def test_the_block_of_a_table_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv"
    write_csv(path, DIGITS)
    text = inspect(path, 28, CLASSES, "mnist")
    assert "csv, 200 images, 28 x 28, uint8" in text
    assert "labels: 0 (" in text
    assert same(block(text))
    write_csv(path, Digits(255 - DIGITS.images, DIGITS.labels, "mnist", False, 10))
    text = inspect(path, 28, CLASSES, "mnist")
    assert "black ink" in text
    assert same(block(text))
    write_csv(path, Digits(DIGITS.images.transpose(0, 2, 1), DIGITS.labels, "mnist", False, 10))
    text = inspect(path, 28, CLASSES, "mnist")
    assert "rows and columns seem to be exchanged" in text
    assert same(block(text))


def test_the_block_of_arrays_reads_them(tmp_path: Path) -> None:
    words = np.array(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    np.savez(tmp_path / "own.npz", images=DIGITS.images / 255, labels=words[DIGITS.labels])
    text = inspect(tmp_path / "own.npz", 28, CLASSES, "devanagari")
    assert "values from 0 to 1, white ink" in text
    assert "check that names has the labels in the order of classes" in text
    assert same(block(text, "devanagari"))


def test_both_parts_in_one_file_of_arrays_are_named(tmp_path: Path) -> None:
    train, test = DIGITS[:120], DIGITS[120:]
    arrays = {"x_train": train.images, "y_train": train.labels}
    np.savez(
        tmp_path / "mnist.npz", x_test=test.images, y_test=test.labels, allow_pickle=False, **arrays
    )
    text = inspect(tmp_path / "mnist.npz", 28, CLASSES, "mnist")
    assert "reader: {format: npz, train: mnist.npz, test: mnist.npz}" in text
    assert [len(part) for part in block(text)] == [120, 80]
    assert same(block(text))


def test_other_files_are_named_as_what_they_are(tmp_path: Path) -> None:
    write_zip(tmp_path / "scans.zip", {f"{number}/1.tif": b"II*\0" for number in range(10)})
    with pytest.raises(DigitsError, match=r"scans\.zip: holds no picture\. Expected \.png"):
        inspect(tmp_path / "scans.zip", 28, CLASSES, "mnist")
    np.save(tmp_path / "x.npy", DIGITS.images)
    with pytest.raises(DigitsError, match=r"x\.npy: the file is a NumPy file\. Convert it"):
        inspect(tmp_path / "x.npy", 28, CLASSES, "mnist")


def test_the_block_of_a_folder_names_both_parts(tmp_path: Path) -> None:
    for part, some in (("train", DIGITS[:100]), ("t10k", DIGITS[100:])):
        for name, array in (("images-idx3", some.images), ("labels-idx1", some.labels)):
            data = gzip.compress(idx(array))
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(data)
    text = inspect(tmp_path, 28, CLASSES, "mnist")
    assert "reader: {format: idx, train: train, test: t10k}" in text
    assert [len(part) for part in block(text)] == [100, 100]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("latest_train.csv", "latest_test.csv"),
        ("mnisttrain.csv", "mnisttest.csv"),
        ("train.csv", "dev.csv"),
        ("digits_training.csv", "digits_evaluation.csv"),
        ("own.csv", "holdout.csv"),
    ],
)
def test_test_data_is_known_by_its_name(tmp_path: Path, train: str, test: str) -> None:
    write_csv(tmp_path / train, DIGITS[:120])
    write_csv(tmp_path / test, DIGITS[120:])
    assert f"train: {train}, test: {test}" in inspect(tmp_path, 28, CLASSES, "mnist")


LAYOUTS = {
    "folders": "own/{label}/{number:04}.png",
    "folders with a word": "Set/digit_{label}/{number}.png",
    "train and test": "Set/{part}/digit_{label}/{number}.png",
    "names": "own/w{number:04}_{label}.png",
    "capitals": "{label}/{number}.PNG",
    "class, writer": "own/{label}/writer{writer}/{number}.png",
    "writer, class": "own/writer{writer}/{label}/{number}.png",
    "many writers": "{part}/w{number}/{label}/a.png",
    "writer, class in the name": "own/w{writer}/{label}_{number}.png",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_block_of_pictures_finds_the_class(tmp_path: Path, layout: str) -> None:
    files = {}
    for number, (label, image) in enumerate(zip(DIGITS.labels, DIGITS.images, strict=True)):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        part = "Test" if number % 4 == 0 else "Train"
        path = layout.format(label=label, number=number, part=part, writer=number % 12)
        files[path] = out.getvalue()
    write_zip(tmp_path / "own.zip", files)
    train, test = block(inspect(tmp_path / "own.zip", 28, CLASSES, "mnist"))
    counts = np.bincount(train.labels) + np.bincount(test.labels)
    assert counts.tolist() == np.bincount(DIGITS.labels).tolist()


def test_a_pattern_of_many_writers_takes_no_test_data(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(DIGITS.images[0]).save(out, "PNG")
    names = [f"w{writer}/{label}/a.png" for writer in range(30) for label in range(10)]
    write_zip(tmp_path / "own.zip", dict.fromkeys([*names, "test/1/a.png"], out.getvalue()))
    with pytest.raises(DigitsError, match=r"test is beside more than 20 folders\. Move them"):
        inspect(tmp_path / "own.zip", 28, CLASSES, "mnist")


def test_one_picture_of_each_class_is_enough(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(DIGITS.images[0]).save(out, "PNG")
    names = [f"own/{label}/a.png" for label in range(10)]
    write_zip(tmp_path / "own.zip", dict.fromkeys(names, out.getvalue()))
    assert "own/{class}/*" in inspect(tmp_path / "own.zip", 28, CLASSES, "mnist")


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_tar_of_any_form_is_an_archive(tmp_path: Path, compression: str, marked: bool) -> None:
    path = tmp_path / "digits"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("1/1.png"))
    whole = bytearray(path.read_bytes())
    if not marked:  # as before POSIX
        whole[257:265] = bytes(8)
        whole[148:156] = b" " * 8
        whole[148:156] = f"{sum(whole[:512]):06o}\0 ".encode()
    packed: dict[str, Any] = {
        "": bytes,
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }
    path.write_bytes(packed[compression](bytes(whole)))
    assert unlabelled.kind_of(path) == "archive"


def test_odd_rows_are_named(tmp_path: Path) -> None:
    images, labels = DIGITS.images.copy(), DIGITS.labels.copy()
    images[7] = 0
    images[9] = images[8]
    labels[9] = 9 - labels[8]
    write_csv(tmp_path / "a.csv", Digits(images, labels, "mnist", False, 10))
    text = inspect(tmp_path / "a.csv", 28, CLASSES, "mnist")
    assert "1 images occur more than once" in text
    assert "1 images occur with two labels" in text
    assert "1 images are blank, number 7 (from 0) first" in text


def test_the_command_says_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", DIGITS.images)
    call("data", "inspect", str(tmp_path / "a.npz"))
    assert capsys.readouterr().out.endswith(
        "It has no labels, so it can only be scored: digits score\n"
    )
    with pytest.raises(DigitsError, match="not found"):
        call("data", "inspect", str(tmp_path / "none"))
