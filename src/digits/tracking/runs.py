"""Log trainings and evaluations to MLflow, after the outputs of the stage are complete.

Input: what a stage computed. Output: a run in data/mlflow.db and its files in data/mlruns, which
are neither in git nor in DVC, or in the store that MLFLOW_TRACKING_URI names. An evaluation finds
its run by the tag `model_sha256`; runs that differ in their seed alone share `configuration`.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from core.files import sha256

EXPERIMENT = "digits"
# By default MLflow tries 7 times, 120 s each, which would delay the end of a training, and sends
# usage data to its developers.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
LOCK_SECONDS = 120  # to wait for other runs
STARTED_MS = int(time.time() * 1000)  # when the stage imported this module


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Print an error instead of raising it: a failing store must not fail a stage."""
    try:
        yield
    except Exception as error:  # those of MLflow, SQLAlchemy, SQLite, requests ...
        print(f"could not log the run to MLflow: {error}", file=sys.stderr)


@contextlib.contextmanager
def store() -> Iterator[MlflowClient]:
    """Yield a client of the store."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        yield MlflowClient(uri)
        return
    path = data_folder() / "mlflow.db"
    with FileLock(f"{path}.lock", LOCK_SECONDS), contextlib.closing(sqlite3.connect(path)) as found:
        found.execute("PRAGMA schema_version")  # MLflow would retry a corrupted file
        yield MlflowClient(f"sqlite:///{path}")


def data_folder() -> Path:
    """Return the folder `data` of the project, also when an experiment runs in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "."), "data").resolve()


def create_run(client: MlflowClient, start_ms: int, tags: dict[str, str]) -> str:
    """Return the id of a new run with the name of the DVC experiment, if there is one."""
    found = client.get_experiment_by_name(EXPERIMENT)
    own = "MLFLOW_TRACKING_URI" not in os.environ
    files = (data_folder() / "mlruns").as_uri() if own else None
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, files)
    run = client.create_run(experiment, start_ms, tags, os.environ.get("DVC_EXP_NAME"))
    return str(run.info.run_id)


def describe(model: Path) -> dict[str, str]:
    """Return the tags of a run: the model's hash, git's commit and the DVC experiment."""
    git = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    commit = os.environ.get("DIGITS_COMMIT") or done.stdout.strip()
    experiment = os.environ.get("DVC_EXP_NAME", "")
    tags = {"model_sha256": sha256(model), "git_commit": commit, "dvc_experiment": experiment}
    return {name: value for name, value in tags.items() if value}


def finish(client: MlflowClient, run: str, folder: Path, name: str) -> None:
    """Log the files of a folder and end the run, unless a job of Azure ML does both."""
    if "MLFLOW_RUN_ID" not in os.environ:
        client.log_artifacts(run, str(folder), name)
        if client.get_run(run).info.status == "RUNNING":  # else it ended with the training
            client.set_terminated(run)


def log_training(folder: Path, curves: pd.DataFrame) -> None:
    """Log the params, the metrics of each epoch and the folder of the model to a new run."""
    now = int(time.time() * 1000)
    lineage = json.loads((folder / "lineage.json").read_text("utf-8"))
    values = lineage["params"]
    same = json.dumps(values | {"seed": None}, sort_keys=True)
    tags = describe(folder / "model.keras")
    tags |= {f"data_sha256.{name}": digest for name, digest in lineage["data"].items()}
    tags["configuration"] = hashlib.sha256(same.encode()).hexdigest()[:12]
    flat = pd.json_normalize(values).to_dict("records")[0]
    with reporting(), store() as client:
        run = os.environ.get("MLFLOW_RUN_ID") or create_run(client, STARTED_MS, {})
        client.log_batch(
            run,
            params=[Param(str(name), str(value)) for name, value in flat.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        for row in curves.to_dict("records"):
            step = int(row.pop("epoch"))
            metrics = [Metric(str(key), value, now, step) for key, value in row.items()]
            client.log_batch(run, metrics=metrics)
        finish(client, run, folder, "model")


def log_evaluation(metrics: dict[str, dict[str, float]], folder: Path, model: Path) -> None:
    """Log metrics {source: {name: value}} and a folder of tables and images to the model's run.

    If there is no run of the model, as after `dvc pull`, one with the tag `restored` is created.
    """
    now = int(time.time() * 1000)
    measured = [
        Metric(f"{source}.{name}", value, now, 0)
        for source, row in metrics.items()
        for name, value in row.items()
    ]
    with reporting(), store() as client:
        run = os.environ.get("MLFLOW_RUN_ID")
        if run is None:
            tags = describe(model)
            known = client.get_experiment_by_name(EXPERIMENT)
            wanted = f"tags.model_sha256 = '{tags['model_sha256']}'"
            found = client.search_runs([known.experiment_id], wanted) if known else []
            newest = [one.info.run_id for one in found[:1]]  # by default the newest comes first
            run = newest[0] if newest else create_run(client, now, tags | {"restored": "true"})
        client.log_batch(run, metrics=measured)
        finish(client, run, folder, "evaluation")
