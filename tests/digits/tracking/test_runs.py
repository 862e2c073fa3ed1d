"""What a run logs, and that no store of runs can stop a training."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from conftest import NAME

from digits.model.training import CURVES
from digits.tracking import runs as module
from digits.tracking.runs import log_evaluation, log_training

pytestmark = pytest.mark.slow

ROWS = pd.DataFrame([[1, 0.5, 0.9, 0.4, 0.92], [2, 0.4, 0.93, 0.3, 0.95]], columns=CURVES)
STORE = pytest.mark.filterwarnings("ignore:The ``noload``:DeprecationWarning")  # MLflow's store
MEASURED = {"mnist": {"accuracy": 0.99}, "japanese": {"accuracy": 0.9}}


@pytest.fixture(name="model")
def a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project with a folder of data and a model, and no settings of MLflow."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_EXP_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    path = tmp_path / "data" / "model" / "model.keras"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


def train(model: Path, **values: int) -> None:
    """Log a training."""
    given = {"epochs": 2, "seed": 1, "train": {"batch_size": 64}} | values
    lineage = {"params": given, "data": {"training.npz": "da7a"}}
    model.with_name("lineage.json").write_text(json.dumps(lineage))
    log_training(model.parent, ROWS)


def runs(tmp_path: Path) -> list[mlflow.entities.Run]:
    """Return all runs of the project, the newest first."""
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'data' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(NAME)
    return client.search_runs([experiment.experiment_id])


def damaged(store: Path) -> None:
    store.write_bytes(b"no database" * 100)


@pytest.mark.parametrize("damage", [Path.mkdir, damaged], ids=["a folder", "damaged"])
def test_a_store_that_takes_nothing_is_reported_and_stops_nothing(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    damage(tmp_path / "data" / "mlflow.db")
    train(model)
    assert "could not log the run to MLflow" in capsys.readouterr().err


@STORE
def test_a_training_and_its_evaluation_are_one_run(
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "fast-eel")
    monkeypatch.setattr(module, "STARTED_MS", module.STARTED_MS - 3_600_000)
    train(model)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "confusion.png").write_bytes(b"PNG")
    log_evaluation(MEASURED, folder, model)
    assert capsys.readouterr().err == ""
    (run,) = runs(tmp_path)
    log_evaluation(MEASURED, folder, model)  # again, later
    (again,) = runs(tmp_path)
    assert again.info.end_time == run.info.end_time
    assert (run.info.run_name, run.info.status) == ("fast-eel", "FINISHED")
    assert run.data.params == {"epochs": "2", "seed": "1", "train.batch_size": "64"}
    measured = run.data.metrics
    assert (measured["mnist.accuracy"], measured["japanese.accuracy"]) == (0.99, 0.9)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'data' / 'mlflow.db'}")
    epochs = client.get_metric_history(run.info.run_id, "validation_accuracy")
    assert [(one.step, one.value) for one in epochs] == [(1, 0.92), (2, 0.95)]
    assert 3600 <= (run.info.end_time - run.info.start_time) / 1000 < 7200
    tags = run.data.tags
    assert tags["dvc_experiment"] == "fast-eel"
    assert (tags["data_sha256.training.npz"], len(tags["model_sha256"])) == ("da7a", 64)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", tags["git_commit"])
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["evaluation", "model"]
    assert (tmp_path / "data" / "mlruns").is_dir()


@STORE
def test_runs_that_differ_in_their_seed_are_grouped(model: Path, tmp_path: Path) -> None:
    for values in ({"seed": 1}, {"seed": 2}, {"seed": 1, "epochs": 3}):
        train(model, **values)
    found = {
        (run.data.params["seed"], run.data.params["epochs"]): run.data.tags["configuration"]
        for run in runs(tmp_path)
    }
    assert found["1", "2"] == found["2", "2"] != found["1", "3"]


@pytest.mark.prove
@STORE
def test_an_evaluation_without_a_training_is_marked_as_restored(
    model: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        log_evaluation(MEASURED, model.parent, model)
    (run,) = runs(tmp_path)
    assert run.data.tags["restored"] == "true"
    assert run.data.metrics["mnist.accuracy"] == 0.99


def test_a_server_that_is_not_there_is_reported_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    train(model)
    log_evaluation(MEASURED, model.parent, model)
    assert capsys.readouterr().err.count("could not log the run to MLflow") == 2
