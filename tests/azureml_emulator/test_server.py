"""The emulator alone: in a process, as a command, after another version, in a folder in use."""

import http.client
import json
import os
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment
from controls import ControlledEmulator
from signed import bearer

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azureml_emulator.client import connect
from azureml_emulator import __main__ as command
from azureml_emulator import web
from azureml_emulator.server import Emulator
from azureml_emulator.services import urls
from azureml_emulator.state import VERSION, read_state
from azureml_emulator.storage import PROGRAM
from azureml_emulator.web import LOOPBACK, EmulatorError

GROUP = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces"
ALONE = """
import sys
import azureml_emulator.__main__
ours = ("core", "digits", "mlops")
print([name for name in sys.modules if name.split(".")[0] in ours])
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An emulator in this process."""
    folder = tmp_path_factory.mktemp("emulator")
    with Emulator(folder, ROOT / PROGRAM, containers=["mine"]) as running:
        yield running


def call(
    emulator: Emulator, method: str, path: str, body: bytes | None = None, token: str | None = None
) -> tuple[int, Any]:
    """Call the management API; return status and answer."""
    address = emulator.address
    context = ssl.create_default_context(cafile=address["certificate"])
    connection = http.client.HTTPSConnection(LOOPBACK, address["port"], context=context, timeout=30)
    headers = {"Authorization": f"Bearer {token or bearer(address)}"}
    connection.request(method, f"{path}?api-version=2022-10-01", body, headers)
    with connection.getresponse() as answer:
        raw = answer.read()
    connection.close()
    return answer.status, json.loads(raw) if raw.startswith(b"{") else raw.decode()


@pytest.mark.slow
def test_it_imports_nothing_of_the_project() -> None:
    env = environment() | {"PYTHONPATH": str(ROOT / "src")}
    found = subprocess.run(
        [sys.executable, "-c", ALONE], env=env, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    for path in (ROOT / "src" / "azureml_emulator").rglob("*.py"):  # within functions, too
        for name in ("core", "digits", "mlops"):
            assert f"from {name}" not in path.read_text("utf-8"), path
            assert f"import {name}" not in path.read_text("utf-8"), path


@pytest.mark.slow
def test_the_client_and_the_containers(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "NO_PROXY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # to be as before after the test
    client = connect(emulator.folder, "any")
    assert client.workspaces.get("any").name == "any"
    assert list(client.online_endpoints.list()) == []
    names = [one["name"] for one in emulator.storage.service.list_containers()]
    assert names == ["azureml", "mine"]


@pytest.mark.slow
def test_what_it_refuses(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{GROUP}/w/models/m/versions/1"
    large = b"0" * (urls.BODY_BYTES + 1)
    assert call(emulator, "PUT", path, large, token="wrong")[0] == 413  # before the token
    assert call(emulator, "GET", f"{GROUP}/w", token="wrong")[0] == 401
    status, answer = call(emulator, "PUT", path, b"{broken")
    assert (status, answer["error"]["code"]) == (400, "InvalidRequestContent")
    status, answer = call(emulator, "GET", "/nothing")
    assert (status, answer["error"]["code"]) == (404, "NotFound")
    assert call(emulator, "GET", f"{GROUP}/w".upper())[0] == 200


@pytest.mark.slow
def test_test_controls_need_the_token_and_ports_stay(tmp_path: Path) -> None:
    with ControlledEmulator(tmp_path, ROOT / PROGRAM) as running:
        connection = http.client.HTTPConnection(LOOPBACK, running.address["controls_port"])
        connection.request("GET", "/calls")  # without the token
        with connection.getresponse() as answer:
            assert answer.status == 401
        connection.close()
        secret, port = running.address["secret"], running.address["port"]
    with Emulator(tmp_path, ROOT / PROGRAM) as running:
        assert (running.address["secret"], running.address["port"]) == (secret, port)
        for path in ("/faults", "/calls", "/emulator/faults"):
            assert call(running, "PUT", path, b"[]")[0] == 404


@pytest.mark.slow
def test_a_folder_in_use_is_named(emulator: Emulator) -> None:
    with pytest.raises(EmulatorError, match=r"in use.* running already\?$"):
        Emulator(emulator.folder, ROOT / PROGRAM).__enter__()
    assert call(emulator, "GET", f"{GROUP}/w")[0] == 200


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"resources": {}, "operations": {}, "keys": {}}', "version: Field required"),
        (f'{{"version": {VERSION + 1}}}', f"version: Input should be {VERSION}"),
        (f'{{"version": {VERSION}, "resources": []}}', "resources: .* an object"),
        (f'{{"version": {VERSION}, "resources": {{}}, "operations": []}}', "operations: "),
        ("{", "the file: Invalid JSON"),
        ("[]", "the file: .* an object"),
    ],
)
def test_a_state_that_is_not_ours_is_named_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, found: str
) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(EmulatorError, match=f"state.json: {found}"):
        read_state(path)
    assert command.main(["--folder", str(tmp_path), "--azurite", str(ROOT / PROGRAM)]) == 1
    said = capsys.readouterr().err
    assert "delete it and deploy again" in said
    assert said.count("\n") == 1
    assert path.read_text() == text


def test_without_azurite_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for given in ([], ["--azurite", str(tmp_path / "absent.js")]):
        assert command.main(["--folder", str(tmp_path / "folder"), *given]) == 1
        said = capsys.readouterr().err
        assert "Azurite not found" in said
        assert "npm install azurite" in said
        assert said.count("\n") == 1


def test_a_partial_file_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    web.write_atomic(path, "one")
    with pytest.raises(UnicodeEncodeError):
        web.write_atomic(path, "\ud800")
    assert path.read_text() == "one"
    assert path.stat().st_mode & 0o77 == 0
