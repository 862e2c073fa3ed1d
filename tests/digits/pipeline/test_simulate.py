"""Stage simulate: the packaged model's own answers, the same bytes each time, all or none."""

import contextlib
import datetime
import io
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import Project, environment
from pyarrow import parquet

from core import console
from core.dataset import Digits, read_split, write_csv
from core.files import sha256
from digits.model import network as model
from digits.production.records import LABELS, REQUESTS

pytestmark = pytest.mark.slow
STAGE = [sys.executable, "src", "simulate", "--validation", "data/prepared/validation.npz"]
STAGE += ["--labelled", "data/labelled", "--package", "data/package"]


ANSWERS = """
class Service:
    def predict(self, images, script):
        answer = {"digit": "1", "confidence": 0.5, "ood_score": 0.1}
        return {"model_version": "v", "predictions": [answer] * len(images)}


def load():
    return Service()
"""


def here(
    project: Project,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    pool: str | Path = "data/prepared/production.npz",
    scoring: str | Path = "src/digits/serving",
    labelled: str | Path = "data/labelled",
) -> tuple[int, str]:
    """Run the stage in this process, which spares its start; return code and output."""
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("AZUREML_MODEL_DIR", "")  # which the stage sets: both are put back
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    words = ["--out", str(out), "--pool", str(pool), "--code", str(scoring)]
    words += ["--labelled", str(labelled), *STAGE[3:5], *STAGE[7:]]
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = console.run("simulate", "digits.pipeline.simulate", words)
    return code, said.buffer.getvalue().decode()


def scorer(folder: Path, source: str) -> Path:
    """Write a score.py; return its folder."""
    (folder / "code").mkdir()
    (folder / "code" / "score.py").write_text(source)
    return folder / "code"


def table(project: Project, name: str, out: str = "data/production") -> pa.Table:
    """Return one of the files."""
    return parquet.read_table(project.root / out / name)


def images(answered: pa.Table) -> np.ndarray:
    """Return the images of a file, uint8 (n, 28, 28)."""
    joined = b"".join(answered["image"].to_pylist())
    return np.frombuffer(joined, np.uint8).reshape(-1, 28, 28)


def test_the_answers_are_the_models(reproduced: Project) -> None:
    answered = table(reproduced, "requests.parquet")
    assert answered.schema.equals(REQUESTS)
    assert answered.num_rows == 408
    assert set(answered["deployment"].to_pylist()) == {"simulated"}
    network = model.load(reproduced.root / "data/model/model.keras", 28, 10)
    scores = model.predict(network, images(answered))
    digits = [str(digit) for digit in scores["digits"].argmax(axis=1)]
    assert answered["digit"].to_pylist() == digits
    np.testing.assert_allclose(answered["confidence"], scores["digits"].max(axis=1), atol=2e-6)
    np.testing.assert_allclose(answered["ood_score"], scores["ood_score"], atol=2e-6)
    (version,) = set(answered["model_version"].to_pylist())
    assert sha256(reproduced.root / "data/package/data/model/model.keras").startswith(version)


def test_the_reference_is_the_validation_pool_in_its_order(reproduced: Project) -> None:
    answered = table(reproduced, "reference.parquet")
    assert answered.schema.equals(REQUESTS)
    parts = read_split(reproduced.root / "data/prepared/validation.npz", 10, 28)
    np.testing.assert_array_equal(images(answered), np.concatenate([part.images for part in parts]))
    assert set(answered["deployment"].to_pylist()) == {"reference"}
    first = table(reproduced, "requests.parquet")["time"][0].as_py()
    assert answered["time"][-1].as_py() < first


def test_labels_are_of_requests_and_come_after_them(reproduced: Project) -> None:
    labels, answered = table(reproduced, "labels.parquet"), table(reproduced, "requests.parquet")
    assert labels.schema.equals(LABELS)
    assert 0.05 < labels.num_rows / answered.num_rows < 0.4
    times = dict(zip(answered["request_id"].to_pylist(), answered["time"].to_pylist(), strict=True))
    rows = labels.to_pylist()
    assert all(row["time"] > times[row["request_id"]] for row in rows)
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert {row["script"] for row in rows} <= {"mnist", "devanagari", "japanese"}
    week = datetime.datetime(2026, 1, 12, tzinfo=datetime.UTC)
    assert {row["script"] for row in rows if times[row["request_id"]] < week} == {"mnist"}


def test_labelled_digits_do_not_come_again(
    reproduced: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = table(reproduced, "requests.parquet")
    known = images(answered)[-50:]  # as the broken scanner made them
    labels = np.zeros(len(known), np.uint8)
    write_csv(tmp_path / "labelled/mnist_1.csv", Digits(known, labels, "mnist", False, 10))
    code = scorer(tmp_path, ANSWERS)
    ended, said = here(
        reproduced, tmp_path, monkeypatch, scoring=code, labelled=tmp_path / "labelled"
    )
    assert ended == 0, said
    assert f"are in {tmp_path / 'labelled'} and are not drawn again" in said
    again = images(parquet.read_table(tmp_path / "requests.parquet"))
    seen = {image.tobytes() for image in known}
    assert not any(image.tobytes() in seen for image in again)


SCORES = {
    "load() fails": ("def load():\n    raise RuntimeError('no model')\n", "no model"),
    "no load()": ("def init():\n    pass\n", "has no attribute 'load'"),
    "a syntax error": ("def load(:\n", "SyntaxError"),
    "ends": ("import sys\ndef load():\n    sys.exit('bye')\n", "bye"),
    "raises": (
        "class Service:\n    def predict(self, images, script):\n"
        "        raise ValueError('odd digit')\ndef load():\n    return Service()\n",
        "odd digit",
    ),
    "answers less": (
        "class Service:\n    def predict(self, images, script):\n"
        "        return {'predictions': []}\ndef load():\n    return Service()\n",
        "0 predictions for 100 images",
    ),
}


@pytest.mark.parametrize("fault", SCORES)
def test_a_score_py_that_fails_is_named_and_leaves_nothing(
    fault: str, reproduced: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, message = SCORES[fault]
    code = scorer(tmp_path, source)
    ended, said = here(reproduced, tmp_path / "out", monkeypatch, scoring=code)
    assert ended == 1
    assert f"simulate: {tmp_path / 'code' / 'score.py'}: " in said
    assert message in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*"))


def damage(pool: Path) -> None:
    """Cut a pool short."""
    pool.write_bytes(pool.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, "is corrupted"),
        (Path.unlink, "not found. Run `dvc repro` first"),
    ],
)
def test_an_invalid_split_is_reported(
    harm: Callable[[Path], None],
    message: str,
    reproduced: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = tmp_path / "production.npz"
    shutil.copyfile(reproduced.root / "data/prepared/production.npz", pool)
    harm(pool)
    ended, said = here(reproduced, tmp_path / "out", monkeypatch, pool=pool)
    assert ended == 1
    assert f"simulate: {pool}: " in said
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.prove
def test_ctrl_c_leaves_nothing_and_no_process(project: Project, tmp_path: Path) -> None:
    project_params = project.root / "params.yaml"
    text = project_params.read_text("utf-8")
    more = text.replace("requests_an_hour: 1.0", "requests_an_hour: 1000.0")
    project_params.write_text(more, "utf-8")
    out = tmp_path / "out"
    command = [*STAGE, "--pool", "data/prepared/production.npz", "--code", "src/digits/serving"]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=project.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "requests.parquet.partial").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "simulate: stopped" in said
    assert "Traceback" not in said
    assert not list(out.iterdir())
    listed = subprocess.run(["ps", "axww", "-o", "ppid"], capture_output=True, text=True).stdout
    assert str(process.pid) not in listed.split()
