"""Another user of the same machine can do nothing with `digits local` and `make storage`.

A program of the tests becomes the user `nobody`, which needs root. The files lie in a folder that
everybody may enter: what protects are the modes, keys and sockets of the programs alone.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
from conftest import ROOT, environment
from emulated import ECHO, emulated

from azureml_emulator.storage import ACCOUNT
from mlops.dashboard.local import serve_page
from mlops.dashboard.watch import LiveState

pytestmark = pytest.mark.slow
# Azurite's published key of ACCOUNT: learn.microsoft.com/azure/storage/common/storage-use-azurite.
PUBLISHED = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
ATTACK = """
import contextlib, http.client, json, os, socket, ssl, sys
from pathlib import Path
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient
given = json.load(sys.stdin)
"".encode("utf-8-sig")  # loads the codec, whose file may be of root's alone


def listed(url):
    service = BlobServiceClient(url, given["published"], retry_total=0, use_env_settings=False)
    return next(iter(service.list_containers()))


for url in given["stores"]:  # loads what the SDK imports late, for the same reason
    with contextlib.suppress(HttpResponseError):
        listed(url)
os.setgroups([])
os.setresgid(*[65534] * 3)
os.setresuid(*[65534] * 3)
opened, statuses, lines = [], {}, ""
for root in given["folders"]:
    for folder, _, names in os.walk(root):
        for path in (os.path.join(folder, name) for name in names):
            for mode in ("rb", "ab"):
                with contextlib.suppress(OSError):
                    open(path, mode).close()
                    opened.append(f"{mode} {path}")
for path in given["sockets"]:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        opened.append(path)
for process in os.listdir("/proc"):
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            lines += Path("/proc", process, name).read_bytes().decode(errors="replace")
for url in given["stores"]:
    try:
        listed(url)
        statuses[url] = 200
    except HttpResponseError as error:
        statuses[url] = error.status_code
trusting = ssl._create_unverified_context()
for port, path in given["asked"]:
    for method in ("GET", "POST"):
        for kind in (http.client.HTTPConnection, http.client.HTTPSConnection):
            secure = {"context": trusting} if kind is http.client.HTTPSConnection else {}
            connection = kind("127.0.0.1", port, timeout=30, **secure)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request(method, path, b"[]", {"Content-Type": "application/json"})
                statuses[f"{method} {port}{path}"] = connection.getresponse().status
            connection.close()
secrets = [secret for secret in given["secrets"] if secret in lines]
print(json.dumps({"opened": opened, "statuses": statuses, "secrets": secrets}))
"""


def attack(**given: Any) -> dict[str, Any]:
    """Let another user try everything; return what could be opened, the statuses, secrets seen."""
    done = subprocess.run(
        [sys.executable, "-c", ATTACK],
        input=json.dumps({"published": PUBLISHED, "sockets": [], "asked": []} | given),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may run a program as another user")
    folder = Path(tempfile.mkdtemp(prefix="second-user-"))
    folder.chmod(0o755)
    before = os.umask(0o022)
    try:
        yield folder
    finally:
        os.umask(before)
        shutil.rmtree(folder)


def test_each_start_of_the_page_has_a_secret_of_its_own() -> None:
    """A page left open sends the last one to whoever has its port by then."""
    running = MagicMock()
    running.address = {"page": "http://127.0.0.1:1/#secret=old", "page_port": 1}
    serve_page(running, MagicMock())
    assert running.servers.serve.call_args[0][1] == 1
    secret = running.publish.call_args[1]["page"].partition("#secret=")[2]
    assert len(secret) > 20 and "old" not in secret


def test_another_user_can_do_nothing_with_digits_local(open_folder: Path, tmp_path: Path) -> None:
    folder, others = open_folder / "emulator", listening()
    with emulated(folder) as client:
        emulator = client.emulator
        page = serve_page(emulator, LiveState(tmp_path))
        try:
            client.endpoint("one")
            code = client.code("code", {"score.py": ECHO.format(answer=1)}, tmp_path)
            assert client.deployment("blue", code, "one") == "Succeeded"
            client.endpoint("one", traffic={"blue": 100})
            running = emulator.router.running["one", "blue"]
            address = emulator.address
            asked = [
                (page.port, "/state"),
                (page.port, "/score?endpoint=one"),
                (page.port, "/label?endpoint=one"),
                (emulator.router.port, "/one/score"),
                (emulator.router.sink.port, "/modeldata/log"),
                (address["port"], "/subscriptions/a"),
                (emulator.storage.port, f"/{ACCOUNT}/azureml?restype=container&comp=list"),
            ]
            secret = address["page"].partition("#secret=")[2]
            secrets = [address["secret"], address["blob_key"], secret]
            secrets.append(emulator.router.endpoints["one"].access.new_secret())
            found = attack(
                folders=[str(folder), str(Path(str(running.address)).parent)],
                sockets=[str(running.address)],
                stores=[emulator.storage.url],
                asked=asked,
                secrets=secrets,
            )
            ports = {port for port, _ in asked}
            assert listening() - others <= ports
        finally:
            page.stop()
    assert found["opened"] == found["secrets"] == []
    # Without the secret, the key, the password or the token all is refused; 400: by Azurite.
    assert set(found["statuses"].values()) <= {400, 401, 403, 405}
    assert len(found["statuses"]) == 2 * len(asked) + 1


def listening() -> set[int]:
    """Return the ports that this process and those that it started listen on."""
    own = psutil.Process()
    return {
        connection.laddr.port
        for process in [own, *own.children(recursive=True)]
        for connection in process.connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_another_user_can_do_nothing_with_make_storage(open_folder: Path) -> None:
    local = open_folder / ".dvc" / "config.local"
    local.parent.mkdir()
    (open_folder / ".venv").symlink_to(ROOT / ".venv")
    (open_folder / "node_modules").symlink_to(ROOT / "node_modules")
    shutil.copyfile(ROOT / "run.py", open_folder / "run.py")
    code = "import run; run.env = lambda: None; run.storage()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=open_folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout
            assert "until Ctrl-C" in server.stdout.readline()
            settings = local.read_text("utf-8")
            key, url = (settings.split(f"{name}=")[1].split(";")[0] for name in ("Key", "point"))
            found = attack(
                folders=[str(local.parent), str(open_folder / ".azurite")],
                stores=[url],
                secrets=[key],
            )
            assert key != PUBLISHED
        finally:
            server.terminate()
    assert not local.exists()
    assert found["opened"] == found["secrets"] == []
    assert found["statuses"] == {url: 403}
