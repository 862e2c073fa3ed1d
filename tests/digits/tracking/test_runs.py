"""What a run logs, and that no store of runs can stop a training."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from digits.model.training import CURVES
from digits.tracking.runs import log_run

ROW = pd.DataFrame([[1, 0.5, 0.9, 0.4, 0.92]], columns=CURVES)
GIVEN = {"epochs": 1}


def damaged(store: Path) -> None:
    store.write_bytes(b"no database" * 100)


@pytest.mark.parametrize("damage", [Path.mkdir, damaged], ids=["a folder", "damaged"])
def test_a_store_that_takes_nothing_is_reported_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    (tmp_path / "data").mkdir()
    damage(tmp_path / "data" / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_run(GIVEN, ROW)
    assert "could not log the run to MLflow" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The ``noload``:DeprecationWarning")  # MLflow's store
def test_a_run_of_its_own_has_the_experiments_name_and_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("DVC_EXP_NAME", "fast-eel")
    log_run(GIVEN, ROW)
    assert capsys.readouterr().err == ""
    (run,) = mlflow.search_runs(experiment_names=["digits"], output_format="list")
    assert (run.info.run_name, run.info.status) == ("fast-eel", "FINISHED")
    assert run.data.params == {"epochs": "1"}
    assert run.data.metrics["validation_accuracy"] == 0.92


def test_a_server_that_is_not_there_is_reported_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_run(GIVEN, ROW)
    assert "could not log the run to MLflow" in capsys.readouterr().err
