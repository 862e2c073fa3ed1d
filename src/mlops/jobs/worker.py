"""Run the pipeline inside a job: `python -m mlops.jobs.worker`, in a copy of the git tree.

Input: the account of the container `review` (DIGITS_ACCOUNT), values of params.yaml on the command
line, and data in the container. Output: results in the container and in outputs/; see `results`.
When a stage fails, the job ends with code 1.

A job uses the outputs in dvc.lock, but not the run cache of another job, which may have run on
another machine or number of nodes. Each of several nodes runs the whole pipeline on its own disk,
in the same path. Only the first node uploads and logs, after stage train has ended on all nodes.
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

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, RunTag

from core import console, tf_config
from core.errors import DigitsError
from core.files import write_text
from mlops import dvc
from mlops.jobs import results
from mlops.review.snapshot import METRICS

EXPERIMENT = "digits"  # in MLflow; also used by stage train
# By default MLflow tries 7 times, 120 s each, which would delay the end of a job.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
CONFIG = """[core]
    analytics = false
    remote = {remote}
    no_scm = true
['remote "{remote}"']
    account_name = {account}
"""


def find_run() -> None:
    """Set the environment variables of the job's run in MLflow, for this process and the stages.

    Azure's workspace implements MLflow's API; its plug-in does not support the locked version of
    MLflow and is not used. If no run is given, as in the emulator, one is created.
    """
    os.environ.update(TIMEOUTS)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("azureml://"):
        os.environ["MLFLOW_TRACKING_URI"] = uri.replace("azureml://", "https://", 1)
        os.environ.setdefault("MLFLOW_TRACKING_TOKEN", os.environ.get("AZUREML_RUN_TOKEN", ""))
    elif uri.startswith("sqlite:///") and "MLFLOW_RUN_ID" not in os.environ:
        with FileLock(f"{uri.removeprefix('sqlite:///')}.lock"):  # or two may create the store
            mlflow.set_experiment(EXPERIMENT)
            run = mlflow.start_run(run_name=os.environ["AZUREML_RUN_ID"])
            mlflow.end_run()  # which unsets MLFLOW_RUN_ID
        os.environ["MLFLOW_RUN_ID"] = run.info.run_id


def log_run(metrics: dict[str, float], lock: str) -> None:
    """Log metrics, commit and hash of dvc.lock; stage train logs its params."""
    digest = hashlib.sha256(lock.encode()).hexdigest()
    tags = {"commit": os.environ.get("DIGITS_COMMIT", ""), "dvc_lock_sha256": digest}
    now = int(time.time() * 1000)
    mlflow.MlflowClient().log_batch(
        os.environ["MLFLOW_RUN_ID"],
        metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )


@contextlib.contextmanager
def log_mlflow_errors() -> Iterator[None]:
    """Print errors of MLflow, which do not fail the job."""
    try:
        yield
    except Exception as error:  # those of MLflow, SQLAlchemy, requests ...
        print(f"job: could not log the run to MLflow: {error}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Reproduce the pipeline, upload the results, write the summary."""
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
        with log_mlflow_errors():
            find_run()
    dvc.run("fetch", "--remote", results.REMOTE)
    dvc.checkout("--allow-missing")
    run = dvc.repro("--allow-missing", "--no-run-cache")
    if run.failed:
        raise DigitsError(f"{run.failed} failed: see above")
    if rank:
        return  # only the first node uploads and logs
    lock = Path(results.LOCK).read_text("utf-8")
    dvc.run("push", "--remote", results.REMOTE)
    table = Path(METRICS)
    measured = json.loads(table.read_text("utf-8")) if table.exists() else {}
    metrics = {
        f"{source}.{name}": value for source, row in measured.items() for name, value in row.items()
    }
    if tracked:
        with log_mlflow_errors():
            log_run(metrics, lock)
    pipeline = Path(results.PIPELINE).read_text("utf-8")
    names = (results.LOCK, results.PARAMS, *results.tables(pipeline, lock))
    results.place({name: Path(name).read_bytes() for name in names}, results.OUTPUTS)
    summary = {"set": asked.set, "metrics": metrics}
    write_text(results.OUTPUTS / results.SUMMARY, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(console.run("job", "mlops.jobs.worker", sys.argv[1:]))
