"""Stage foreign with real digits in the place of rendered ones, and params.yaml's own blocks."""

import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from archives import png, write_zip
from conftest import ROOT, Project, copy_tracked, python, random_digits
from ruamel.yaml import YAML

from core import params
from core.dataset import read_csv
from core.errors import DigitsError
from digits.pipeline.foreign import Params, PerClass, select_parts

PRODUCTION = ROOT / "params.yaml"


def commented_blocks() -> dict[str, dict[str, object]]:
    """Return the blocks for real data that stand in params.yaml as comments, by script."""
    lines = PRODUCTION.read_text("utf-8").splitlines()
    blocks: dict[str, dict[str, object]] = {}
    for number, line in enumerate(lines):
        if re.fullmatch(r"  # [a-z]+:", line):
            block = [line[4:]]
            for follower in lines[number + 1 :]:
                if not follower.startswith("  #   "):
                    break
                block.append(follower[4:])
            blocks |= YAML(typ="safe").load("\n".join(block))
    return blocks


def test_the_commented_blocks_are_valid() -> None:
    blocks = commented_blocks()
    assert list(blocks) == ["devanagari", "japanese"]
    for script in blocks:
        params.section(Params, {"foreign": blocks}, f"foreign.{script}")
    assert params.foreign_scripts({"foreign": blocks}) == {"devanagari": False, "japanese": False}


def layout(script: str, label: int, number: int, part: str) -> str:
    """Return the path of an image in the archive that a commented block is written for."""
    if script == "devanagari":
        return f"DevanagariHandwrittenCharacterDataset/{part}/digit_{label}/{number}.png"
    writer = {"Train": 80, "Test": 81}[part]
    return f"data/input_{writer}_{number}_{label + 1}.jpg"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["devanagari", "japanese"])
def test_a_commented_block_reads_its_layout(tmp_path: Path, script: str) -> None:
    project = Project(tmp_path)
    copy_tracked(tmp_path)
    counts = {"Train": 5, "Test": 2}
    files = {
        layout(script, label, number, part): png(number, 32 + label)
        for part, count in counts.items()
        for label in range(10)
        for number in range(count)
    }
    block = commented_blocks()[script] | {"per_class": {"train": 3, "test": 2, "production": 2}}
    (tmp_path / "data" / "raw").mkdir()
    write_zip(tmp_path / str(block["source"]), files)
    values = params.load(tmp_path / "params.yaml") | {"foreign": {script: block}}
    YAML().dump(values, tmp_path / "params.yaml")

    output = project.run("python", "src", "foreign", script, "--out", "data/foreign")
    assert "rendered" not in output
    for part, count in {"train": 3, "test": 2, "production": 2}.items():
        digits = read_csv(tmp_path / f"data/foreign/{script}_{part}.csv", 28, 10, script)
        assert np.bincount(digits.labels).tolist() == [count] * 10
        assert digits.images.max() == 255


def test_train_and_production_never_share_a_digit() -> None:
    train, test = random_digits(100), random_digits(50)
    parts = select_parts(train, test, PerClass(train=6, test=2, production=4), seed=1)
    images = {part: {image.tobytes() for image in parts[part].images} for part in parts}
    assert {part: len(rows) for part, rows in images.items()} == {
        "train": 60,
        "test": 20,
        "production": 40,
    }
    assert not images["train"] & images["production"]
    with pytest.raises(DigitsError, match="needs 11 digits of class 0 for train and production"):
        select_parts(train, test, PerClass(train=6, test=2, production=5), seed=1)


@pytest.mark.prove
def test_foreign_share_teaches_the_scripts_and_every_run_is_in_mlflow(project: Project) -> None:
    store = project.root / "data" / "mlflow.db"
    count = "select count(*) from runs where status = 'FINISHED'"
    with sqlite3.connect(store) as database:
        before = database.execute(count).fetchone()[0]
    metrics = project.root / "data" / "evaluation" / "metrics.json"
    assert "accuracy_given_script" not in metrics.read_text("utf-8")
    project.edit("params.yaml", "foreign_share: 0.0 #", "foreign_share: 0.05 #")
    ran = project.stages_run(project.dvc("repro"))
    assert ran == ["prepare", "train", "evaluate", "package", "simulate", "monitor"]
    with sqlite3.connect(store) as database:
        assert database.execute(count).fetchone()[0] == before + 1
        logged = dict(database.execute("select key, value from params").fetchall())
    database.close()
    assert logged["epochs"] == "1"

    lineage = json.loads((project.root / "data/model/lineage.json").read_text("utf-8"))
    assert lineage["scripts"] == ["mnist", "devanagari", "japanese"]
    figures = json.loads(metrics.read_text("utf-8"))
    assert list(figures) == ["mnist", "devanagari_rendered", "japanese_rendered"]
    for row in figures.values():
        assert (
            row["accuracy_given_script_low"]
            <= row["accuracy_given_script"]
            <= row["accuracy_given_script_high"]
        )
    assert any(row["accuracy_given_script"] != row["accuracy"] for row in figures.values())
    code = "import mlflow.pyfunc, numpy; model = mlflow.pyfunc.load_model('data/package')\n"
    code += "print(model.predict(numpy.zeros((2, 28, 28), 'uint8'))['scripts'].shape)"
    assert "(2, 3, 10)" in project.run(*python(code))
    assert "mlflow.db" not in project.git("status", "--short")
