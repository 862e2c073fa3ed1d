"""Data sets as they circulate, and as they are meant: read, or refused with the setting."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from archives import write_tar, write_zip
from conftest import mnist_part
from PIL import Image
from pyarrow import parquet

from core.dataset import Digits, write_csv
from core.errors import DigitsError
from digits.runtime.normalise import normalise
from digits.runtime.photograph import find_ink
from digits.serving.request import Reader, decode
from digits.sources.archives import Archive
from digits.sources.readers import Files, read, read_parts

CLASSES = tuple("0123456789")
READER = Reader(find_ink, normalise)
DIGITS = mnist_part("train", 40)
LABELS = DIGITS.labels.tolist()


def a_file(image: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, quality=95)
    return out.getvalue()


def pictures(kind: str = "PNG", change: Callable = lambda image: image) -> dict[str, bytes]:
    """Return files of a data set, a folder for each class."""
    return {
        f"own/{label}/{number:03}.{kind.lower()}": a_file(change(image), kind)
        for number, (label, image) in enumerate(zip(LABELS, DIGITS.images, strict=True))
    }


def archive(pattern: str, ink: str = "white") -> Archive:
    return Archive("archive", (pattern,), CLASSES, ink, (pattern,))  # type: ignore[arg-type]


def got(reader: Files | Archive, source: Path, script: str = "mnist") -> Digits:
    return read(reader, source, "train", 28, CLASSES, script)


def by_class(digits: Digits) -> list[bytes]:
    pairs = zip(digits.labels, digits.images, strict=True)
    return sorted(bytes([label]) + image.tobytes() for label, image in pairs)


NORMAL = Digits(normalise(DIGITS.images, 28), DIGITS.labels, "mnist", False, 10)


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_what_systems_leave_beside_pictures_is_passed_over(tmp_path: Path, kind: str) -> None:
    files = pictures() | {
        "__MACOSX/own/0/._000.png": b"no picture",
        "own/0/.DS_Store": b"\0\0\0\1Bud1",
        "own/0/._000.png": b"no picture",
        "own/1/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "own/1/.ipynb_checkpoints/000-checkpoint.png": b"no picture",
    }
    source = tmp_path / f"own.{kind}"
    if kind == "zip":
        write_zip(source, files)
    elif kind == "tar":
        write_tar(source, {f"./{name}": data for name, data in files.items()})
    else:
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
    assert by_class(got(archive("own/{class}/*"), source)) == by_class(NORMAL)


def test_endings_in_capitals_are_the_same(tmp_path: Path) -> None:
    files = {name.replace(".png", ".PNG"): data for name, data in pictures().items()}
    write_zip(tmp_path / "a.zip", files)
    assert by_class(got(archive("own/{class}/*.png"), tmp_path / "a.zip")) == by_class(NORMAL)
    with pytest.raises(DigitsError, match=r"no image matches own/0/\*\.jpg; it has own/0/"):
        got(archive("own/{class}/*.jpg"), tmp_path / "a.zip")


@pytest.mark.parametrize(("kind", "paper"), [("PNG", 245), ("JPEG", 245), ("JPEG", 200)])
def test_pictures_are_decoded_as_the_endpoint_does(tmp_path: Path, kind: str, paper: int) -> None:
    files = pictures(kind, lambda image: (paper - image * (paper / 300)).astype(np.uint8))
    write_zip(tmp_path / "a.zip", files)
    found = got(archive(f"own/{{class}}/*.{kind.lower()}", "black"), tmp_path / "a.zip")
    expected = [decode(files[name], 28, READER).images[0] for name in sorted(files)]
    assert np.array_equal(found.images, expected)


def test_ink_that_the_pictures_do_not_have_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", pictures())
    with pytest.raises(DigitsError, match=r"ink in params.yaml is black, but .* Set ink: white"):
        got(archive("own/{class}/*.png", "black"), tmp_path / "a.zip")


def test_a_path_that_fits_two_classes_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"own/w01_3_1.png": a_file(DIGITS.images[0])})
    with pytest.raises(
        DigitsError, match=r"w01_3_1\.png matches the patterns of two classes, \*_1"
    ):
        got(archive("*_{class}*.png"), tmp_path / "a.zip")


def test_only_what_is_named_is_read_and_no_more_than_a_picture(tmp_path: Path) -> None:
    large = bytes(50_000_001)
    write_zip(tmp_path / "a.zip", pictures() | {"other/0.png": large})
    assert len(got(archive("own/{class}/*.png"), tmp_path / "a.zip")) == 40
    write_zip(tmp_path / "a.zip", pictures() | {"own/0/large.png": large})
    with pytest.raises(DigitsError, match=r"own/0/large\.png: has more than 50,000,000"):
        got(archive("own/{class}/*.png"), tmp_path / "a.zip")


def test_keras_npz_is_read(tmp_path: Path) -> None:
    test, path = mnist_part("t10k", 100), tmp_path / "mnist.npz"
    train = {"x_train": DIGITS.images, "y_train": DIGITS.labels}
    np.savez(path, x_test=test.images, y_test=test.labels, allow_pickle=False, **train)
    reader = Files("npz", "mnist.npz", "mnist.npz")
    found, held = read_parts(reader, tmp_path, 28, CLASSES, "mnist")
    assert np.array_equal(found.images, DIGITS.images)
    assert (held.labels.tolist(), found.labels.tolist()) == (test.labels.tolist(), LABELS)
    np.savez(path, other=test.images, images=DIGITS.images)
    with pytest.raises(DigitsError, match=r"has other \(100, 28, 28\), .* Expected one array"):
        read_parts(reader, tmp_path, 28, CLASSES, "mnist")


def test_npz_of_images_and_of_labels_are_read(tmp_path: Path) -> None:
    scaled = (DIGITS.images / 255)[:, :, :, None]
    np.savez_compressed(tmp_path / "k-train-imgs.npz", scaled)
    np.savez_compressed(tmp_path / "k-train-labels.npz", DIGITS.labels)
    found = got(Files("npz", "k-train-imgs.npz", test_share=0.5), tmp_path)
    assert np.array_equal(found.images, DIGITS.images)
    assert found.labels.tolist() == LABELS


@pytest.mark.parametrize("form", ["struct", "files", "bytes", "lists", "dictionary"])
def test_parquet_is_read(tmp_path: Path, form: str) -> None:
    files = [a_file(image) for image in DIGITS.images]
    column = {
        "struct": [{"bytes": data, "path": None} for data in files],
        "files": files,
        "bytes": [image.tobytes() for image in DIGITS.images],
        "lists": DIGITS.images.tolist(),
        "dictionary": pa.array(files).dictionary_encode(),
    }[form]
    for number, part in enumerate((slice(0, 20), slice(20, 40))):
        table = pa.table({"image": column[part], "label": LABELS[part]})
        parquet.write_table(table, tmp_path / f"train-{number:05}-of-00002.parquet")
    found = got(Files("parquet", "train-*.parquet", test_share=0.5), tmp_path)
    expected = NORMAL if form in ("struct", "files", "dictionary") else DIGITS
    assert np.array_equal(found.images, expected.images)
    assert found.labels.tolist() == LABELS


def test_parquet_whose_labels_are_megabytes_is_refused(tmp_path: Path) -> None:
    labels = pa.array(["x" * 1_000_000]).take(pa.array([0] * 40))
    table = pa.table({"image": [image.tobytes() for image in DIGITS.images], "label": labels})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DigitsError, match=r"column label has more than 200,000 bytes in 40 rows"):
        got(Files("parquet", "a.parquet", test_share=0.5), tmp_path)


def changed(folder: Path, images: np.ndarray) -> None:
    write_csv(folder / "a.csv", Digits(images, DIGITS.labels, "mnist", False, 10))


def test_dark_ink_and_exchanged_rows_are_refused_until_they_are_set(tmp_path: Path) -> None:
    changed(tmp_path, 255 - DIGITS.images)
    with pytest.raises(DigitsError, match=r"the ink is black\. Set ink: black"):
        got(Files("csv", "a.csv", "a.csv"), tmp_path)
    found = got(Files("csv", "a.csv", "a.csv", ink="black"), tmp_path)
    assert np.array_equal(found.images, DIGITS.images)
    changed(tmp_path, DIGITS.images.transpose(0, 2, 1))
    with pytest.raises(DigitsError, match=r"columns seem to be exchanged. Set transposed: true"):
        got(Files("csv", "a.csv", "a.csv"), tmp_path)
    found = got(Files("csv", "a.csv", "a.csv", transposed=True), tmp_path)
    assert np.array_equal(found.images, DIGITS.images)
    with pytest.raises(DigitsError, match=r"the ink is white\. Set ink: white"):
        got(Files("csv", "a.csv", "a.csv", ink="black"), tmp_path)
    assert len(got(Files("csv", "a.csv", "a.csv"), tmp_path, "devanagari")) == 40  # no MNIST


def test_paper_that_is_not_quite_white_is_subtracted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(tmp_path, 245 - (DIGITS.images * (240 / 255)).astype(np.uint8))
    found = got(Files("csv", "a.csv", "a.csv", ink="black"), tmp_path)
    assert found.images[:, 0].max() == 0
    assert "the paper was 10, not 0; it was subtracted" in capsys.readouterr().out


def test_test_data_that_is_training_data_is_stated_and_a_share_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "a.csv", mnist_part("train", 300))
    read_parts(Files("csv", "a.csv", "a.csv"), tmp_path, 28, CLASSES, "mnist")
    assert "300 of 300 test images are training images" in capsys.readouterr().out
    parts = read_parts(Files("csv", "a.csv", test_share=0.2), tmp_path, 28, CLASSES, "mnist")
    assert [len(part) for part in parts] == [240, 60]
    assert not {x.tobytes() for x in parts[0].images} & {x.tobytes() for x in parts[1].images}
    assert capsys.readouterr().out == ""


def test_labels_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"digit_{label}" for label in LABELS] + ["character_01_ka"]
    images = np.concatenate([DIGITS.images, DIGITS.images[:1]])
    np.savez(tmp_path / "a.npz", x=images, y=np.array(rows))
    names = tuple(f"digit_{name}" for name in CLASSES)
    found = got(Files("npz", "a.npz", "a.npz", names=names), tmp_path)
    assert found.labels.tolist() == LABELS
    assert "1 digits whose label is not in names were omitted" in capsys.readouterr().out
    with pytest.raises(DigitsError, match=r"label 'digit_5' is neither .* names, in params"):
        got(Files("npz", "a.npz", "a.npz"), tmp_path)
    by_class = read(Files("npz", "a.npz", "a.npz"), tmp_path, "train", 28, (*names, rows[-1]), "m")
    assert len(by_class) == 41


def test_what_is_missing_is_named_with_the_setting(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", DIGITS.images)
    with pytest.raises(DigitsError, match=r"has no labels, .* test_share: 0\.1 instead of test"):
        got(Files("npz", "a.npz", "a.npz"), tmp_path)
    few = DIGITS.labels != 7
    np.savez(tmp_path / "a.npz", x=DIGITS.images[few], y=DIGITS.labels[few])
    with pytest.raises(DigitsError, match="no digit of class '7' to train with"):
        got(Files("npz", "a.npz", "a.npz"), tmp_path)
    with pytest.raises(DigitsError, match=r"no file matches train-\*\.csv"):
        got(Files("csv", "train-*.csv", "a"), tmp_path)
    with pytest.raises(ValueError, match="either test or test_share"):
        Files("csv", "a.csv")
