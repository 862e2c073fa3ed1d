"""An emulator, and a project small enough to deploy in seconds: its score.py looks answers up."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import frozen
import numpy as np
import yaml
from azure.storage.blob import BlobServiceClient, ContainerClient
from conftest import ROOT, Project, environment

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    import mlops.deploy.rollout  # noqa: F401 # for all modules that import the SDK after this
import controls
from signed import bearer

from azureml_emulator.storage import ACCOUNT, CONTAINER, PROGRAM
from core.dataset import Digits
from core.errors import DigitsError
from mlops.azure.connection import REMOTES
from mlops.cli import call
from mlops.deploy.release import folder_hash

DIGITS = [sys.executable, "-c", "import sys; from mlops.cli import main; sys.exit(main())"]
LIGHT_SCORE = """
import hashlib
import json
import os
from pathlib import Path


def init():
    global answers
    (path,) = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("answers.json")
    answers = json.loads(path.read_text())
    print("light", answers["version"])
    if answers["version"].startswith("dead"):
        raise RuntimeError("this model cannot be loaded")


def run(body):
    found = []
    for image in json.loads(body)["data"]:
        key = hashlib.sha256(bytes(sum(image, []))).hexdigest()
        found.append({"digit": answers["digits"].get(key, "none")})
    return {"model_version": answers["version"][:12], "predictions": found}
"""


COLLECTED = """
import base64
import time
import uuid
import pandas as pd
from azureml.ai.monitoring import Collector


def collect(images, answers):
    name = uuid.uuid4().hex
    rows = [
        {
            "request_id": name,
            "position": position,
            "model_version": "v",
            "digit": answer["digit"],
            "confidence": 1.0,
            "ood_score": 0.0,
            "image": base64.b64encode(bytes(sum(image, []))).decode(),
        }
        for position, (image, answer) in enumerate(zip(images, answers))
    ]
    Collector(name="model_inputs_outputs").collect(pd.DataFrame(rows))
"""
BATCH = """
import os
from pathlib import Path


def init():
    pass


def run(mini_batch):
    for path in map(Path, mini_batch):
        folder = Path(os.environ["AZUREML_BI_OUTPUT_PATH"], path.name)
        folder.mkdir()
        (folder / "part-000000.parquet").write_text("answers")
        (folder / "_SUCCESS").touch()
    return list(mini_batch)
"""


def collecting() -> str:
    """Return a score.py as LIGHT_SCORE, which collects requests and answers, too."""
    last = '    return {"model'
    code = LIGHT_SCORE.replace(last, f'    collect(json.loads(body)["data"], found)\n{last}')
    return COLLECTED + code


@dataclass
class Emulator:
    """A running emulator: alone with its test controls, or `digits local` in a project."""

    folder: Path
    process: subprocess.Popen[str] | None = None
    project: Path = ROOT  # that it is started in
    page: bool = False  # whether it is `digits local`, which has a page and no test controls
    said: str = ""  # its first line

    @property
    def command(self) -> list[str]:
        """The command that starts it."""
        if self.page:
            return [*DIGITS, "local", "--folder", str(self.folder)]
        command = [sys.executable, controls.__file__, "--folder", str(self.folder)]
        command += ["--azurite", str(ROOT / PROGRAM)]
        return command + [word for name in REMOTES for word in ("--container", name)]

    def start(self) -> None:
        """Start it; return when it serves.

        The proxy in its environment does not answer: the collector, the blob store and MLflow are
        on loopback, which is reached through none.
        """
        variables = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")
        proxies = dict.fromkeys(variables, "http://127.0.0.1:1")
        self.process = subprocess.Popen(
            self.command,
            cwd=self.project,
            env=environment() | proxies | {"PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert self.process.stdout
        self.said = self.process.stdout.readline()
        assert self.said.startswith("Serving at"), self.said + self.process.stdout.read()

    def stop(self, may_say: str = "") -> None:
        """Stop it as Ctrl-C does; wait for its end. It says nothing, or one line with `may_say`."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            output, _ = self.process.communicate(timeout=60)
            assert self.process.returncode == 0, output
            lines = output.splitlines(keepends=True)
            output = "".join(line for line in lines if "accepted, but not emulated" not in line)
            assert not output or (may_say and may_say in output and output.count("\n") == 1), output
            self.process = None

    def kill(self) -> None:
        """Kill it; return when what it had started has ended too."""
        assert self.process
        self.process.kill()
        self.process.communicate(timeout=60)
        deadline = time.monotonic() + 30
        while (running := self.running()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not running, running
        self.process = None

    def running(self) -> list[str]:
        """Return the processes that have its folder on their command line."""
        listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
        return [line for line in listed.splitlines() if str(self.folder) in line]

    @property
    def address(self) -> dict[str, Any]:
        """What it wrote for `--workspace local`."""
        return json.loads((self.folder / "address.json").read_text())

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call its management API; return the answer."""
        address = self.address
        context = ssl.create_default_context(cafile=address["certificate"])
        connection = http.client.HTTPSConnection("127.0.0.1", address["port"], context=context)
        return self.ask(connection, method, path, body)[1]

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call its test controls; return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.address["controls_port"])
        status, answer = self.ask(connection, method, path, body)
        assert status == 200, answer
        return answer

    def ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> tuple[int, Any]:
        """Call one of its servers with its token; return status and answer."""
        headers = {"Authorization": f"Bearer {bearer(self.address, path)}"}
        if "/providers/" in path:
            version = "2023-01-01" if "/Microsoft.Storage/" in path else "2022-10-01"
            version = "2021-05-01-preview" if "/diagnosticSettings/" in path else version
            path = f"{path}?api-version={version}"
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        return answer.status, json.loads(raw) if raw else None

    def faults(self, *faults: dict[str, Any]) -> None:
        """Switch faults on, or off when none is given; forget the calls so far."""
        self.control("PUT", "/faults", list(faults))

    def calls(self) -> list[dict[str, Any]]:
        """Return the calls since `faults`."""
        return self.control("GET", "/calls")["calls"]

    def struck(self) -> bool:
        """Return whether the one fault that is switched on has come to pass."""
        (fault,) = self.control("GET", "/calls")["faults"]
        return fault["times"] == 0

    @contextlib.contextmanager
    def blobs(self) -> Iterator[ContainerClient]:
        """Yield the container of the workspaces' own store."""
        key = self.address["blob_key"]
        with BlobServiceClient(f"{self.address['blobs']}/{ACCOUNT}", credential=key) as service:
            yield service.get_container_client(CONTAINER)

    def lose(self, job: str) -> None:
        """Take the machine of a running job away."""
        self.control("POST", f"/jobs/{job}/lose")


def remaining(deployable: "Deployable", emulator: Emulator) -> list[str]:
    """Return the paths of all resources of a project's workspace that are not archived."""
    file = emulator.folder / "state.json"  # written with the first resource
    resources = json.loads(file.read_text())["resources"] if file.exists() else {}
    return [
        path
        for path, body in resources.items()
        if f"/{deployable.workspace}/" in path and not body["properties"].get("isArchived")
    ]


def known_digits() -> Digits:
    """Return twenty images that differ, two of each class."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 28, 28), np.uint8)
    return Digits(images, (np.arange(20) % 10).astype(np.uint8), "mnist", False, 10)


def write_package(package: Path, model: str, right: bool = True) -> str:
    """Write the folder of a model that is a table of answers; return its version."""
    version = hashlib.sha256(model.encode()).hexdigest()
    version = model + version[len(model) :]
    known = known_digits()
    answers = {
        hashlib.sha256(image.tobytes()).hexdigest(): str(label if right else (label + 1) % 10)
        for image, label in zip(known.images, known.labels, strict=True)
    }
    smoke = [
        {
            "request": {"data": [image.tolist()]},
            "answer": {"pointer": "/predictions/0/digit", "value": str(label)},
        }
        for image, label in zip(known.images, known.labels, strict=True)
    ]
    (package / "data" / "model").mkdir(parents=True, exist_ok=True)
    (package / "answers.json").write_text(json.dumps({"version": version, "digits": answers}))
    (package / "smoke.jsonl").write_text("".join(json.dumps(row) + "\n" for row in smoke))
    (package / "MLmodel").write_text(yaml.safe_dump({"model_uuid": version[:32]}))
    manifest = {"model_sha256": version, "data": {"training.npz": "0" * 32}}
    (package / "data" / "model" / "manifest.json").write_text(json.dumps(manifest))
    conda = {"name": "digits", "dependencies": ["python=3.11"]}
    (package / "conda.yaml").write_text(yaml.safe_dump(conda))
    return version


@dataclass(frozen=True)
class Deployable(Project):
    """A project whose package is a table of answers."""

    workspace: str = ""
    folder: Path = Path()

    def commit(self, model: str, right: bool = True, accuracy: float = 0.995) -> str:
        """Put a model into the package, with dvc.lock as DVC would write it; commit."""
        measured = {"mnist": {"accuracy": accuracy, "calibration_error": 0.001}}
        metrics = self.root / "data" / "evaluation" / "metrics.json"
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text(json.dumps(measured))
        package = self.root / "data" / "package"
        version = write_package(package, model, right)
        outs = [{"path": "data/package", "md5": folder_hash(package)}]
        (self.root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"package": {"outs": outs}}}))
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", f"Model {model} (#12)")
        return version

    def command(self, *arguments: str) -> list[str]:
        """Return `digits deploy` as a person would run it."""
        return [*DIGITS, "deploy", *arguments, "--workspace", "local"]

    def person(self, *arguments: str) -> None:
        """Run `digits deploy` to its end in a process of its own."""
        env = environment() | self.settings()
        subprocess.run(self.command(*arguments), cwd=self.root, env=env, check=True, timeout=300)

    def begun(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start `digits deploy` in a process of its own; what it says can be read."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=environment() | self.settings(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def attempt(self, *arguments: str) -> tuple[int, str]:
        """Run `digits deploy` in this process, which spares 4 s; return code and output."""
        said = io.StringIO()
        before = Path.cwd()
        arguments += ("--yes",) if arguments[0] == "destroy" else ()
        old = signal.getsignal(signal.SIGTERM)
        with (
            patch.dict(os.environ, self.settings()),
            contextlib.redirect_stdout(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # the SDK's own
            os.chdir(self.root)
            try:
                call("deploy", *arguments, "--workspace", "local")
            except DigitsError as error:
                return 1, f"{said.getvalue()}{error}\n"
            finally:
                os.chdir(before)
                signal.signal(signal.SIGTERM, old)
        return 0, said.getvalue()

    def deploy(self, *arguments: str, code: int = 0) -> str:
        """Run `digits deploy`; return its output; fail unless it ends with `code`."""
        ended, output = self.attempt(*arguments)
        assert ended == code, f"{arguments} ended with {ended}:\n{output}"
        return output

    def settings(self) -> dict[str, str]:
        """Return what the command must find in its environment."""
        return {"DIGITS_LOCAL_WORKSPACE": self.workspace, "PYTHONPATH": str(ROOT / "src")}

    @property
    def endpoint(self) -> str:
        """The path of the endpoint in the emulator's API, without its name."""
        group = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/local"
        provider = "/providers/Microsoft.MachineLearningServices"
        return f"{group}{provider}/workspaces/{self.workspace}/onlineEndpoints"

    def serving(self, emulator: Emulator) -> dict[str, Any]:
        """Return name, address, key and traffic of the endpoint, as the emulator has them."""
        (one,) = emulator.call("GET", self.endpoint)["value"]
        keys = emulator.call("POST", f"{self.endpoint}/{one['name']}/listKeys")
        properties = one["properties"]
        return {
            "name": one["name"],
            "url": properties["scoringUri"],
            "key": keys.get("primaryKey", ""),  # an endpoint with tokens has none
            "traffic": {name: share for name, share in properties["traffic"].items() if share},
        }

    def version(self, emulator: Emulator) -> str:
        """Ask the endpoint for a digit; return the model version that answered."""
        place = self.serving(emulator)
        body = json.dumps({"data": [known_digits().images[3].tolist()]}).encode()
        request = urllib.request.Request(
            place["url"],
            body,
            {"Authorization": f"Bearer {place['key']}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            told = json.load(answer)
        assert told["predictions"][0]["digit"] == "3"
        return str(told["model_version"])

    def set(self, **values: str) -> None:
        """Change values of the section azure and commit."""
        path = self.root / "params.yaml"
        lines = path.read_text().splitlines()
        for name, value in values.items():
            (number,) = (i for i, line in enumerate(lines) if line.startswith(f"  {name}:"))
            lines[number] = f"  {name}: {value}"
        path.write_text("\n".join(lines) + "\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "Other settings")


def a_project(root: Path, emulator: Emulator, score: str = LIGHT_SCORE) -> Deployable:
    """Make a project with a workspace of its own, whose code is `score`."""
    (root / "serving").mkdir(parents=True)
    project = Deployable(root, f"w{uuid.uuid4().hex[:8]}", emulator.folder)
    (root / "serving" / "score.py").write_text(score)
    (root / ".gitignore").write_text(
        "/data/*\n!/data/evaluation\n/.emulator\n/.deploy\n*.partial\n"
    )
    (root / ".emulator").symlink_to(emulator.folder)
    (root / "params.yaml").write_text(frozen.text(), "utf-8")
    project.git("init", "--quiet", "--initial-branch", "main")
    smoke = "{digits: 10, accuracy: 0.9, latency_seconds: 5.0}"
    project.set(code="serving", step_seconds="0.0", smoke=smoke, lease_seconds="15")
    return project
