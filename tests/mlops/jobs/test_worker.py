"""The worker of a job by itself: what it restores, and its run in MLflow.

That is written as the locked client writes it to a workspace: over TLS on loopback.
"""

import dataclasses
import json
import os
import shutil
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from conftest import Project
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from azureml_emulator.web import make_certificate
from core import params
from mlops.jobs import results, worker

WORKSPACE = "/mlflow/v1.0/subscriptions/S/resourceGroups/G/providers/P/workspaces/W"
OWN = ("TRACKING_URI", "TRACKING_TOKEN", "RUN_ID", "EXPERIMENT_ID")
VARIABLES = (*(f"MLFLOW_{name}" for name in OWN), *worker.PATIENCE)
STORE = pytest.mark.filterwarnings("ignore:The ``noload``:DeprecationWarning")  # MLflow's store


@pytest.fixture(name="tracking")
def a_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Serve what a workspace answers to MLflow's client; yield its port and the requests to it."""
    requests: list[tuple[str, str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers.get("Authorization", ""), body))
            self.send_response(found.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    forget(monkeypatch)
    authority, certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        found = SimpleNamespace(port=server.server_port, requests=requests, status=200)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset what the worker sets, so that it is undone after the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(name="run")
def a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Begin a job's run in a store of its own, as on the stand-in; return its id."""
    forget(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("AZUREML_RUN_ID", "digits-1")
    worker.find_run()
    return os.environ["MLFLOW_RUN_ID"]


def in_job(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Set what Azure ML sets in a job."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"azureml://127.0.0.1:{port}{WORKSPACE}")
    monkeypatch.setenv("MLFLOW_RUN_ID", "digits-1")
    monkeypatch.setenv("AZUREML_RUN_TOKEN", "of-the-run")
    monkeypatch.setenv("DIGITS_COMMIT", "c0ffee")


def test_a_run_is_written_to_the_workspace(
    tracking: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_job(monkeypatch, tracking.port)
    with worker.forgiving():
        worker.find_run()
        worker.log_run({"mnist.accuracy": 0.997}, "schema: '2.0'\n")
    assert capsys.readouterr().err == ""
    for path, authorization, body in tracking.requests:
        assert path == f"{WORKSPACE}/api/2.0/mlflow/runs/log-batch"
        assert authorization == "Bearer of-the-run"
        assert body["run_id"] == "digits-1"
    measured, settings = (body for _, _, body in tracking.requests)
    assert [(one["key"], one["value"]) for one in measured["metrics"]] == [
        ("mnist.accuracy", 0.997)
    ]
    assert {one["key"]: one["value"] for one in measured["tags"]}["commit"] == "c0ffee"
    logged = {one["key"]: one["value"] for one in settings["params"]}
    assert logged["batch_size"] == str(params.load()["train"]["batch_size"])


def test_the_stage_in_a_job_does_not_say_how_the_job_stands(
    tracking: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from digits.tracking import runs

    in_job(monkeypatch, tracking.port)
    worker.find_run()
    curves = pd.DataFrame({"epoch": [1, 2], "loss": [0.2, 0.1]})
    runs.log_run({"batch_size": 64}, curves)
    assert capsys.readouterr().err == ""
    for path, _, body in tracking.requests:
        assert path == f"{WORKSPACE}/api/2.0/mlflow/runs/log-batch"  # and not runs/update
        assert body["run_id"] == "digits-1"
    settings, *epochs = (body for _, _, body in tracking.requests)
    assert settings["params"] == [{"key": "batch_size", "value": "64"}]
    logged = [(one["key"], one["value"], one["step"]) for body in epochs for one in body["metrics"]]
    assert logged == [("loss", 0.2, 1), ("loss", 0.1, 2)]
    assert os.environ["MLFLOW_RUN_ID"] == "digits-1"


@STORE
def test_the_job_and_its_stage_log_the_same_params(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from digits.model.training import Recipe
    from digits.tracking import runs

    values = params.load()
    values["train"] |= {"weight_decay": 0}  # a float, written as a whole number
    monkeypatch.setattr(params, "load", lambda: values)
    own = params.section(Recipe, values, "train")
    curves = pd.DataFrame({"epoch": [1], "loss": [0.1]})
    given = {"epochs": values["epochs"], "seed": values["seed"]} | dataclasses.asdict(own)
    runs.log_curves(runs.flattened(given), curves)
    before = MlflowClient().get_run(run).data.params
    assert before["weight_decay"] == "0.0"
    worker.log_run({"mnist.accuracy": 0.997}, "")
    after = MlflowClient().get_run(run).data
    assert after.params == before
    assert after.metrics == {"loss": 0.1, "mnist.accuracy": 0.997}


@STORE
def test_metrics_are_logged_though_params_are_refused(run: str) -> None:
    MlflowClient().log_param(run, "batch_size", "another")
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        worker.log_run({"mnist.accuracy": 0.997}, "")
    assert MlflowClient().get_run(run).data.metrics == {"mnist.accuracy": 0.997}


def test_a_workspace_that_takes_no_run_stops_no_job(
    tracking: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_job(monkeypatch, tracking.port)
    tracking.status = 403
    with worker.forgiving():
        worker.find_run()
        worker.log_run({"mnist.accuracy": 0.997}, "")
    assert "MLflow did not take the run:" in capsys.readouterr().err
    assert len(tracking.requests) == 1


def test_a_job_restores_no_run_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    project.dvc("remote", "add", results.REMOTE, str(tmp_path / "remote"))
    (project.root / "params.yaml").write_text("{}")
    (project.root / "pool.txt").write_text("ten digits")
    write = "python -c \"import os; open('model.txt', 'w').write(os.environ['MACHINE'])\""
    stage = ("--name", "train", "--deps", "pool.txt", "--outs", "model.txt", write)
    project.dvc("stage", "add", "--run", *stage, MACHINE="a GPU")
    monkeypatch.chdir(project.root)
    lock = Path("dvc.lock")
    results.push(lock.read_text())
    for made in (lock, Path("model.txt")):
        made.unlink()
    shutil.rmtree(".dvc/cache")
    monkeypatch.setattr(worker, "CONFIG", f"[core]\n    remote = {results.REMOTE}\n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MACHINE", "a plain CPU")
    worker.main([])
    assert Path("model.txt").read_text() == "a plain CPU"
    assert json.loads((results.OUTPUTS / results.ACCOUNT).read_text())["set"] == []
