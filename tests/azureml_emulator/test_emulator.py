"""The emulator: rules, keys, collected rows, a restart, and bodies as the SDK has them."""

import http.client
import json
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from azure.storage.blob import BlobServiceClient
from light import Deployable, Emulator

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from contract import unlike

    from mlops.azure.workspace import connect
    from mlops.deploy import lease

from azureml_emulator.storage import CONTAINER
from azureml_emulator.web import make_certificate

pytestmark = pytest.mark.slow

COLLECTING = """
import pandas
from azureml.ai.monitoring import Collector


def init():
    global collector
    collector = Collector(name="model_inputs", on_error=print)


def run(body):
    collector.collect(pandas.DataFrame({"asked": [len(body)]}))
    return {"model_version": "5ee", "predictions": [{"digit": "3"}]}
"""


@pytest.fixture
def own(deployable: Deployable, tmp_path: Path) -> Iterator[Emulator]:
    """An emulator that a test may end, in the place of the shared one while the test runs."""
    own = Emulator(tmp_path / "own")
    own.start()
    link = deployable.root / ".emulator"
    shared = link.readlink()
    try:
        link.unlink()
        link.symlink_to(own.folder)
        yield own
    finally:
        link.unlink()
        link.symlink_to(shared)
        own.stop()


def test_bodies_are_those_of_the_sdk(deployable: Deployable, emulator: Emulator) -> None:
    emulator.faults()
    deployable.commit("one")
    deployable.deploy("plan")
    deployable.deploy("apply")
    deployable.commit("bad", right=False)
    deployable.deploy("apply", code=1)
    deployable.deploy("pause")
    deployable.deploy("resume")
    deployable.deploy("destroy")
    calls = emulator.calls()
    assert {call["method"] for call in calls} == {"GET", "PUT", "POST", "DELETE"}
    found, compared = unlike(calls)
    assert found == [], "\n".join(found)
    assert compared > 60
    wrong = next(call for call in calls if call["method"] == "PUT")
    wrong["request"]["colour"] = "red"
    assert "'colour' was unexpected" in unlike([wrong])[0][0]


def refused(emulator: Emulator, method: str, path: str, body: Any = None) -> tuple[str, str]:
    """Return code and message of a refused call."""
    error = emulator.call(method, path, body)["error"]
    return error["code"], error["message"]


def test_rules_of_names_and_traffic(deployable: Deployable, emulator: Emulator) -> None:
    place = deployable.endpoint
    new = {"location": "local", "properties": {"authMode": "Key", "traffic": {}}}
    for name in ("ab", "1abc", "a" * 33, "abc-", "a_b_c", "a--b"):
        assert refused(emulator, "PUT", f"{place}/{name}", new)[0] == "BadArgument", name
    assert refused(emulator, "GET", f"{place}/absent")[0] == "ResourceNotFound"
    assert refused(emulator, "PUT", f"{place}/absent/deployments/blue", {})[0] == "ResourceNotFound"
    deployable.commit("one")
    deployable.deploy("apply")
    serving = deployable.serving(emulator)
    path, (name,) = f"{place}/{serving['name']}", serving["traffic"]
    for traffic in ({name: 50}, {"green": 100}):
        body = new | {"properties": {"authMode": "Key", "traffic": traffic}}
        assert refused(emulator, "PUT", path, body)[0] == "BadArgument", traffic
    assert "has traffic" in refused(emulator, "DELETE", f"{path}/deployments/{name}")[1]
    assert deployable.serving(emulator) == serving
    other = path.replace(deployable.workspace, "another")
    assert refused(emulator, "PUT", other, new)[0] == "NameNotAvailable"


def status(url: str, key: str, **headers: str) -> int:
    """Ask for one digit; return the status."""
    sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, b'{"data": []}', sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_keys_and_the_deployment_header(deployable: Deployable, emulator: Emulator) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    place = deployable.serving(emulator)
    assert status(place["url"], place["key"]) == 200
    assert status(place["url"], "wrong") == 401
    assert status(place["url"], place["key"], **{"azureml-model-deployment": "none"}) == 404
    assert status(place["url"].replace(place["name"], "absent"), place["key"]) == 404
    deployable.deploy("pause")
    assert status(place["url"], place["key"]) == 404


def test_what_is_no_post_with_a_length_is_refused_and_holds_nobody_up(
    deployable: Deployable, emulator: Emulator
) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    place = urlsplit(deployable.serving(emulator)["url"])
    for method, body, headers, status in (
        ("POST", iter([b"{}"]), {"Transfer-Encoding": "chunked"}, 411),
        ("POST", None, {"Content-Length": "-1"}, 400),
        ("POST", None, {"Content-Length": "abc"}, 400),
        ("GET", None, {}, 405),
        ("PUT", b"{}", {}, 405),
    ):
        connection = http.client.HTTPConnection(place.netloc, timeout=30)
        connection.request(method, place.path, body, headers, encode_chunked=True)
        assert connection.getresponse().status == status
        connection.close()
    assert deployable.version(emulator)


@pytest.mark.prove
def test_a_failed_endpoint_keeps_what_it_serves(deployable: Deployable, own: Emulator) -> None:
    """Azure may call an endpoint failed whose deployments serve on."""
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")
    before = deployable.serving(own)
    own.stop()
    state = json.loads((own.folder / "state.json").read_text())
    (path,) = (name for name in state["resources"] if "onlineendpoints" in name.split("/")[-2])
    state["resources"][path]["properties"]["provisioningState"] = "Failed"
    (own.folder / "state.json").write_text(json.dumps(state))
    own.start()
    deadline = time.monotonic() + 60
    while status(before["url"], before["key"]) != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    deployable.commit("two")
    deployable.deploy("apply")
    deployable.deploy("rollback")  # so its record was kept, and it was not removed
    assert deployable.version(own) == version


def test_it_listens_on_loopback_only(deployable: Deployable, emulator: Emulator) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    listening = []
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0" * 24 + "01000000")):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and line.split()[9] in sockets(emulator):
                listening.append(local.split(":")[0] == loopback)
    assert len(listening) >= 4  # API, endpoint, Azurite, one server
    assert all(listening)


def sockets(emulator: Emulator) -> set[str]:
    """Return the sockets of the emulator and of all that it started."""
    assert emulator.process
    table = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout
    parents = [line.split() for line in table.splitlines()[1:]]
    family = {str(emulator.process.pid)}
    for _ in range(4):
        family |= {pid for pid, parent in parents if parent in family}
    found = set()
    for pid in family:
        for entry in Path("/proc", pid, "fd").glob("*"):
            try:
                found.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    return found


def test_collected_rows_lie_where_azure_puts_them(
    deployable: Deployable, emulator: Emulator
) -> None:
    (deployable.root / "serving" / "score.py").write_text(COLLECTING)
    deployable.set(smoke="{digits: 3, accuracy: 0.0, latency_seconds: 5.0}")
    deployable.commit("5ee")
    deployable.deploy("apply")
    place = deployable.serving(emulator)
    url = f"{emulator.address['blobs']}/devstoreaccount1"
    (name,) = place["traffic"]
    prefix = f"modelDataCollector/{place['name']}/{name}/model_inputs/"
    deadline = time.monotonic() + 20
    lines: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with BlobServiceClient(url, credential=emulator.address["blob_key"]) as service:
        container = service.get_container_client(CONTAINER)
        while len(rows) < 6 and time.monotonic() < deadline:  # 3 by name, 3 by weight
            blobs = [
                container.download_blob(blob)
                for blob in container.list_blob_names(name_starts_with=prefix)
            ]
            lines = [json.loads(line) for blob in blobs for line in blob.readall().splitlines()]
            rows = [row for line in lines for row in line["data"]]
            time.sleep(0.1)
    assert len(rows) == 6 and len(lines) < 6  # merged where they came together
    assert all(list(row) == ["asked"] for row in rows)
    first = lines[0]
    assert first["type"] == "azureml.inference.model_inputs"
    assert first["xrequestid"]


@pytest.mark.prove
def test_it_comes_up_again_as_it_was(deployable: Deployable, own: Emulator) -> None:
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")
    before = deployable.serving(own)
    assert len(own.running()) >= 3  # itself, Azurite, a server
    own.kill()
    own.start()
    deadline = time.monotonic() + 60
    while status(before["url"], before["key"]) != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert deployable.serving(own) == before
    assert deployable.version(own) == version
    assert "nothing to change" in deployable.deploy("apply")


def test_a_certificate_is_valid_for_years_and_its_key_in_no_file(tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem"
    make_certificate(authority)
    assert list(tmp_path.iterdir()) == [authority]
    assert "PRIVATE" not in authority.read_text()
    (found,) = ssl.create_default_context(cafile=authority).get_ca_certs()
    assert ssl.cert_time_to_seconds(str(found["notAfter"])) > time.time() + 10 * 365 * 86_400


@pytest.mark.prove
def test_two_at_once_one_stops_or_waits(deployable: Deployable, emulator: Emulator) -> None:
    deployable.set(step_seconds="4.0")
    deployable.commit("one")
    deployable.deploy("apply")
    version = deployable.commit("two")[:12]
    first = deployable.begun("apply")
    assert first.stdout
    try:
        while "10 %" not in (line := first.stdout.readline()):
            assert line, "the first deployment ended early"
        assert "another deployment is running on" in deployable.deploy("apply", code=1)
        waited = deployable.deploy("apply", "--wait")
        assert "Waiting" in waited
        assert "nothing to change" in waited
        assert deployable.version(emulator) == version
    finally:
        first.wait(120)
        first.stdout.close()


@pytest.mark.prove
def test_who_waits_for_a_destroy_goes_on(
    deployable: Deployable, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")
    for name, value in deployable.settings().items():
        monkeypatch.setenv(name, value)
    workspace, endpoint = connect("local", emulator.folder), deployable.serving(emulator)["name"]
    with lease.held(workspace, endpoint, 15, False):
        waiting = deployable.begun("apply", "--wait")
        assert waiting.stdout
        assert "Waiting" in waiting.stdout.readline()
    lease.forget(workspace, endpoint)  # as destroy does, before the other looks again
    said, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, said
    assert deployable.version(emulator) == version


@pytest.mark.prove
@pytest.mark.skipif(sys.platform == "win32", reason="stops a process by a signal")
def test_who_was_stopped_and_lost_the_lease_takes_nothing_back(
    deployable: Deployable, emulator: Emulator
) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    deployable.set(step_seconds="4.0")
    deployable.commit("two")
    first = deployable.begun("apply")
    assert first.stdout
    try:
        while "50 %" not in (line := first.stdout.readline()):
            assert line, "the first deployment ended early"
        first.send_signal(signal.SIGSTOP)
        version = deployable.commit("three")[:12]
        assert "Waiting" in deployable.deploy("apply", "--wait")
        first.send_signal(signal.SIGCONT)
        said = first.stdout.read()
        assert first.wait(120) == 1
        assert "lost the deployment lease on" in said
        assert "traffic was returned" not in said
        assert deployable.version(emulator) == version
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
