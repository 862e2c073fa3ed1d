"""Stage foreign with real digits in the place of rendered ones, as published sets have them."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import frozen
import numpy as np
import pytest
from archives import png, write_zip
from conftest import ROOT, Project, copy_tracked, python, random_digits
from ruamel.yaml import YAML

from core import params
from core.dataset import read_csv
from core.errors import DigitsError
from digits.pipeline import foreign
from digits.pipeline.foreign import Params, PerClass, script_of, select_parts
from digits.sources.fetch import SETS


def block(script: str) -> dict[str, Any]:
    """Return a script's block as `digits data fetch` writes it."""
    found = SETS[script]
    source = f"data/raw/{found.file}"
    return {"source": source, "per_class": found.per_class, "reader": found.reader}


@pytest.mark.parametrize("script", SETS)
def test_the_published_blocks_are_valid(script: str) -> None:
    values = {"foreign": {script: block(script)}}
    params.section(Params, values, f"foreign.{script}")
    assert params.foreign_scripts(values) == {script: False}


LAYOUTS = {
    "devanagari": "DevanagariHandwrittenCharacterDataset/{part}/digit_{label}/{number}.png",
    "japanese": "data/input_{writer}_{number}_{code}.jpg",
    "japanese as published": "Raw Dataset/Locate{{{writer},{number},{code}}}.jpg",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_block_reads_its_layout(
    tmp_path: Path,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = layout.split()[0]
    files = {
        LAYOUTS[layout].format(
            part=part, label=label, code=label + 1, number=number, writer=writer
        ): png(number, 32 + label)
        for part, count, writer in (("Train", 5, 80), ("Test", 2, 81))
        for label in range(10)
        for number in range(count)
    }
    own = block(script) | {"per_class": {"train": 3, "test": 2, "production": 2}}
    (tmp_path / "data" / "raw").mkdir(parents=True)
    write_zip(tmp_path / own["source"], files)
    YAML().dump(frozen.values() | {"foreign": {script: own}}, tmp_path / "params.yaml")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", f"foreign@{script}")
    foreign.main(["--out", "data/foreign"])
    assert "rendered" not in capsys.readouterr().out
    for part, count in {"train": 3, "test": 2, "production": 2}.items():
        digits = read_csv(tmp_path / f"data/foreign/{script}_{part}.csv", 28, 10, script)
        assert np.bincount(digits.labels).tolist() == [count] * 10
        assert digits.images.max() == 255


def test_no_command_has_a_key_or_value_of_params_in_it() -> None:
    """DVC escapes nothing that `${...}` puts into a command."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    commands = [(stage.get("do") or stage)["cmd"] for stage in stages.values()]
    assert len(commands) == 8
    assert [command for command in commands if "$" in command] == []


@pytest.mark.slow
def test_a_key_of_params_reaches_no_shell(tmp_path: Path) -> None:
    keys = ("x; touch pwned #", "x$(touch pwned)", "x\ntouch pwned\n#")
    project = Project(tmp_path)
    copy_tracked(tmp_path)
    project.git("init", "--quiet")
    values = params.load(tmp_path / "params.yaml")
    values["foreign"] = dict.fromkeys(keys, values["foreign"]["devanagari"])
    YAML().dump(values, tmp_path / "params.yaml")
    stages = [f"foreign@{key}" for key in keys]
    output = project.dvc("repro", "--keep-going", *stages, code=255)
    assert not (tmp_path / "pwned").exists()
    said = "a key of params.yaml's foreign in lower-case letters, digits and _"
    assert output.count(said) == len(keys)


def test_the_stage_says_how_it_is_run() -> None:
    for name in ("", "mnist", "foreign@", "foreign@X", "foreign@x; id"):
        with pytest.raises(DigitsError, match="run 'dvc repro foreign@SCRIPT'"):
            script_of(name)
    assert script_of("foreign@devanagari") == script_of("../dvc.yaml:foreign@devanagari")


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
