"""The packaged model: its content, predictions without this project, and corrupted files."""

import contextlib
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Project, environment, mnist_part, python

from core.dataset import read_split
from core.errors import DigitsError
from digits.model import network
from digits.pipeline import evaluate
from digits.pipeline import package as stage

pytestmark = pytest.mark.slow

PREDICT = """
import sys, json, warnings
import numpy as np
import mlflow.pyfunc
sys.path = [path for path in sys.path if not path.endswith("src")]  # where `digits` is installed
for name in ("digits", "src"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
model = mlflow.pyfunc.load_model(sys.argv[1])
scores = model.predict(np.load(sys.argv[2]))
print(json.dumps({name: value.tolist() for name, value in scores.items()}))
from pathlib import Path
from loader import DigitModel  # which MLflow has put on the path
for damaged in sys.argv[3:]:
    try:
        DigitModel(Path(damaged))
    except ValueError as error:
        print(error)
"""


def damage_weights(model: Path) -> str:
    with (model / "model.keras").open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"damage")
    return "is corrupted"


def cut_manifest(model: Path) -> str:
    (model / "manifest.json").write_text("{")
    return "is corrupted"


def other_version(model: Path) -> str:
    path = model / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"format": 1', '"format": 99'))
    return "expected format 1, found 99"


def in_empty_process(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder with nothing of this project on its path."""
    command = python(code, *arguments)
    env = environment() | {"PYTHONDONTWRITEBYTECODE": "1"}  # the folder stays as it was
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_folder_predicts_without_this_project_and_reports_damage(
    reproduced: Project, tmp_path: Path
) -> None:
    images = mnist_part("t10k", 20).images
    np.save(tmp_path / "images.npy", images)
    package = reproduced.root / "data" / "package"
    damages = (damage_weights, cut_manifest, other_version)
    damaged = [tmp_path / damage.__name__ for damage in damages]
    for folder in damaged:
        shutil.copytree(package / "data" / "model", folder)
    messages = [damage(folder) for damage, folder in zip(damages, damaged, strict=True)]
    words = (str(package), str(tmp_path / "images.npy"), *map(str, damaged))
    done = in_empty_process(tmp_path, PREDICT, *words)
    assert done.returncode == 0, done.stderr
    printed, *lines = done.stdout.splitlines()[-1 - len(damages) :]
    assert all(message in line for message, line in zip(messages, lines, strict=True)), lines
    scores = json.loads(printed)
    digits, scripts = np.array(scores["digits"]), np.array(scores["scripts"])
    assert digits.shape == (20, 10)
    assert scripts.shape == (20, 1, 10)
    np.testing.assert_allclose(scripts.sum(axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(scripts.sum(axis=1), digits, rtol=1e-5)
    assert scores["digit"] == digits.argmax(axis=1).tolist()
    np.testing.assert_allclose(scores["confidence"], digits.max(axis=1))
    assert all(0 <= value <= 1 for value in scores["ood_score"])
    assert len(scores["ood_score"]) == 20


def test_the_folder_states_where_it_came_from(reproduced: Project) -> None:
    package = reproduced.root / "data" / "package"
    model = yaml.safe_load((package / "MLmodel").read_text("utf-8"))
    assert model["metadata"] == {"scripts": ["mnist"], "classes": list("0123456789")}
    assert model["signature"]["inputs"]
    manifest = json.loads((package / "data" / "model" / "manifest.json").read_text("utf-8"))
    assert set(manifest["data"]) == {"training.npz", "validation.npz"}
    assert manifest["params"]["epochs"] == 1
    lock = (reproduced.root / "requirements-serve.txt").read_text("utf-8")
    assert (package / "requirements.txt").read_text("utf-8") == lock  # with its hashes
    assert "--hash=sha256:" in lock and "\nmatplotlib" not in lock
    (*_, section) = yaml.safe_load((package / "conda.yaml").read_text("utf-8"))["dependencies"]
    assert any(pin.startswith("tensorflow") for pin in section["pip"])
    assert all(f"\n{pin} \\\n" in f"\n{lock}" for pin in section["pip"])
    assert "convolution_1" in (package / "_summary.txt").read_text("utf-8")
    for name in ("conda.yaml", "python_env.yaml"):
        assert "3.11" in (package / name).read_text("utf-8")


def test_smoke_items_are_validation_digits_with_their_labels(reproduced: Project) -> None:
    text = (reproduced.root / "data" / "package" / "smoke.jsonl").read_text("utf-8")
    items = [json.loads(line) for line in text.splitlines()]
    known, *_ = read_split(reproduced.root / "data" / "prepared" / "validation.npz", 10, 28)
    count = min(200, len(known))
    images = [item["request"]["data"] for item in items]
    np.testing.assert_array_equal(np.concatenate(images), known.images[:count])
    assert [item["answer"]["value"] for item in items] == [str(n) for n in known.labels[:count]]
    assert {item["answer"]["pointer"] for item in items} == {"/predictions/0/digit"}


def test_the_summary_is_utf_8_whatever_standard_output_is(
    reproduced: Project, tmp_path: Path
) -> None:
    model = network.load(reproduced.root / "data" / "model" / "model.keras", 28, 10)
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1")):
        stage.write_summary(model, tmp_path / "summary")
    made = reproduced.root / "data" / "package" / "_summary.txt"
    assert (tmp_path / "summary").read_bytes() == made.read_bytes()


@pytest.mark.prove
def test_the_bytes_do_not_depend_on_the_encoding_of_standard_output(
    reproduced: Project, tmp_path: Path
) -> None:
    model = ("--model", "data/model", "--lock", "requirements-serve.txt")
    inputs = (*model, "--validation", "data/prepared/validation.npz")
    code = ("--code", "src/digits/runtime", "src/core/determinism.py", "--out", str(tmp_path / "p"))
    command = ("python", "src", "package", *inputs, *code)
    reproduced.run(*command, PYTHONIOENCODING="iso-8859-1", PYTHONUTF8="0")
    made = {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir() if path.is_file()}
    package = reproduced.root / "data" / "package"
    assert made == {path.name: path.read_bytes() for path in package.iterdir() if path.is_file()}


def test_a_lineage_of_another_model_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lineage = project.root / "data" / "model" / "lineage.json"
    text = lineage.read_text("utf-8")
    assert '"scripts": [' in text
    lineage.unlink()
    lineage.write_text(text.replace('"scripts": [', '"scripts": ["another",'), "utf-8")
    inputs = ("--lock", "requirements-serve.txt", "--validation", "data/prepared/validation.npz")
    code = ("--code", "src/digits/runtime", "--out", "data/package")
    monkeypatch.chdir(project.root)
    with pytest.raises(DigitsError, match="its scripts or classes do not match the model"):
        stage.main(["--model", "data/model", *inputs, *code])
    assert (project.root / "data" / "package" / "MLmodel").exists()


def test_evaluate_states_of_a_damaged_model(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.root / "data" / "model" / "model.keras"
    whole = path.read_bytes()
    path.unlink()  # a link to DVC's cache, perhaps
    path.write_bytes(whole[: len(whole) // 2])
    arguments = ("--test", "data/prepared/test.npz", "--out", "data/evaluation")
    before = (project.root / "data" / "evaluation" / "metrics.json").read_bytes()
    monkeypatch.chdir(project.root)
    with pytest.raises(DigitsError, match=r"model\.keras: is corrupted .* \(it is truncated"):
        evaluate.main(["--model", "data/model", *arguments])
    assert (project.root / "data" / "evaluation" / "metrics.json").read_bytes() == before
