"""An emulator in this process, called as a client without an SDK calls it."""

import contextlib
import http.client
import json
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT
from signed import bearer

with warnings.catch_warnings():  # of the libraries that it stands on
    warnings.simplefilter("ignore")
    from azureml_emulator.client import SUBSCRIPTION
    from azureml_emulator.server import Emulator
from azureml_emulator.storage import PROGRAM
from azureml_emulator.web import LOOPBACK

GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/local"  # as the SDK's client
WORKSPACE = f"{GROUP}/providers/Microsoft.MachineLearningServices/workspaces/w"
VERSION = "api-version=2022-10-01"
STORE = "azureml://datastores/workspaceblobstore/paths/"
ECHO = "def init():\n    pass\n\n\ndef run(body):\n    return {answer}\n"


@dataclass
class Client:
    """Calls of an emulator."""

    emulator: Emulator

    def send(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **more: str
    ) -> tuple[int, Any, Any]:
        """Call the management API below the workspace; return status, answer and headers.

        `more` are headers, with _ for -.
        """
        address = self.emulator.address
        context = ssl.create_default_context(cafile=address["certificate"])
        connection = http.client.HTTPSConnection(
            LOOPBACK, address["port"], context=context, timeout=60
        )
        path = path if path.startswith(("/sub", "/his")) else f"{WORKSPACE}{path}"
        path += "" if "api-version=" in path else f"{'&' if '?' in path else '?'}{VERSION}"
        headers = {"Authorization": f"Bearer {bearer(address, path)}"}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        connection.request(method, path, body, headers, encode_chunked=True)
        with connection.getresponse() as answer:
            raw = answer.read()
        connection.close()
        return answer.status, json.loads(raw) if raw else None, answer.headers

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Call with a JSON body."""
        raw = None if body is None else json.dumps(body).encode()
        return self.send(method, path, raw)[:2]

    def put(self, path: str, properties: dict[str, Any], **rest: Any) -> Any:
        """Put a resource; wait until it is there; return it."""
        body = {"properties": properties} | rest
        body |= {"location": "x"} if "ndpoints/" in path else {}
        status, answer = self.call("PUT", path, body)
        assert status in (200, 201), answer
        self.idle(path)
        return self.call("GET", path)[1]

    def idle(self, path: str) -> str:
        """Wait until nothing is under way on a resource; return its state, "" if it is gone."""

        def state() -> str:
            status, answer = self.call("GET", path)
            return (
                answer["properties"].get("provisioningState", "Succeeded") if status < 400 else ""
            )

        wait_until(lambda: state() not in ("Creating", "Updating", "Deleting"))
        return state()

    def code(self, name: str, files: dict[str, str], folder: Path) -> str:
        """Register a code of files; return its id."""
        for file, text in files.items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text(text, "utf-8")
        self.emulator.storage.upload(folder / name, f"{STORE}code/{name}")
        path = f"/codes/{name}/versions/1"
        return str(self.put(path, {"codeUri": f"{STORE}code/{name}"})["id"])

    def endpoint(self, name: str, **properties: Any) -> Any:
        """Create an online endpoint."""
        return self.put(f"/onlineEndpoints/{name}", {"authMode": "Key"} | properties)

    def deployment(self, name: str, code: str, endpoint: str, **properties: Any) -> str:
        """Create a deployment; return what its state is in the end."""
        given: dict[str, Any] = {"instanceType": "Standard_DS2_v2"}
        given |= {"endpointComputeType": "Managed"}
        given |= {"codeConfiguration": {"codeId": code, "scoringScript": "score.py"}}
        path = f"/onlineEndpoints/{endpoint}/deployments/{name}"
        body = {"location": "x", "properties": given | properties, "sku": {"capacity": 1}}
        status, answer = self.call("PUT", path, body)
        assert status in (200, 201), answer
        return self.idle(path)

    def score(
        self, endpoint: str, body: bytes = b"{}", headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Ask an endpoint with its primary key; return status and answer."""
        keys = self.call("POST", f"/onlineEndpoints/{endpoint}/listKeys", {})[1]
        connection = http.client.HTTPConnection(LOOPBACK, self.emulator.router.port, timeout=60)
        sent = {"Authorization": f"Bearer {keys['primaryKey']}", "Content-Type": "application/json"}
        connection.request("POST", f"/{endpoint}/score", body, sent | (headers or {}))
        with connection.getresponse() as answer:
            found = answer.status, answer.read().decode()
        connection.close()
        return found

    def job(self, name: str, **properties: Any) -> str:
        """Run a job to its end; return its status."""
        given = {"jobType": "Command", "environmentId": "e"} | properties
        status, answer = self.call("PUT", f"/jobs/{name}", {"properties": given})
        assert status == 201, answer
        wait_until(lambda: self.ended(f"/jobs/{name}"))
        return str(self.call("GET", f"/jobs/{name}")[1]["properties"]["status"])

    def ended(self, path: str) -> bool:
        """Return whether a job has ended."""
        status = self.call("GET", path)[1]["properties"]["status"]
        return status in ("Completed", "Failed", "Canceled")

    def blob(self, name: str) -> str:
        """Return the content of a blob of the workspace."""
        return self.emulator.storage.client.download_blob(name).readall().decode()


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Return once it is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def emulated(folder: Path) -> Iterator[Client]:
    """Yield a client of an emulator that ends with the block."""
    with Emulator(folder, ROOT / PROGRAM) as running:
        yield Client(running)
