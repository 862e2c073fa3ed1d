"""Files scored on all cores: complete answers or an error, continued after an interruption."""

import dataclasses
import json
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
import pytest
from conftest import Project, environment, mnist_part, python
from PIL import Image
from pyarrow import parquet

from core.dataset import write_csv
from core.errors import DigitsError
from digits.production import scoring
from digits.runtime.normalise import normalise
from digits.serving import batch

COUNT = 11_003  # two parts and a piece
COMMAND = python("import sys; from mlops.cli import main; sys.exit(main())", "score")
IMAGES = mnist_part("train", COUNT).images


def write(
    path: Path, images: np.ndarray, group: int = 700, kind: pa.DataType | None = None
) -> Path:
    """Write images with ids, in row groups of an odd size."""
    rows = [image.tobytes() for image in images]
    ids = [f"digit-{number}" for number in range(len(rows))]
    columns = {"note": ids, "id": ids, "image": pa.array(rows, kind or pa.binary())}
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def package(folder: Path) -> Path:
    """Write as much of a model folder as is read before anything is scored."""
    (folder / "data" / "model").mkdir(parents=True)
    content = {"model_sha256": "5ee", "scripts": ["mnist"], "params": {"image_size": 28}}
    (folder / "data" / "model" / "manifest.json").write_text(json.dumps(content))
    return folder


def scored(files: list[Path], out: Path, model: Path, script: str | None = None) -> int:
    """Check and score files in this process; return how many images were."""
    scoring.check(files, scoring.manifest(model, script)[1])
    return sum(count for count, fresh in scoring.score(files, out, model, script) if fresh)


@pytest.mark.slow
def test_parts_are_the_same_rows_however_a_file_is_cut(tmp_path: Path) -> None:
    for group, kind in ((700, pa.binary()), (COUNT, pa.large_binary()), (5000, pa.binary(784))):
        path = write(tmp_path / "digits.parquet", IMAGES, group, kind)
        found = list(batch.parts(path, 28))
        assert [len(part) for part in found] == [5000, 5000, 1003]
        assert b"".join(found[1]["image"].to_pylist()) == IMAGES[5000:10_000].tobytes()
        assert found[2].schema.names == ["image", "id"]
        assert found[2]["id"][2].as_py() == "digit-10002"
        assert [part.equals(found[2]) for part in batch.parts(path, 28, 2)] == [True]
    table = parquet.read_table(path)
    coded = table.set_column(1, "id", table["id"].dictionary_encode())
    parquet.write_table(coded, path)
    assert [part.equals(found[2]) for part in batch.parts(path, 28, 2)] == [True]


@pytest.mark.parametrize(("change", "native"), [(lambda x: x, True), (lambda x: 255 - x, False)])
def test_raw_images_with_dark_ink_are_converted(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], native: bool
) -> None:
    path = write(tmp_path / "digits.parquet", change(IMAGES[:10]))
    assert scoring.is_native(path, 28) is native
    path = write(path, np.minimum(IMAGES[:10], 1))
    assert scoring.is_native(path, 28) is False
    assert scoring.is_native(write(path, np.zeros_like(IMAGES[:10])), 28) is True


def test_what_cannot_be_scored_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    model, out = package(tmp_path / "model"), tmp_path / "out"
    whole = write(tmp_path / "whole.parquet", IMAGES[:10])
    header = ",".join(f"pixel{number}" for number in range(784))
    zeros = "0," * 783
    bad = {
        "absent.parquet": (None, "not found"),
        "empty.parquet": (b"", "the first line is empty"),
        "cut.parquet": (whole.read_bytes()[:-9], "Parquet"),
        "text.csv": (b"label,x\n1,2\n", ":1: found 2 columns"),
        "cut.csv": (f"{header}\n{zeros[:-90]}".encode(), ":2: expected 784 columns, found 739"),
        "wide.csv": (f"{header}\n{zeros}0\n{zeros}256\n".encode(), ":3: .*, found '256'"),
        "short.csv": (f"{header}\n{zeros}0\n0\n".encode(), ":3: expected 784 columns, found 1"),
        "picture.tif": (b"II*\0", "the file is a TIFF. Convert it"),
    }
    for name, (content, reason) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DigitsError, match=reason) as caught:
            scored([tmp_path / name], out, model)
        assert str(tmp_path / name) in str(caught.value)
        assert not (out / name).exists()
    for kind, images, reason in (
        (pa.binary(), IMAGES[:2, :5], "row 0: is not a picture of a digit"),
        (pa.binary(), np.array([[[1.5]]]), "row 0: is not a picture of a digit"),
    ):
        with pytest.raises(DigitsError, match=reason):
            scored([write(tmp_path / "other.parquet", images, kind=kind)], out, model)
        assert not (out / "other.parquet").exists()
    parquet.write_table(
        pa.table({"image": pa.array([None], pa.binary())}), tmp_path / "gap.parquet"
    )
    text = pa.table({"image": pa.array(["x" * 784])})
    parquet.write_table(text, tmp_path / "letters.parquet")
    with pytest.raises(DigitsError, match="cannot be read as Parquet"):
        scored([tmp_path / "letters.parquet"], out, model)
    twice = parquet.read_table(whole)
    parquet.write_table(twice.append_column("id", twice["note"]), tmp_path / "twice.parquet")
    with pytest.raises(DigitsError, match="more than one column id"):
        scored([tmp_path / "twice.parquet"], out, model)
    with pytest.raises(DigitsError, match="missing"):
        scored([tmp_path / "gap.parquet"], out, model)
    with pytest.raises(DigitsError, match="two files"):
        scored([whole, tmp_path / "x" / "whole.parquet"], out, model)
    with pytest.raises(
        DigitsError, match="--script klingon: expected a script of the model: mnist"
    ):
        scored([whole], out, model, "klingon")
    with pytest.raises(DigitsError, match="dvc"):
        scored([whole], out, tmp_path / "nowhere")


@pytest.mark.slow
def test_files_of_every_format_are_brought_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits, out = mnist_part("train", 5100), tmp_path / "out.parquet"
    write_csv(tmp_path / "a.csv", digits)
    write_csv(tmp_path / "dark.csv", dataclasses.replace(digits, images=255 - digits.images))
    np.savez(tmp_path / "a.npz", digits.images, ids=np.arange(5100), labels=digits.labels)
    for name in ("a.csv", "dark.csv", "a.npz"):
        assert scoring.check([tmp_path / name], 28) is None
        scoring.convert(tmp_path / name, out, 28)
        found = [image for part in batch.parts(out, 28) for image in part["image"].to_pylist()]
        assert b"".join(found) == digits.images.tobytes()
    assert capsys.readouterr().err.count("dark ink on light paper was inverted") == 1
    (tmp_path / "pictures").mkdir()
    for number in (1, 0):
        Image.fromarray(IMAGES[number]).save(tmp_path / "pictures" / f"{number}.png")
    scoring.convert(tmp_path / "pictures", out, 28)
    (rows,) = batch.parts(out, 28)
    assert rows["image"][0].as_py() == normalise(IMAGES[:1], 28).tobytes()
    raw = write(tmp_path / "raw.parquet", IMAGES[:5])
    kept, converted = scoring.native([raw, tmp_path / "a.npz"], 28, tmp_path / "_converted")
    assert (kept, converted) == (raw, tmp_path / "_converted" / "a.npz.parquet")
    assert sum(map(len, batch.parts(converted, 28))) == len(digits)


def test_answers_of_another_run_are_refused_and_what_is_done_is_not_done_again(
    tmp_path: Path,
) -> None:
    model, out = package(tmp_path / "model"), tmp_path / "out"
    path = write(tmp_path / "some.parquet", IMAGES[:10])
    folder = out / path.name
    folder.mkdir(parents=True)
    origin = batch.origin(path, "5ee", None)
    answers = pa.table({"row": range(10)})
    for wanted in (origin | {"model_sha256": "0ld"}, origin | {"input_sha256": "x"}, {}):
        parquet.write_table(answers.replace_schema_metadata(wanted), batch.place(folder, 0))
        with pytest.raises(DigitsError, match="holds answers of another"):
            scored([path], out, model)
    parquet.write_table(answers.replace_schema_metadata(origin), batch.place(folder, 0))
    with pytest.raises(DigitsError, match="another script"):
        scored([path], out, model, "mnist")
    assert scored([path], out, model) == 0
    assert (folder / batch.SUCCESS).exists()


@pytest.mark.parametrize("left", [b"PAR1", None])
def test_a_part_that_is_damaged_or_gone_is_done_again(tmp_path: Path, left: bytes | None) -> None:
    path, folder = write(tmp_path / "some.parquet", IMAGES[:10]), tmp_path / "out"
    folder.mkdir()
    if left:
        batch.place(folder, 0).write_bytes(left)
    (folder / batch.SUCCESS).write_text("1")
    with ThreadPoolExecutor(1) as pool, patch.object(scoring, "score_part", lambda *_: 10):
        wanted = batch.origin(path, "5ee", None)
        said = list(scoring._score(pool, path, folder, wanted, 28))
    assert said == [(10, True)]
    assert (folder / batch.SUCCESS).exists()


@pytest.mark.parametrize("mark", [b"", b"\xff", b"2"])
def test_a_damaged_mark_takes_nothing_of_what_is_done(tmp_path: Path, mark: bytes) -> None:
    path, folder = write(tmp_path / "some.parquet", IMAGES[:10]), tmp_path / "out"
    folder.mkdir()
    wanted = batch.origin(path, "5ee", None)
    answers = pa.table({"row": range(10)}).replace_schema_metadata(wanted)
    parquet.write_table(answers, batch.place(folder, 0))
    (folder / batch.SUCCESS).write_bytes(mark)
    with ThreadPoolExecutor(1) as pool:
        assert list(scoring._score(pool, path, folder, wanted, 28)) == [(10, False)]
    assert (folder / batch.SUCCESS).read_bytes() == b"1"


def test_a_disk_that_fails_takes_nothing_of_what_is_done(tmp_path: Path) -> None:
    path, folder = write(tmp_path / "some.parquet", IMAGES[:10]), tmp_path / "out"
    folder.mkdir()
    wanted = batch.origin(path, "5ee", None)
    answers = pa.table({"row": range(10)}).replace_schema_metadata(wanted)
    parquet.write_table(answers, batch.place(folder, 1))
    for error in (OSError(5, "Input/output error"), pa.ArrowMemoryError("malloc failed")):
        with (
            ThreadPoolExecutor(1) as pool,
            patch.object(batch, "parts", side_effect=error),
            pytest.raises(DigitsError, match=r"Run again to continue|Split it"),
        ):
            list(scoring._score(pool, path, folder, wanted, 28))
        assert batch.place(folder, 1).exists()


@pytest.mark.prove
def test_a_run_that_is_stopped_goes_on_and_ends_as_one_that_was_not(
    reproduced: Project, tmp_path: Path
) -> None:
    path = write(tmp_path / "digits.parquet", np.concatenate([IMAGES] * 8))
    csv = tmp_path / "digits.csv"
    write_csv(csv, mnist_part("train", 5100))
    whole = tmp_path / "whole"
    assert "88,024" not in reproduced.run(*COMMAND, str(csv), "--out", str(whole))
    reproduced.run(*COMMAND, str(path), "--out", str(whole))
    for how, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)):
        out = tmp_path / how.name
        process = subprocess.Popen(
            [*COMMAND, str(path), "--out", str(out)], cwd=reproduced.root, env=environment()
        )
        try:
            end = time.monotonic() + 120
            while not list(out.rglob("part-*.parquet")):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(how)
            assert process.wait(60) == code
            assert psutil.wait_procs(children, 60)[1] == []
        finally:
            process.kill()
            process.wait()
        before = {part: part.stat().st_mtime_ns for part in out.rglob("part-*.parquet")}
        assert not list(out.rglob(batch.SUCCESS))
        assert 0 < len(before) < 18
        said = reproduced.run(*COMMAND, str(path), "--out", str(out))
        assert "(0 were done before)" not in said
        assert all(part.stat().st_mtime_ns == made for part, made in before.items())
        names = sorted(part.name for part in (whole / path.name).iterdir())
        assert names == sorted(part.name for part in (out / path.name).iterdir())
        for name in names:
            ours, theirs = (folder / path.name / name for folder in (out, whole))
            assert ours.read_bytes() == theirs.read_bytes()
    answers = parquet.read_table(whole / path.name)
    assert answers["row"].to_pylist() == list(range(8 * COUNT))
    numbers = ["row", "digit", "confidence", "ood_score", "probabilities"]
    of_csv = parquet.read_table(whole / csv.name).select(numbers)
    assert of_csv.slice(0, 5000).equals(answers.select(numbers).slice(0, 5000))


@pytest.mark.prove
def test_a_file_damaged_in_the_middle_leaves_no_answers(
    reproduced: Project, tmp_path: Path
) -> None:
    path = write(tmp_path / "digits.parquet", np.concatenate([IMAGES] * 3), group=COUNT)
    where = parquet.read_metadata(path).row_group(2).column(2).data_page_offset
    with path.open("r+b") as file:
        file.seek(where)
        file.write(bytes(100_000))
    said = reproduced.run(*COMMAND, str(path), "--out", str(tmp_path / "out"), code=1)
    assert f"{path}: cannot be scored" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / path.name).exists()
    weights = reproduced.copy(tmp_path / "copy").root / "data/package/data/model/model.keras"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1])
    good = write(tmp_path / "good.parquet", IMAGES[:10])
    said = Project(tmp_path / "copy").run(
        *COMMAND, str(good), "--out", str(tmp_path / "out"), code=1
    )
    assert "model.keras: is corrupted" in said
    assert "Traceback" not in said
