"""Log a training run to MLflow, after the outputs of the stage are complete.

Input: the values that the network was trained with, and its curves. By default the run goes to a
local store below data/ that neither git nor DVC keeps; MLFLOW_TRACKING_URI names another.
"""

import logging
import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow.entities import Metric, Param

# MLflow's own 7 tries of 120 s each would hold up a training that is over.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
LOCK_SECONDS = 120  # waiting for other runs, which take seconds each


def flattened(values: dict[str, Any]) -> list[Param]:
    """Return nested values as MLflow's params, with dots in the names of inner ones."""
    flat = pd.json_normalize(values).to_dict("records")[0]
    return [Param(str(name), str(value)) for name, value in flat.items()]


def log_run(values: dict[str, Any], curves: pd.DataFrame) -> None:
    """Log one run to MLflow; a store that cannot be reached is reported and stops nothing."""
    given = flattened(values)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        if "MLFLOW_TRACKING_URI" in os.environ:
            log_curves(given, curves)
            return
        store = Path(os.environ.get("DVC_ROOT", "."), "data", "mlflow.db").resolve()
        with FileLock(f"{store}.lock", LOCK_SECONDS), closing(sqlite3.connect(store)) as database:
            database.execute("PRAGMA schema_version")  # MLflow would try a bad file for hours
            mlflow.set_tracking_uri(f"sqlite:///{store}")
            log_curves(given, curves)
    except Exception as error:  # those of MLflow, SQLAlchemy, SQLite, requests ...
        print(f"train: MLflow did not take the run: {error}", file=sys.stderr)


def log_curves(given: list[Param], curves: pd.DataFrame) -> None:
    """Log to the run that MLFLOW_RUN_ID names, or to a new one, named as the DVC experiment is.

    A run that is named is that of an Azure ML job, which ends it itself.
    """
    if run := os.environ.get("MLFLOW_RUN_ID"):
        write_run(run, given, curves)
        return
    mlflow.set_experiment("digits")
    with mlflow.start_run(run_name=os.environ.get("DVC_EXP_NAME")) as begun:
        write_run(begun.info.run_id, given, curves)


def write_run(run: str, given: list[Param], curves: pd.DataFrame) -> None:
    """Write params and curves to a run, and nothing of how it stands."""
    client, now = mlflow.MlflowClient(), int(time.time() * 1000)
    client.log_batch(run, params=given)
    for row in curves.to_dict("records"):
        step = int(row.pop("epoch"))
        metrics = [Metric(str(key), value, now, step) for key, value in row.items()]
        client.log_batch(run, metrics=metrics)
