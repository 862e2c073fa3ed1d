"""The worker of a job by itself: what it restores, and its run in MLflow.

That is written as the locked client writes it to a workspace: over TLS on loopback.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import Project
from tiny import Tiny

from azureml_emulator.web import make_certificate
from core.errors import DigitsError
from mlops import dvc
from mlops.jobs import results, worker

WORKSPACE = "/mlflow/v1.0/subscriptions/S/resourceGroups/G/providers/P/workspaces/W"
OWN = ("TRACKING_URI", "TRACKING_TOKEN", "RUN_ID", "EXPERIMENT_ID")
VARIABLES = (*(f"MLFLOW_{name}" for name in OWN), *worker.TIMEOUTS)
TRAIN = {"batch_size": 64, "distortion": {"shear": 0.2}}
TRACKED = [{"epochs": 20, "classes": ["0", "1"]}, {"train": TRAIN}]  # params of two stages
LOCK = yaml.safe_dump(
    {
        "stages": {
            **{f"stage{n}": {"params": {"params.yaml": one}} for n, one in enumerate(TRACKED)},
            "without": {},
        }
    }
)
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
    authority = tmp_path / "authority.pem"
    context = make_certificate(authority)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
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
    """Begin a job's run in a store of its own, as on the emulator; return its id."""
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
    with worker.log_mlflow_errors():
        worker.find_run()
        worker.log_run({"mnist.accuracy": 0.997}, LOCK)
    assert capsys.readouterr().err == ""
    for path, authorization, body in tracking.requests:
        assert path == f"{WORKSPACE}/api/2.0/mlflow/runs/log-batch"
        assert authorization == "Bearer of-the-run"
        assert body["run_id"] == "digits-1"
    (measured,) = (body for _, _, body in tracking.requests)
    assert [(one["key"], one["value"]) for one in measured["metrics"]] == [
        ("mnist.accuracy", 0.997)
    ]
    assert {one["key"]: one["value"] for one in measured["tags"]}["commit"] == "c0ffee"


def test_the_stage_in_a_job_does_not_say_how_the_job_stands(
    tmp_path: Path,
    tracking: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from digits.tracking import runs

    in_job(monkeypatch, tracking.port)
    worker.find_run()
    curves = pd.DataFrame({"epoch": [1, 2], "loss": [0.2, 0.1]})
    (tmp_path / "model.keras").write_bytes(b"weights")
    (tmp_path / "lineage.json").write_text('{"params": {"batch_size": 64}, "data": {}}')
    runs.log_training(tmp_path, curves)
    assert capsys.readouterr().err == ""
    for path, _, body in tracking.requests:
        assert path == f"{WORKSPACE}/api/2.0/mlflow/runs/log-batch"  # and not runs/update
        assert body["run_id"] == "digits-1"
    settings, *epochs = (body for _, _, body in tracking.requests)
    assert settings["params"] == [{"key": "batch_size", "value": "64"}]
    logged = [(one["key"], one["value"], one["step"]) for body in epochs for one in body["metrics"]]
    assert logged == [("loss", 0.2, 1), ("loss", 0.1, 2)]
    assert os.environ["MLFLOW_RUN_ID"] == "digits-1"


def test_a_workspace_that_takes_no_run_stops_no_job(
    tracking: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_job(monkeypatch, tracking.port)
    tracking.status = 403
    with worker.log_mlflow_errors():
        worker.find_run()
        worker.log_run({"mnist.accuracy": 0.997}, "")
    assert "could not log the run to MLflow:" in capsys.readouterr().err
    assert len(tracking.requests) == 1


@pytest.mark.prove
def test_a_job_restores_no_run_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    project.dvc("remote", "add", results.REMOTE, str(tmp_path / "remote"))
    (project.root / "params.yaml").write_text("train: {size: 1} # kept\n")
    (project.root / "pool.txt").write_text("ten digits")
    write = "python -c \"import os; open('model.txt', 'w').write(os.environ['MACHINE'])\""
    inputs = ("--deps", "pool.txt", "--params", "train.size")
    stage = (*inputs, "--outs", "model.txt", "--metrics-no-cache", "pool.txt.json")
    write += " && echo {} > pool.txt.json"
    for size in (2, 1):
        (project.root / "params.yaml").write_text(f"train: {{size: {size}}} # kept\n")
        if size == 2:
            project.dvc("stage", "add", "--run", "--name", "train", *stage, write, MACHINE="a GPU")
        else:
            project.dvc("repro", MACHINE="a GPU")
    project.dvc("push", "--run-cache", "--remote", results.REMOTE)
    monkeypatch.chdir(project.root)
    shutil.rmtree(".dvc/cache")
    monkeypatch.setattr(worker, "CONFIG", f"[core]\n    remote = {results.REMOTE}\n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MACHINE", "a plain CPU")
    before = set((tmp_path / "remote").rglob("*"))
    worker.main(["--set", "train.size=2"])
    assert Path("model.txt").read_text() == "a plain CPU"
    outputs = {file.name: file.read_text() for file in results.OUTPUTS.iterdir()}
    assert outputs.keys() == {"dvc.lock", "params.yaml", "pool.txt.json", results.SUMMARY}
    assert outputs["params.yaml"] == "train: {size: 2} # kept\n"
    assert json.loads(outputs[results.SUMMARY])["set"] == ["train.size=2"]
    new = [file for file in (tmp_path / "remote").rglob("*") if file not in before]
    assert [file.read_text() for file in new if file.is_file()] == ["a plain CPU"]


OUTSIDE = r"'\.\./\.\./x\.py' is not below the folder"


def listed_outside(folder: Path) -> Tiny:
    """Return a project whose folder data/more has a listing that leads to x.py beside it."""
    project = Tiny(folder / "project")
    project.write("params.yaml", "size: 1\n")
    project.write("data/.gitignore", "")
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    project.dvc("remote", "add", results.REMOTE, str(folder / "remote"))
    project.forge_listing("data/more", "print()\n", "../../x.py")
    project.commit("Labelled digits of somebody")
    return project


@pytest.mark.slow
def test_a_job_follows_no_listing_out_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = listed_outside(tmp_path)
    (project.root / ".dvc" / "cache").rename(tmp_path / "remote")
    shutil.rmtree(project.root / "data" / "more")
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(worker, "CONFIG", f"[core]\n    remote = {results.REMOTE}\n")
    with pytest.raises(DigitsError, match=OUTSIDE):
        worker.main([])
    assert not Path("x.py").exists() and list(Path(".dvc/cache").rglob("*.dir"))


@pytest.mark.slow
def test_what_a_job_needs_is_checked_before_it_is_checked_out_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(listed_outside(tmp_path).root)
    commands: list[str] = []
    run = dvc.run

    def recorded(*words: str, **options: Any) -> str:
        commands.append(words[0])
        return run(*words, **options)

    monkeypatch.setattr(dvc, "run", recorded)
    with pytest.raises(DigitsError, match=OUTSIDE):
        results.upload_inputs({"url": str(tmp_path / "remote")})
    assert "checkout" not in commands and "pull" not in commands


@pytest.mark.slow
def test_a_file_of_dvc_that_leads_out_of_its_folder_is_not_even_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = listed_outside(tmp_path)
    project.write("data/more.dvc", "wdir: ..\n" + (project.root / "data/more.dvc").read_text())
    project.commit("And elsewhere")
    monkeypatch.chdir(project.root)
    with pytest.raises(DigitsError, match=r"more\.dvc: it has more than the one file"):
        results.upload_inputs({"url": str(tmp_path / "remote")})


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has other rights")
def test_the_key_in_a_temporary_worktree_is_for_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    project.git("commit", "--quiet", "--message", "one")
    monkeypatch.chdir(tmp_path)
    with results.worktree("HEAD", {"connection_string": "AccountKey=x"}) as tree:
        local = tree.folder / ".dvc" / "config.local"
        assert "AccountKey=x" in local.read_text()
        assert local.stat().st_mode & 0o777 == 0o600
