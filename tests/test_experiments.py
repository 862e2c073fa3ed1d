"""DVC's own commands do here what its documentation promises; an edit runs only what it touches."""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose workspace holds an experiment with two epochs instead of one."""
    project = reproduced.copy(tmp_path_factory.mktemp("experiment") / "project")
    output = project.dvc("exp", "run", "--name", "longer", "-S", "epochs=2", "evaluate")
    assert project.stages_run(output) == ["train", "evaluate"]
    return project


def changed(project: Project) -> dict[str, set[str]]:
    """Return the deps of each stage that are not those of dvc.lock."""
    status: dict[str, list[Any]] = json.loads(project.dvc("status", "--json"))
    return {
        name.split("@")[0]: {dep for row in rows for dep in row["changed deps"]}
        for name, rows in status.items()
    }


@pytest.mark.slow(minutes=0.8)
def test_an_experiment_is_listed_with_its_epochs_and_metrics(experiment: Project) -> None:
    _, baseline = json.loads(experiment.dvc("exp", "show", "--json"))
    (listed,) = [found["revs"][0] for found in baseline["experiments"]]
    assert listed["name"] == "longer"
    assert listed["data"]["params"]["params.yaml"]["data"]["epochs"] == 2
    path = "data/evaluation/metrics.json"
    metrics = listed["data"]["metrics"][path]["data"]
    assert metrics == json.loads((experiment.root / path).read_text("utf-8"))
    assert metrics != baseline["data"]["metrics"][path]["data"]


@pytest.mark.prove
def test_diffs_show_what_an_experiment_changed(experiment: Project) -> None:
    params = json.loads(experiment.dvc("params", "diff", "--json"))
    assert params == {"params.yaml": {"epochs": {"old": 1, "new": 2, "diff": 1}}}
    metrics = json.loads(experiment.dvc("metrics", "diff", "--json"))
    assert metrics["data/evaluation/metrics.json"]["mnist.loss"]["diff"] != 0


@pytest.mark.prove
def test_plots_show_both_revisions(experiment: Project, tmp_path: Path) -> None:
    experiment.dvc("plots", "diff", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text("utf-8")
    for title in ("Loss while training", "Accuracy while training", "Accuracy by confidence"):
        assert title in page
    images = {path.name for path in (tmp_path / "static").iterdir()}
    for revision in ("HEAD", "workspace"):
        assert f"{revision}_data_evaluation_images_confusion_mnist.png" in images


def test_the_graph_has_every_stage(experiment: Project) -> None:
    graph = experiment.dvc("dag", "--mermaid")
    for stage in ("mnist", "prepare", "train", "evaluate", "package"):
        assert f'["{stage}"]' in graph


def test_going_back_to_old_params_takes_all_from_the_run_cache(
    experiment: Project, tmp_path: Path
) -> None:
    project = experiment.copy(tmp_path / "project")
    project.git("checkout", "--quiet", "params.yaml")
    assert project.stages_run(project.dvc("repro")) == []
    assert project.git("status", "--porcelain") == ""


@pytest.mark.prove
def test_a_queued_experiment_runs_the_code_it_was_queued_with(project: Project) -> None:
    module = "src/digits/pipeline/prepare.py"
    project.edit(module, 'print(f"{name}: "', 'print(f"queued {name}: "')
    project.dvc("exp", "run", "--queue", "--name", "queued", "-S", "seed=2", "prepare")
    project.edit(module, 'print(f"queued {name}: "', 'print(f"edited {name}: "')
    output = project.dvc("exp", "run", "--run-all")
    assert "queued training: " in output
    assert "edited" not in output
    assert "Success" in project.dvc("queue", "status")
    assert "edited {name}" in (project.root / module).read_text("utf-8")


@pytest.mark.prove
def test_a_grid_runs_two_at_a_time(project: Project) -> None:
    grid = ("-S", "train.batch_size=32,64", "-S", "train.peak_learning_rate=0.005,0.02")
    project.dvc("exp", "run", "--queue", *grid)
    store = project.root / "data" / "mlflow.db"
    store.unlink()  # so that two runs find none at the same time
    project.dvc("queue", "start", "--jobs", "2")
    queued = re.findall(r"^(\w{7})\s+(\S+)", project.dvc("queue", "status"), flags=re.M)
    assert len(queued) == 4
    for task, _ in queued:
        project.dvc("queue", "logs", "--follow", task)  # until it has ended
    assert project.dvc("queue", "status").count("Success") == 4

    _, baseline = json.loads(project.dvc("exp", "show", "--json"))
    found = {}
    for experiment in baseline["experiments"]:
        (listed,) = experiment["revs"]
        train = listed["data"]["params"]["params.yaml"]["data"]["train"]
        metrics = listed["data"]["metrics"]["data/evaluation/metrics.json"]["data"]
        found[listed["name"]] = train["batch_size"], train["peak_learning_rate"], str(metrics)
    assert {row[:2] for row in found.values()} == {(b, r) for b in (32, 64) for r in (0.005, 0.02)}
    assert len({row[2] for row in found.values()}) == 4
    with closing(sqlite3.connect(store)) as database:
        runs = database.execute("select name, status from runs").fetchall()
    assert sorted(runs) == sorted((name, "FINISHED") for name in found)
    assert project.git("status", "--porcelain") == ""


@pytest.mark.prove
def test_a_temporary_folder_needs_neither_npm_nor_environment(project: Project) -> None:
    project.edit("params.yaml", "source: data/small #", "source: package-lock.json #")
    old = "\n  reader: {format: csv, train: train.csv, test: test.csv}\n"
    project.edit("params.yaml", old, "\n  reader: {format: npm}\n")
    say = "\n    print('stands in', sorted(path.name for path in Path().iterdir()))\n"
    module = "src/digits/pipeline/mnist.py"
    project.edit(module, "\n    values = params.load()\n", say + "    values = params.load()\n")
    scripts = yaml.safe_load((project.root / "params.yaml").read_text("utf-8"))["foreign"]
    stages = ["mnist", *(f"foreign@{script}" for script in dict(scripts))]
    output = project.dvc("exp", "run", "--temp", "-S", "seed=2", *stages)
    assert sorted(project.stages_run(output)) == sorted(stages)
    assert "data/mnist/train.csv: 60,000 digits" in output
    (names,) = re.findall(r"stands in (\[.*\])", output)
    assert "'dvc.yaml'" in names
    assert "'node_modules'" not in names
    assert "'.venv'" not in names


def test_a_new_tensorflow_trains_again_and_a_new_ruff_does_nothing(project: Project) -> None:
    path = project.root / "requirements-dev.txt"
    text, count = re.subn(r"^ruff==\S+", "ruff==99.0.0", path.read_text("utf-8"), flags=re.M)
    assert count == 1
    path.write_text(text, "utf-8", newline="\n")
    expected: dict[str, set[str]] = {}
    for name, lock, stages in (
        ("matplotlib", "requirements.txt", ("mnist", "foreign", "prepare", "evaluate", "monitor")),
        ("tensorflow-cpu", "requirements-serve.txt", ("train", "package", "simulate")),
    ):
        path = project.root / lock
        new = f"{name}==99.0.0"
        text, count = re.subn(rf"^{name}==\S+", new, path.read_text("utf-8"), flags=re.M)
        assert count == 1
        path.write_text(text, "utf-8", newline="\n")
        expected |= {stage: {lock} for stage in stages}
    assert changed(project) == expected


def test_an_edit_touches_its_stages_alone(project: Project) -> None:
    """One status shows of each stage which of the edits it would run again for."""
    source, touched = project.root / "src" / "digits", "src/digits/"
    (source / "pipeline" / "extra.py").write_text('"""Stage extra."""\n')
    stages = ("mnist", "prepare", "train", "evaluate", "package")
    expected = {stage: {f"{touched}pipeline/{stage}.py"} for stage in stages}
    for module, again in (
        *((f"pipeline/{stage}.py", {stage}) for stage in stages),
        ("monitoring/report.py", {"monitor"}),
        ("tracking/runs.py", set[str]()),
        ("evaluation/metrics.py", {"evaluate"}),
        ("sources/readers.py", {"mnist", "foreign"}),
    ):
        path = source / module
        path.write_text(path.read_text("utf-8") + "# edited\n", "utf-8", newline="\n")
        for stage in again if "pipeline" not in module else ():
            expected.setdefault(stage, set()).add(touched + module.partition("/")[0])
    assert changed(project) == expected


@pytest.mark.prove
def test_an_experiment_runs_each_stage_after_the_first_that_changed(project: Project) -> None:
    output = project.dvc("exp", "run", "--name", "longer", "-S", "epochs=2")
    assert project.stages_run(output) == ["train", "evaluate", "package", "simulate", "monitor"]
