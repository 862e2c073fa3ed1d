"""Damaged state: what a program reads when it starts is used, or named with the way out."""

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from conftest import ROOT

with warnings.catch_warnings():  # of the libraries that Azure's SDK stands on
    warnings.simplefilter("ignore")
    from azureml_emulator import client
    from mlops.azure import workspace
from azureml_emulator.server import Emulator
from azureml_emulator.state import VERSION
from azureml_emulator.web import EmulatorError
from core import console, params
from core.errors import DigitsError
from digits.monitoring.drift import FORMAT, Reference
from digits.monitoring.histograms import CLASSES_START
from digits.production import scoring
from mlops import dvc
from mlops.azure import connection
from mlops.azure.batch import Batch
from mlops.dashboard.watch import REFERENCE as PAGES
from mlops.dashboard.watch import Project
from mlops.deploy import release, smoke
from mlops.production import simulate
from mlops.production.sender import Address

NOBODY = 65534
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
RESOURCE = {"id": "/a/workspaces/w/x/a", "name": "a", "properties": {}, "systemData": {}}
STATE = {"version": VERSION, "resources": {RESOURCE["id"]: RESOURCE}, "operations": {}}
STATE |= {"keys": {"a": ["b"]}, "contents": {"a": {"b": 1}}, "images": {"e": 1.5}}
ADDRESS = {"secret": "t", "url": "https://127.0.0.1:1", "port": 1, "blobs": "http://127.0.0.1:2"}
ADDRESS |= {"certificate": "authority.pem", "page": "http://127.0.0.1:3/#secret=s"}
CHECKPOINT = {"run": "r", "stream": "s", "first": 0, "stop": 9, "following": 3, "done": [5]}
COUNTS = {str(place): 1 for place in range(CLASSES_START + 10)}  # one in each bin
BINS = {"digits": 10, "counts": COUNTS}
REFERENCE = {"format": FORMAT, "classes": 10, "scripts": {"a": BINS}, "model_version": "v"}
MANIFEST = {"model_sha256": "a", "params": {"image_size": 28}, "scripts": ["mnist"]}
AZURE = {"subscription_id": "a", "resource_group": "b", "workspace_name": "c"}
ITEM = {"request": {}, "answer": {"pointer": "", "value": "1"}}
REMOTES = (
    "['remote \"main\"']\n    url = azure://main\n['remote \"review\"']\n    url = azure://b\n"
)
JOB = {"run": "r", "job": "j", "answers": "a"}
LOCK = "schema: '2.0'\nstages:\n  package:\n    cmd: x\n    outs:\n    - path: a\n      md5: b\n"


def start_emulator() -> None:
    """Start one, up to where it looks for Azurite, which comes after the state is read."""
    try:
        Emulator(Path("emulator"), Path("none")).__enter__()
    except EmulatorError as error:
        if "Azurite not found" not in str(error):
            raise DigitsError(str(error)) from None


def connect_client() -> None:
    try:
        client.connect("emulator")
    except EmulatorError as error:
        raise DigitsError(str(error)) from None


def resume() -> None:
    simulate.reached(Path("run.json"), SimpleNamespace(resume=True), MagicMock())


def refresh() -> None:
    """Raise what the page would show."""
    project = Project(Path())
    project.refresh()
    if project.unavailable_reason:
        raise DigitsError(project.unavailable_reason)


def job() -> None:
    Batch._known(MagicMock(), Path("job.json"), "r")


READERS: dict[str, tuple[str, str, Callable[[], object]]] = {  # its file, the content, who reads it
    "state": ("emulator/state.json", json.dumps(STATE), start_emulator),
    "settings": ("emulator/settings.json", '{"image_build_seconds": 30}', start_emulator),
    "address": ("emulator/address.json", json.dumps(ADDRESS), start_emulator),
    "address of a client": ("emulator/address.json", json.dumps(ADDRESS), connect_client),
    "address of a command": (
        "emulator/address.json",
        json.dumps(ADDRESS),
        lambda: workspace.connect("local", Path("emulator")),
    ),
    "checkpoint": ("run.json", json.dumps(CHECKPOINT), resume),
    "key": ("key", "abc\n", lambda: Address("a", Path("key"), MagicMock()).authorise()),
    "reference": (
        "reference.json",
        json.dumps(REFERENCE),
        lambda: Reference.read(Path("reference.json")),
    ),
    "page": ("params.yaml", (ROOT / "params.yaml").read_text("utf-8"), refresh),
    "params": ("params.yaml", (ROOT / "params.yaml").read_text("utf-8"), lambda: params.load()),
    "manifest": (
        "data/model/manifest.json",
        json.dumps(MANIFEST),
        lambda: scoring.manifest(Path(), None),
    ),
    "workspace": (".azureml/config.json", json.dumps(AZURE), connection.load_connection),
    "DVC's config": (".dvc/config", REMOTES, connection._config),
    "lock": ("dvc.lock", LOCK, lambda: dvc.stages(Path("dvc.lock").read_bytes())),
    "package": ("MLmodel", "model_uuid: a\n", lambda: release.described(Path("MLmodel"))),
    "smoke test": ("smoke.jsonl", json.dumps(ITEM), lambda: smoke.read(Path("smoke.jsonl"), 1)),
    "batch job": ("job.json", json.dumps(JOB), job),
}
VALUES: tuple[Any, ...] = (None, -1, 10**30, "x", [], {}, {"a": []})
OTHERS = b"", b"[]", b"{}", b"null", b"3", b'"a"', b"[[1]]", b'{"a": 1}', b"a = 1\n", b"\xff\xfe\0"


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user who may not read everything, as root may."""
    if ROOT_USER:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if ROOT_USER:
            os.seteuid(0)


def other_schemas(whole: bytes) -> Iterator[bytes]:
    """Yield the content of a JSON file with another value for each of its keys."""
    with contextlib.suppress(ValueError):
        values = json.loads(whole)
        for name, known in values.items():
            for value in VALUES:
                yield json.dumps(values | {name: value}).encode()
                for inside in known if isinstance(known, dict) else ():
                    yield json.dumps(values | {name: known | {inside: value}}).encode()


def outcome(read: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code of a command that reads, and what it prints as its error."""

    def work() -> None:
        read()

    code = console.report_errors("test", work)
    return code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to work in, that another user may enter."""
    home = Path(tempfile.mkdtemp(prefix="damaged-"))
    home.chmod(0o755)
    monkeypatch.chdir(home)
    PAGES.parent.mkdir(parents=True)
    PAGES.write_text(json.dumps(REFERENCE), "utf-8")
    monkeypatch.setattr(simulate, "digest", lambda stream: "s")
    for name in ("REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    yield
    shutil.rmtree(home)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> tuple[Path, bytes, Callable[[], object]]:
    """A file of the folder, and what reads it without an error."""
    name, content, read = READERS[request.param]
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")
    return path, content.encode(), read


def test_what_is_valid_is_read(
    reader: tuple[Path, bytes, Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, read = reader
    code, said = outcome(read, capsys)
    assert (code, said) == (0, "")


def test_what_is_damaged_is_named(
    reader: tuple[Path, bytes, Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole, read = reader
    cut = [whole[: len(whole) * part // 4] for part in (1, 2, 3)]
    for content in (*OTHERS, *cut, *other_schemas(whole)):
        path.write_bytes(content)
        code, said = outcome(read, capsys)
        assert code in (0, 1)
        if code:
            assert path.name in said, (content, said)
            assert said.count("\n") == 1
        assert path.read_bytes() == content  # nothing is lost


def test_what_cannot_be_read_is_named(
    reader: tuple[Path, bytes, Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, read = reader
    path.chmod(0)
    if ROOT_USER:
        for one in (path, path.parent):
            os.chown(one, NOBODY, NOBODY)
    with as_nobody():
        code, said = outcome(read, capsys)
    assert code == 1
    assert path.name in said
    path.unlink()
    path.mkdir()
    code, said = outcome(read, capsys)
    assert code == 1
    assert path.name in said
    assert path.is_dir()
