"""CSV files in the common formats: each has the same digits."""

import csv
import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import mnist_part

from core.dataset import read_csv
from core.errors import DigitsError
from core.tables import read_table

DIGITS = mnist_part("train", 12)
SIDE = range(1, 29)
KAGGLE = ["label", *(f"{row}x{column}" for row in SIDE for column in SIDE)]
PIXELS = [f"pixel{number}" for number in range(784)]
ROWS = [
    [label, *image.ravel()]
    for label, image in zip(DIGITS.labels.tolist(), DIGITS.images.tolist(), strict=True)
    for image in [np.array(image)]
]


def text(header: list[str] | None, rows: list[list], delimiter: str = ",", end: str = "\n") -> str:
    lines = ([header] if header else []) + rows
    return end.join(delimiter.join(map(str, line)) for line in lines) + end


PLAIN = text(["label", *PIXELS], ROWS)
FORMS = {
    "plain": PLAIN,
    "Kaggle's names": text(KAGGLE, ROWS),
    "names from 1": text(["label", *(f"pixel{number}" for number in range(1, 785))], ROWS),
    "label last": text([*PIXELS, "class"], [[*row[1:], row[0]] for row in ROWS]),
    "another name for the label": text(["y", *PIXELS], ROWS),
    "an index": text(["", "label", *PIXELS], [[n, *row] for n, row in enumerate(ROWS)]),
    "pandas' numbers as names": text(["", "label", *map(str, range(784))], [[7, *r] for r in ROWS]),
    "no header": text(None, ROWS),
    "no header, label last": text(None, [[*row[1:], row[0]] for row in ROWS]),
    "no header, an index": text(None, [[n, *row] for n, row in enumerate(ROWS)]),
    "columns in another order": text(
        ["label", *reversed(PIXELS)], [[row[0], *reversed(row[1:])] for row in ROWS]
    ),
    "semicolons": text(["label", *PIXELS], ROWS, ";"),
    "tabs": text(["label", *PIXELS], ROWS, "\t"),
    "quotes": text(
        [f'"{name}"' for name in ["label", *PIXELS]], [[f'"{v}"' for v in row] for row in ROWS]
    ),
    "a byte order mark": "\ufeff" + PLAIN,
    "line ends of Windows": text(["label", *PIXELS], ROWS, end="\r\n"),
    "a blank last line": PLAIN + "\n",
    "no final line end": PLAIN[:-1],
    "floats": text(["label", *PIXELS], [[f"{value}.0" for value in row] for row in ROWS]),
    "spaces": text(["label", *PIXELS], ROWS, ", "),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_is_the_same_digits(tmp_path: Path, form: str) -> None:
    path = tmp_path / "digits.csv"
    path.write_bytes(form.encode())
    found = read_csv(path, 28, 10, "mnist")
    assert np.array_equal(found.images, DIGITS.images)
    assert np.array_equal(found.labels, DIGITS.labels)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(PLAIN.encode()))
    with zipfile.ZipFile(tmp_path / "digits.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("digits.csv", PLAIN)
        archive.writestr("__MACOSX/._digits.csv", "no CSV")
    for name in ("digits.csv.gz", "digits.zip"):
        assert np.array_equal(read_table(tmp_path / name).images, DIGITS.images)
    with zipfile.ZipFile(tmp_path / "digits.zip", "a") as archive:
        archive.writestr("other.csv", PLAIN)
    with pytest.raises(DigitsError, match="holds 2 files"):
        read_table(tmp_path / "digits.zip")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(PLAIN.encode())[:-20])
    with pytest.raises(DigitsError, match=r"cut\.csv\.gz: is corrupted"):
        read_table(tmp_path / "cut.csv.gz")


def test_words_and_other_sizes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "dhcd.csv"
    names = [*(f"pixel_{number:04}" for number in range(1024)), "character"]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, [*range(250), *[0] * 774, "digit_7"]])
    found = read_table(path)
    assert found.images.shape == (1, 32, 32)
    assert found.labels is not None and found.labels.tolist() == ["digit_7"]
    with pytest.raises(DigitsError, match="images are 32 x 32 pixels, params"):
        read_csv(path, 28, 10, "mnist")


def test_values_from_0_to_1_are_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scaled.csv"
    path.write_text(
        text(["label", *PIXELS], [[row[0], *(v / 255 for v in row[1:])] for row in ROWS])
    )
    assert np.array_equal(read_csv(path, 28, 10, "mnist").images, DIGITS.images)
    assert capsys.readouterr().out == f"{path}: values from 0 to 1 were multiplied by 255\n"


def test_what_might_never_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv"):
        with pytest.raises(DigitsError, match="is not a regular file"):
            read_table(tmp_path / name)
