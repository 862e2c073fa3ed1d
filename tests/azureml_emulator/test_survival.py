"""The emulator survives what is done with it: bad calls, restarts, dead processes, lost content."""

import contextlib
import errno
import http.client
import http.server
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
from conftest import ROOT, environment
from emulated import ECHO, STORE, Client, emulated, wait_until

from azureml_emulator import inference
from azureml_emulator import state as states
from azureml_emulator.server import Emulator
from azureml_emulator.services import deployments, jobs
from azureml_emulator.state import VERSION, State
from azureml_emulator.storage import PROGRAM
from azureml_emulator.web import LOOPBACK, EmulatorError

pytestmark = pytest.mark.slow
KEY_MODE = {"location": "x", "properties": {"authMode": "Key"}}
ECHO_JOB = {"properties": {"jobType": "Command", "environmentId": "e", "command": "echo"}}
HANGING = "import time\n\n\ndef init():\n    time.sleep(1000)\n\n\ndef run(body):\n    return 1\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of an emulator that all tests of this module share."""
    with emulated(tmp_path_factory.mktemp("emulator")) as made:
        yield made


ENDPOINT, DEPLOYMENT = "/onlineEndpoints/bodies", "/onlineEndpoints/present/deployments/blue"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *[(path, raw) for path in (ENDPOINT, "/jobs/a") for raw in (b"{", b"[]", b"", b"1", b"{}")],
        (ENDPOINT, b'{"properties": {}}'),
        (ENDPOINT, b'{"properties": null}'),
        (ENDPOINT, b'{"properties": []}'),
        (ENDPOINT, b'{"properties": {"authMode": 3}}'),
        (ENDPOINT, b'{"properties": {"authMode": "Magic"}}'),
        (ENDPOINT, b'{"properties": {"authMode": "Key", "traffic": []}}'),
        (ENDPOINT, b'{"properties": {"authMode": "Key", "traffic": {"blue": "x"}}}'),
        (ENDPOINT, b'{"properties": {"authMode": "Key"}, "tags": {"a": {}}}'),
        (DEPLOYMENT, b'{"properties": {"instanceType": "Standard_DS2_v2"}}'),
        (DEPLOYMENT, b'{"properties": {}, "sku": {"capacity": 1}}'),
        (DEPLOYMENT, b'{"properties": {"instanceType": "Standard_DS2_v2"}, "sku": null}'),
        ("/batchEndpoints/bodies", b"{}"),
        ("/models/m/versions/1", b"{}"),
        ("/computes/c", b"{}"),
        ("/jobs/a", b'{"properties": {"jobType": "Command"}}'),
        ("/jobs/a", b'{"properties": {"jobType": "Sweep", "trial": {}}}'),
    ],
)
def test_a_bad_body_is_a_400_in_json(client: Client, path: str, body: bytes) -> None:
    if path == DEPLOYMENT and client.call("GET", "/onlineEndpoints/present")[0] == 404:
        client.endpoint("present")
    status, answer, _ = client.send("PUT", path, body)
    assert status == 400, answer
    assert answer["error"]["code"]
    assert answer["error"]["message"]
    status, answer, _ = client.send("PUT", path, iter([body]))  # chunked
    assert status == 400, answer
    assert client.call("GET", path)[0] == 404


def test_null_traffic_is_none(client: Client) -> None:
    properties = {"authMode": "Key", "traffic": None, "mirrorTraffic": None}
    assert client.put("/onlineEndpoints/null", properties)["properties"]["traffic"] == {}


def test_another_spelling_of_a_name_is_the_same(client: Client, tmp_path: Path) -> None:
    code = client.code("spelling", {"score.py": ECHO.format(answer=1)}, tmp_path)
    client.endpoint("Spelling")
    assert client.deployment("Blue", code, "sPELLING") == "Succeeded"
    client.endpoint("SPELLING", traffic={"bLUE": 100})
    assert client.score("spelling") == (200, "1")
    assert client.score("Spelling", b"{}", {"azureml-model-deployment": "BLUE"}) == (200, "1")
    found = client.call("GET", "/ONLINEENDPOINTS/spelling")[1]
    assert (found["name"], found["properties"]["traffic"]) == ("Spelling", {"Blue": 100})
    taken = {"location": "x", "properties": {"authMode": "Key"}}
    path = "/onlineEndpoints/SPELLING"
    other = client.call("GET", "")[1]["id"].removesuffix("/w") + "/other" + path
    assert client.call("PUT", other, taken)[0] == 400


def test_an_endpoint_is_not_deleted_while_its_deployment_starts(
    client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waiting = ECHO.format(answer=1).replace("pass", f"open({str(gate)!r}).read()")
    code = client.code("busy", {"score.py": waiting}, tmp_path)
    client.endpoint("busy")
    properties = {
        "instanceType": "Standard_DS2_v2",
        "codeConfiguration": {"codeId": code, "scoringScript": "score.py"},
    }
    body = {"location": "x", "properties": properties, "sku": {"capacity": 1}}
    assert client.call("PUT", "/onlineEndpoints/busy/deployments/blue", body)[0] == 201
    assert client.call("DELETE", "/onlineEndpoints/busy")[0] == 409
    gate.write_text("go")
    assert client.idle("/onlineEndpoints/busy/deployments/blue") == "Succeeded"
    process = client.emulator.router.running["busy", "blue"].process
    assert client.call("DELETE", "/onlineEndpoints/busy")[0] == 202
    assert client.idle("/onlineEndpoints/busy") == ""
    assert process.poll() is not None
    assert ("busy", "blue") not in client.emulator.router.running


def test_a_full_disk_holds_up_no_deletion(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    client.endpoint("full")
    with monkeypatch.context() as patched:
        patched.setattr(states, "write_atomic", full)
        assert client.call("DELETE", "/onlineEndpoints/full")[0] == 202
        assert client.idle("/onlineEndpoints/full") == ""
    assert "Free space on the disk" in capsys.readouterr().err
    client.endpoint("full")
    assert find(client, "full") in json.loads(client.emulator.state.path.read_text())["resources"]


def test_a_full_disk_leaves_no_job_under_way(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    def fill(*_: object) -> None:
        monkeypatch.setattr(states, "write_atomic", full)
        full()

    monkeypatch.setattr(jobs, "make_tables", fill)
    assert client.job("full", command="echo") == "Failed"
    monkeypatch.undo()
    monkeypatch.setattr(jobs, "logs_of", full)
    assert client.job("unlogged", command="echo") == "Failed"


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("..", {}),
        ("a.b", {}),
        ("a", {"inputs": {"../../../x": {"jobInputType": "literal", "value": "1"}}}),
        ("a", {"outputs": {"..": {"jobOutputType": "uri_folder"}}}),
    ],
)
def test_no_name_of_a_job_leads_out_of_its_folder(
    client: Client, name: str, properties: dict[str, Any]
) -> None:
    client.emulator.state.save()
    body = {"properties": ECHO_JOB["properties"] | properties}
    status, answer = client.call("PUT", f"/jobs/{name}", body)
    assert (status, answer["error"]["code"]) == (400, "UserError")
    assert client.emulator.state.path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups")
@pytest.mark.parametrize("killed", [False, True])
def test_a_job_that_ended_leaves_no_process(client: Client, killed: bool) -> None:
    """Of a command that ended with a child in the background, or whose process here was killed."""
    sleep = ["sleep", f"{98764 + killed}"]  # of this case
    wait = " ".join(sleep) if killed else f"({' '.join(sleep)} &); echo started"
    body = {"properties": ECHO_JOB["properties"] | {"command": wait}}
    assert client.call("PUT", f"/jobs/left{killed}", body)[0] == 201

    def left() -> list[psutil.Process]:
        return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == sleep]

    if killed:
        wait_until(lambda: bool(left()))
        (ran,) = next(ran for ran in client.emulator.state.processes.values() if ran)
        ran.kill()
    wait_until(lambda: client.ended(f"/jobs/left{killed}"))
    wait_until(lambda: not left())


def test_an_init_that_hangs_leaves_no_process(client: Client, tmp_path: Path) -> None:
    code = client.code("hanging", {"score.py": HANGING}, tmp_path)
    client.endpoint("hanging")
    probe = {"initialDelay": "PT0S", "period": "PT3S", "failureThreshold": 1}
    assert client.deployment("blue", code, "hanging", livenessProbe=probe) == "Failed"
    here = psutil.Process().children(recursive=True)
    assert not [one for one in here if "hanging" in " ".join(one.cmdline())]


def test_a_failed_update_leaves_the_former_server(client: Client, tmp_path: Path) -> None:
    code = client.code("former", {"score.py": ECHO.format(answer=1)}, tmp_path)
    client.endpoint("former")
    assert client.deployment("blue", code, "former") == "Succeeded"
    client.endpoint("former", traffic={"blue": 100})
    broken = client.code("broken", {"score.py": "raise ValueError\n"}, tmp_path)
    assert client.deployment("blue", broken, "former") == "Failed"
    assert client.score("former") == (200, "1")


def test_a_server_that_ends_is_started_again(client: Client, tmp_path: Path) -> None:
    code = client.code("dead", {"score.py": ECHO.format(answer=1)}, tmp_path)
    client.endpoint("dead")
    client.deployment("blue", code, "dead")
    client.endpoint("dead", traffic={"blue": 100})
    before = client.emulator.router.running["dead", "blue"]
    workers = psutil.Process(before.process.pid).children()
    before.process.kill()
    wait_until(lambda: client.emulator.router.running["dead", "blue"] is not before)
    assert client.score("dead") == (200, "1")
    psutil.wait_procs(workers, timeout=10)
    assert not [one for one in workers if one.is_running()]


@pytest.mark.skipif(sys.platform == "win32", reason="has no Unix sockets")
def test_a_server_whose_socket_is_lost_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also below a TMPDIR that is too long for a socket; nothing is left in the home folder."""
    home, long, folder = tmp_path / "home", tmp_path / ("long" * 30), tmp_path / "emulator"
    for one in (home, long, folder / "blobs"):
        one.mkdir(parents=True)
    (folder / "blobs").chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with emulated(folder) as client:
        assert (folder / "blobs").stat().st_mode & 0o777 == 0o700
        code = client.code("lost", {"score.py": ECHO.format(answer=1)}, tmp_path)
        client.endpoint("lost")
        assert client.deployment("blue", code, "lost") == "Succeeded"
        client.endpoint("lost", traffic={"blue": 100})
        before = client.emulator.router.running["lost", "blue"]
        assert isinstance(before.address, Path)
        with monkeypatch.context() as another:
            another.setattr(os, "getuid", lambda: 12345)
            assert client.score("lost")[0] == 502
        before.address.unlink()
        wait_until(lambda: client.emulator.router.running["lost", "blue"] is not before)
        assert client.score("lost") == (200, "1")
    assert not before.address.parent.exists()
    assert not [*home.iterdir(), *Path("/tmp").glob(f"{before.address.parent.name}*")]


def test_without_unix_sockets_nobody_takes_a_servers_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: a port is the server's own, also after a restart, and asks for a secret."""
    pytest.importorskip("waitress")
    monkeypatch.setattr(inference, "UNIX", False)
    with emulated(tmp_path / "emulator") as client:
        code = client.code("ports", {"score.py": ECHO.format(answer=1)}, tmp_path)
        client.endpoint("ports")
        assert client.deployment("blue", code, "ports") == "Succeeded"
        client.endpoint("ports", traffic={"blue": 100})
        assert client.score("ports") == (200, "1")
        servers = client.emulator.router.running
        before = servers["ports", "blue"]
        port, secret = inference.found(before.address)
        assert isinstance(port, int)
        for headers, status in (({}, 403), (dict.fromkeys(secret, "\xff"), 403), (secret, 200)):
            connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
            connection.request("POST", "/score", b"{}", headers)
            assert connection.getresponse().status == status
            connection.close()
        before.next_start = math.inf  # it is not started again yet
        before.process.kill()
        before.process.wait()
        with socket.create_server((LOOPBACK, port)) as another:
            assert client.score("ports")[0] == 502
            before.next_start = 0
            wait_until(lambda: servers["ports", "blue"] is not before)
            assert client.score("ports") == (200, "1")
            another.setblocking(False)
            with pytest.raises(BlockingIOError):
                another.accept()


def test_a_server_that_cannot_be_started_is_failed_and_tried_again(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = client.code("forked", {"score.py": ECHO.format(answer=1)}, tmp_path)
    client.endpoint("forked", traffic={})
    assert client.deployment("blue", code, "forked") == "Succeeded"
    client.endpoint("forked", traffic={"blue": 100})
    before = client.emulator.router.running["forked", "blue"]
    path = "/onlineEndpoints/forked/deployments/blue"
    with monkeypatch.context() as patched:
        full = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        patched.setattr(inference, "start", MagicMock(side_effect=full))
        before.process.kill()
        wait_until(
            lambda: client.call("GET", path)[1]["properties"]["provisioningState"] == "Failed"
        )
    before.next_start = 0
    wait_until(lambda: client.emulator.router.running["forked", "blue"] is not before)
    assert client.score("forked") == (200, "1")


@pytest.mark.prove
def test_a_server_that_does_not_start_again_is_failed(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    once = ECHO.format(answer=1).replace("pass", f"open({str(mark)!r}, 'x').close()")
    code = client.code("once", {"score.py": once}, tmp_path)
    client.endpoint("once")
    assert client.deployment("blue", code, "once") == "Succeeded"
    client.emulator.router.running["once", "blue"].process.kill()
    path = "/onlineEndpoints/once/deployments/blue"
    wait_until(lambda: client.call("GET", path)[1]["properties"]["provisioningState"] == "Failed")
    wait_until(lambda: "once/blue ended and does not start again" in capsys.readouterr().err)


def test_uniform_and_loguniform_sweeps_end(client: Client, tmp_path: Path) -> None:
    space = {"a": ["uniform", [1, 2]], "b": ["loguniform", [0, 1]], "c": ["quniform", [0, 9, 3]]}
    marks = [f"${{{{search_space.{name}}}}}" for name in space]
    code = client.code("sweep", {"a.py": ""}, tmp_path)
    given: dict[str, Any] = {
        "jobType": "Sweep",
        "trial": {"command": f"echo {' '.join(marks)}", "codeId": code, "environmentId": "e"},
        "searchSpace": space,
        "samplingAlgorithm": {"samplingAlgorithmType": "Random", "seed": 1},
        "limits": {"maxTotalTrials": 2, "maxConcurrentTrials": 2},
        "objective": {"goal": "Maximize", "primaryMetric": "m"},
    }
    assert client.job("swept", **given) == "Completed"
    logs = [client.blob(f"ExperimentRun/dcid.swept_{n}/user_logs/std_log.txt") for n in (0, 1)]
    for a, b, c in (map(float, log.split()) for log in logs):
        assert 1 <= a <= 2
        assert 1 <= b <= 2.72
        assert c in (0, 3, 6, 9)
    assert logs[0] != logs[1]
    slow = given | {"trial": given["trial"] | {"command": "sleep 600"}}
    for limit, status in (("timeout", "Canceled"), ("trialTimeout", "Failed")):
        limits = given["limits"] | {limit: "PT1S"}
        assert client.job(f"late-{limit}", **slow | {"limits": limits}) == status
    grid = given | {"samplingAlgorithm": {"samplingAlgorithmType": "Grid"}}
    assert client.call("PUT", "/jobs/grid", {"properties": grid})[0] == 400


def test_operations_and_logs_do_not_grow_without_bound(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "OPERATIONS", 5)
    monkeypatch.setattr(deployments, "LOG_BYTES", 1000)
    for number in range(10):
        client.endpoint("many", tags={"number": str(number)})
    assert len(client.emulator.state.operations) <= 5
    code = client.code("chatty", {"score.py": ECHO.format(answer="print('x' * 9000)")}, tmp_path)
    client.endpoint("chatty")
    client.deployment("blue", code, "chatty")
    client.endpoint("chatty", traffic={"blue": 100})
    client.score("chatty")
    running = client.emulator.router.running["chatty", "blue"]
    assert running.launch
    log = Path(running.launch.log)
    wait_until(lambda: log.stat().st_size <= 1000)


@pytest.mark.prove
def test_it_starts_again_after_all_of_this(tmp_path: Path) -> None:
    """A completed sweep, a failed update, a dead server: the next start brings up what it can."""
    folder, code = tmp_path / "emulator", ""
    with emulated(folder) as client:
        code = client.code("good", {"score.py": ECHO.format(answer=1)}, tmp_path)
        bad = client.code("bad", {"score.py": "raise ValueError\n"}, tmp_path)
        client.endpoint("one")
        client.deployment("blue", code, "one")
        client.endpoint("one", traffic={"blue": 100})
        assert client.deployment("blue", bad, "one") == "Failed"
        given = {
            "jobType": "Sweep",
            "trial": {"command": "echo", "codeId": code, "environmentId": "e"},
            "searchSpace": {"a": ["choice", [[1]]]},
            "samplingAlgorithm": {"samplingAlgorithmType": "Grid"},
            "limits": {"maxTotalTrials": 1, "maxConcurrentTrials": 1},
        }
        assert client.job("swept", **given) == "Completed"
    with emulated(folder) as client:
        wait_until(lambda: client.score("one") == (200, "1"))
        path = "/onlineEndpoints/one/deployments/blue"
        assert client.call("GET", path)[1]["properties"]["provisioningState"] == "Failed"
        assert client.call("GET", "/jobs/swept")[1]["properties"]["status"] == "Completed"


@pytest.mark.prove
def test_an_end_during_a_creation_is_made_up_for(tmp_path: Path) -> None:
    folder, gate = tmp_path / "emulator", tmp_path / "gate"
    waiting = f"while not __import__('os').path.exists({str(gate)!r}): pass"
    path = "/onlineEndpoints/one/deployments/blue"
    with emulated(folder) as client:
        text = ECHO.format(answer=1).replace("pass", waiting)
        code = client.code("waiting", {"score.py": text}, tmp_path)
        client.endpoint("one")
        properties = {
            "instanceType": "Standard_DS2_v2",
            "codeConfiguration": {"codeId": code, "scoringScript": "score.py"},
        }
        body = {"location": "x", "properties": properties, "sku": {"capacity": 1}}
        assert client.call("PUT", path, body)[0] == 201
        log = deployments.folder_of(client.emulator.state, find(client, "blue")) / "log.txt"
        wait_until(lambda: log.exists() and b"Server" in log.read_bytes())
    gate.touch()
    with emulated(folder) as client:
        assert client.idle(path) == "Succeeded"
        assert client.score("one", b"{}", {"azureml-model-deployment": "blue"}) == (200, "1")


def find(client: Client, name: str) -> str:
    """Return the key of the resource of a name."""
    return next(key for key in client.emulator.state.resources if key.endswith(f"/{name}"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"id": 3},
        {"properties": {}},
        {"properties": None, "id": "", "name": "", "systemData": {}},
    ],
)
def test_a_damaged_resource_is_named_and_nothing_is_lost(tmp_path: Path, value: Any) -> None:
    whole = {"id": "/a/workspaces/w/x/good", "name": "good", "properties": {}, "systemData": {}}
    resources = {"/a/workspaces/w/x/good": whole, "/a/workspaces/w/x/bad": value}
    kept = {"version": VERSION, "resources": resources, "operations": {}, "keys": {}}
    (tmp_path / "state.json").write_text(json.dumps(kept))
    with pytest.raises(EmulatorError, match=r"state\.json: resources\..*/bad: .*Correct this file"):
        State(tmp_path, None, None, None)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "state.json").read_text()) == kept


def test_a_damaged_folder_ends_in_a_line_or_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "emulator"
    with emulated(folder) as client:
        client.endpoint("good")
        client.endpoint("bad")
        bad = find(client, "bad")
    state = json.loads((folder / "state.json").read_text())
    state["resources"][bad]["properties"] = {"traffic": 5}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "authority.pem").write_text("garbage")
    with emulated(folder) as client:
        assert client.idle("/onlineEndpoints/good") == "Succeeded"
        assert client.call("GET", "/onlineEndpoints/bad")[0] == 404
    assert "left out w/onlineendpoints/bad" in capsys.readouterr().err
    index = folder / "blobs" / "__azurite_db_blob__.json"
    before = index.read_bytes()
    index.write_bytes(b"{")
    with pytest.raises(EmulatorError, match=r"did not start: .*files are damaged, this folder"):
        emulated(folder).__enter__()
    index.write_bytes(before)
    ports = json.loads((folder / "address.json").read_text())
    for name in ("blob_port", "router_port"):
        with (
            socket.create_server((LOOPBACK, ports[name])),
            pytest.raises(EmulatorError, match=r"port, .*the emulator's address\.json"),
        ):
            emulated(folder).__enter__()
    (folder / "authority.pem").unlink()
    (folder / "authority.pem").mkdir()
    with pytest.raises(EmulatorError, match=r"authority\.pem.*: Is a directory"):
        emulated(folder).__enter__()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", None])
def test_a_deployment_whose_record_is_damaged_is_deployed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    endpoint = "/a/workspaces/w/onlineendpoints/one"
    key, resume = f"{endpoint}/deployments/blue", MagicMock()
    up = {"properties": {"provisioningState": "Succeeded"}}
    state = MagicMock(folder=tmp_path, resources={endpoint: up, key: up})
    state.later = lambda key, work, name: work(key)
    record = deployments.folder_of(state, key) / "a" / "launch.json"
    record.parent.mkdir(parents=True)
    if content is None:
        record.mkdir()
    else:
        record.write_bytes(content)
    monkeypatch.setattr(deployments, "resume", resume)
    deployments.restore_one(state, key)
    resume.assert_called_once_with(state, key, None, True)


@contextlib.contextmanager
def another_store(port: int) -> Iterator[None]:
    """Answer on a port as a blob store with a score.py."""
    blob = "<Blob><Name>code/score.py</Name><Properties><Content-Length>1</Content-Length>"
    blob += "<BlobType>BlockBlob</BlobType>"
    page = f"<?xml version='1.0'?><EnumerationResults><Blobs>{blob}</Properties></Blob></Blobs>"

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Give the list of blobs, or a blob."""
            text = page + "</EnumerationResults>" if "comp=list" in self.path else "#"
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_HEAD(self) -> None:
            """Say that a blob is there."""
            self.do_GET()

        def do_PUT(self) -> None:
            """Take what is sent."""
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer((LOOPBACK, port), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.prove
def test_the_end_of_azurite_is_named_and_what_is_answered_meanwhile_is_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lost: list[int] = []
    folder, said = tmp_path / "emulator", [""]

    def named() -> bool:
        said[0] += capfd.readouterr().err
        return "so nothing is stored. Restart the emulator." in said[0]

    with Emulator(folder, ROOT / PROGRAM, on_lost=lambda number, _: lost.append(number)) as running:
        running.storage.process.kill()
        wait_until(named)
        running.collector.take("one", "blue", {}, b"[]")
        wait_until(lambda: lost == [1])
        with another_store(running.storage.port):  # any user may have the port now
            (tmp_path / "got").mkdir()
            running.collector.take("one", "blue", {}, b"[]")
            wait_until(lambda: lost == [1, 1])
            for call in (
                lambda: running.storage.upload(folder, "x/paths/code"),
                lambda: running.storage.find("x/paths/code"),
                lambda: running.storage.fetch("x/paths/code", tmp_path / "got"),
            ):
                with pytest.raises(EmulatorError, match="Azurite has ended"):
                    call()
            assert list((tmp_path / "got").iterdir()) == []
    assert said[0].count("Azurite has ended") == 1
    with emulated(folder) as again:
        again.emulator.storage.client.upload_blob("a", b"b")


def test_one_emulator_a_folder(tmp_path: Path) -> None:
    """Two first starts at the same time: one has the folder, the other one ends."""
    tmp_path.chmod(0o700)
    command = [sys.executable, "-m", "azureml_emulator", "--folder", str(tmp_path / "one")]
    command += ["--azurite", str(ROOT / PROGRAM)]
    env = environment() | {"PYTHONPATH": str(ROOT / "src")}
    pipe = subprocess.PIPE
    two = [subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True) for _ in "ab"]
    try:
        wait_until(lambda: any(one.poll() is not None for one in two))
        (lost,) = [one for one in two if one.poll() is not None]
        (other,) = [one for one in two if one is not lost]
        assert lost.returncode == 1
        assert "running already" in lost.communicate()[1]
        assert other.stdout
        assert other.stdout.readline().startswith("Serving at")
    finally:
        for one in two:
            one.send_signal(signal.SIGINT)
            one.communicate(timeout=60)


def test_content_that_the_blob_store_lost_is_no_asset_any_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed with the emulator, Azurite has lost what was uploaded in its last seconds."""
    folder = tmp_path / "emulator"
    with emulated(folder) as client:
        client.code("kept", {"a.py": "1"}, tmp_path)
        lost = client.code("lost", {"b.py": "1", "c.py": "1"}, tmp_path)
        client.emulator.storage.client.delete_blob("code/lost/c.py")
        storage = client.emulator.storage  # as the SDK uploads, to a container of its own
        uri = storage.offer("own")[0]
        storage.service.get_blob_client("own", "a.py").upload_blob(b"1")
        client.put("/codes/own/versions/1", {"codeUri": uri})
        storage.service.delete_container("own")
    with emulated(folder) as client:
        assert client.call("GET", "/codes/kept/versions/1")[0] == 200
        for name in ("lost", "own"):
            assert client.call("GET", f"/codes/{name}/versions/1")[0] == 404
        assert "left out w/codes/lost/versions/1: its content was lost" in capsys.readouterr().err
        assert client.code("lost", {"b.py": "1", "c.py": "1"}, tmp_path) == lost


@pytest.mark.prove
def test_jobs_that_begin_at_once_share_mlflows_tables(tmp_path: Path) -> None:
    logging = "import mlflow\nmlflow.set_experiment('e')\nmlflow.log_metric('m', 1)\n"
    with emulated(tmp_path / "emulator") as client:
        code = client.code("logging", {"log.py": logging}, tmp_path)
        job = {"jobType": "Command", "environmentId": "e", "codeId": code}
        for name in "abcd":
            body = {"properties": job | {"command": "python log.py"}}
            assert client.call("PUT", f"/jobs/{name}", body)[0] == 201
        for name in "abcd":
            path = f"/jobs/{name}"
            wait_until(partial(client.ended, path), 180)
            log = client.blob(f"ExperimentRun/dcid.{name}/user_logs/std_log.txt")
            assert client.call("GET", path)[1]["properties"]["status"] == "Completed", log
        with contextlib.closing(sqlite3.connect(tmp_path / "emulator" / "mlflow.db")) as tables:
            assert tables.execute("SELECT count(*) FROM metrics").fetchone() == (4,)


@pytest.mark.parametrize("name", ["{outside}", "/{outside}", "../../outside", "../outside"])
def test_a_blobs_name_leads_nowhere_else(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outside, folder, container = tmp_path / "outside", tmp_path / "a" / "code", MagicMock()
    found = container, "path", {f"path/{name.format(outside=outside)}": 1}
    monkeypatch.setattr(client.emulator.storage, "find", lambda uri: found)
    with contextlib.suppress(EmulatorError):
        client.emulator.storage.fetch(f"{STORE}path", folder)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert all(file.is_relative_to(folder) for file in written)
    assert bool(written) == (".." not in name)
