"""Log a training run to MLflow, after the outputs of the stage are complete.

Input: the parameters of the training and its curves. Output: a run in data/mlflow.db, which is
neither in git nor in DVC, or in the store that MLFLOW_TRACKING_URI names.
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

# By default MLflow tries 7 times, 120 s each, which would delay the end of a training.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
LOCK_SECONDS = 120  # to wait for other runs


def flattened(values: dict[str, Any]) -> list[Param]:
    """Return nested values as MLflow params with dotted names."""
    flat = pd.json_normalize(values).to_dict("records")[0]
    return [Param(str(name), str(value)) for name, value in flat.items()]


def log_run(values: dict[str, Any], curves: pd.DataFrame) -> None:
    """Log one run to MLflow; an error is printed and does not fail the stage."""
    given = flattened(values)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in TIMEOUTS.items():
        os.environ.setdefault(name, value)
    try:
        if "MLFLOW_TRACKING_URI" in os.environ:
            log_curves(given, curves)
            return
        store = Path(os.environ.get("DVC_ROOT", "."), "data", "mlflow.db").resolve()
        with FileLock(f"{store}.lock", LOCK_SECONDS), closing(sqlite3.connect(store)) as database:
            database.execute("PRAGMA schema_version")  # MLflow would retry a corrupted file
            mlflow.set_tracking_uri(f"sqlite:///{store}")
            log_curves(given, curves)
    except Exception as error:  # those of MLflow, SQLAlchemy, SQLite, requests ...
        print(f"train: could not log the run to MLflow: {error}", file=sys.stderr)


def log_curves(given: list[Param], curves: pd.DataFrame) -> None:
    """Log to the run MLFLOW_RUN_ID, or to a new run with the name of the DVC experiment.

    MLFLOW_RUN_ID is set in an Azure ML job, which ends its run itself.
    """
    if run := os.environ.get("MLFLOW_RUN_ID"):
        write_run(run, given, curves)
        return
    mlflow.set_experiment("digits")
    with mlflow.start_run(run_name=os.environ.get("DVC_EXP_NAME")) as begun:
        write_run(begun.info.run_id, given, curves)


def write_run(run: str, given: list[Param], curves: pd.DataFrame) -> None:
    """Write params and curves to a run without changing its status."""
    client, now = mlflow.MlflowClient(), int(time.time() * 1000)
    client.log_batch(run, params=given)
    for row in curves.to_dict("records"):
        step = int(row.pop("epoch"))
        metrics = [Metric(str(key), value, now, step) for key, value in row.items()]
        client.log_batch(run, metrics=metrics)
