"""Stage train: what it logs, and that no store of runs can stop it."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from digits.pipeline.train import log_run
from digits.training import CURVES

ROW = pd.DataFrame([[1, 0.5, 0.9, 0.4, 0.92]], columns=CURVES)


def damaged(store: Path) -> None:
    store.write_bytes(b"no database" * 100)


@pytest.mark.parametrize("damage", [Path.mkdir, damaged], ids=["a folder", "damaged"])
def test_a_store_that_takes_nothing_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    (tmp_path / "data").mkdir()
    damage(tmp_path / "data" / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_run({"epochs": 1}, ROW)
    assert "MLflow did not take the run" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_run({"epochs": 1}, ROW)
    assert "MLflow did not take the run" in capsys.readouterr().err
