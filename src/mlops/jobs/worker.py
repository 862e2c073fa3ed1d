"""The pipeline inside a job: `python -m mlops.jobs.worker`, in a copy of what git has.

Enters: the account of the container `review`, as DIGITS_ACCOUNT, and values of params.yaml on the
command line. Data comes from there, results go there and to outputs/, as module `results` says. A
stage that fails ends the job with code 1.

A job restores what dvc.lock names and no run of another job, which may have had another machine or
number of nodes: what is new has the bytes of this one. Each of several nodes runs the whole
pipeline on a disk of its own, all on the same path; the first node, which alone pushes and logs,
does so when stage train is over on all.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag

from core import console, tf_config
from core.errors import DigitsError
from core.files import write_text
from mlops import dvc
from mlops.jobs import results
from mlops.review.snapshot import METRICS

EXPERIMENT = "digits"  # of MLflow, as stage train names it, too
# MLflow's own 7 tries of 120 s each would hold up a job that is over.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
CONFIG = """[core]
    analytics = false
    remote = {remote}
    no_scm = true
['remote "{remote}"']
    account_name = {account}
"""


def find_run() -> None:
    """Let this and the stages write to the job's own run in MLflow.

    On Azure the plain client speaks to the workspace, whose API is MLflow's: Azure's plug-in
    allows no MLflow that is as new as the locked one. Where no run is given, as by the stand-in,
    one is made.
    """
    os.environ.update(TIMEOUTS)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("azureml://"):
        os.environ["MLFLOW_TRACKING_URI"] = uri.replace("azureml://", "https://", 1)
        os.environ.setdefault("MLFLOW_TRACKING_TOKEN", os.environ.get("AZUREML_RUN_TOKEN", ""))
    elif uri.startswith("sqlite:///") and "MLFLOW_RUN_ID" not in os.environ:
        with FileLock(f"{uri.removeprefix('sqlite:///')}.lock"):  # two would make it twice
            mlflow.set_experiment(EXPERIMENT)
            run = mlflow.start_run(run_name=os.environ["AZUREML_RUN_ID"])
            mlflow.end_run()  # which forgets MLFLOW_RUN_ID
        os.environ["MLFLOW_RUN_ID"] = run.info.run_id


def log_run(metrics: dict[str, float], lock: str) -> None:
    """Log what the job measured and where it comes from; then the params that dvc.lock has.

    MLflow refuses a param that has another value already, and all that comes with it.
    """
    client, run = mlflow.MlflowClient(), os.environ["MLFLOW_RUN_ID"]
    digest = hashlib.sha256(lock.encode()).hexdigest()
    tags = {"commit": os.environ.get("DIGITS_COMMIT", ""), "dvc_lock_sha256": digest}
    now = int(time.time() * 1000)
    client.log_batch(
        run,
        metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    tracked: dict[str, Any] = {}
    for stage in results.stages(lock).values():
        tracked |= stage.get("params", {}).get(results.PARAMS, {})
    flat = pd.json_normalize(tracked).to_dict("records")[0]
    rows = [
        Param(str(name), str(value)) for name, value in flat.items() if not isinstance(value, list)
    ]
    client.log_batch(run, params=rows)  # in requests of as many as MLflow takes


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Tell when MLflow does not take the run; that stops no job."""
    try:
        yield
    except Exception as error:  # those of MLflow, SQLAlchemy, requests ...
        print(f"job: could not log the run to MLflow: {error}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Reproduce the pipeline, push what it made, write down how."""
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args(arguments)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    account = os.environ.get("DIGITS_ACCOUNT", "")
    if "DEFAULT_IDENTITY_CLIENT_ID" in os.environ:  # Azure's name for the compute's identity
        os.environ.setdefault("AZURE_CLIENT_ID", os.environ["DEFAULT_IDENTITY_CLIENT_ID"])
    config = CONFIG.format(remote=results.REMOTE, account=account)
    write_text(Path(".dvc", "config.local"), config)
    if asked.set:
        results.change_params(asked.set)
    _, rank = tf_config.read()
    if tracked := rank == 0 and "MLFLOW_TRACKING_URI" in os.environ:
        with forgiving():
            find_run()
    results.download_inputs()
    run = dvc.repro("--pull", "--allow-missing", "--no-run-cache")
    if run.failed:
        raise DigitsError(f"{run.failed} failed: see above")
    if rank:
        return  # the first node speaks for all
    lock = Path(results.LOCK).read_text("utf-8")
    results.upload_outputs()
    table = Path(METRICS)
    measured = json.loads(table.read_text("utf-8")) if table.exists() else {}
    metrics = {
        f"{source}.{name}": value for source, row in measured.items() for name, value in row.items()
    }
    if tracked:
        with forgiving():
            log_run(metrics, lock)
    pipeline = Path(results.PIPELINE).read_text("utf-8")
    names = (results.LOCK, results.PARAMS, *results.tables(pipeline, lock))
    results.place({name: Path(name).read_bytes() for name in names}, results.OUTPUTS)
    summary = {"set": asked.set, "metrics": metrics, "machine": results.machine()}
    write_text(results.OUTPUTS / results.SUMMARY, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(console.run("job", "mlops.jobs.worker", sys.argv[1:]))
