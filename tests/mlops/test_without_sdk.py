"""What needs no workspace works where azure-ai-ml and azure-identity are not installed."""

import json
import signal
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from blocked import blocking
from conftest import NAME, Project, environment
from pyarrow import parquet

pytestmark = pytest.mark.slow
KEY = "a-key"


@pytest.fixture(scope="module", name="env")
def an_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An environment in which neither package can be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    env = {"PYTHONPATH": blocking(folder, "azure.ai.ml", "azure.identity")}
    for name, found in (("azure.ai.ml", False), ("azure.identity", False), ("azure.core", True)):
        command = ["python", "-c", f"import {name}"]
        done = subprocess.run(command, env=environment() | env, capture_output=True, text=True)
        assert (done.returncode == 0) == found, done.stderr
    return env


class Endpoint(ThreadingHTTPServer):
    """An endpoint of any maker: it answers every digit with 3, and counts by id."""

    def __init__(self) -> None:
        """Listen on loopback."""
        self.came: Counter[str] = Counter()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                right = self.headers["Authorization"] == f"Bearer {KEY}"
                endpoint.came[self.headers["x-ms-client-request-id"]] += right
                answer = json.dumps({"predictions": [{"digit": "3"}]}).encode()
                self.send_response(200 if right else 401)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An endpoint outside any workspace."""
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


def count(project: Project) -> int:
    """Return how many requests stage simulate made."""
    return parquet.read_metadata(project.root / "data/production/requests.parquet").num_rows


def test_a_folder_of_production_is_judged_as_the_stage_judges_it(
    project: Project, env: dict[str, Any]
) -> None:
    said = project.run(
        *(NAME, "monitor", "--production", "data/production", "--out", "look"), **env
    )
    assert said.startswith("data/production: ")
    found = json.loads((project.root / "look" / "monitoring.json").read_text("utf-8"))
    assert found["requests"] == count(project) > 0
    assert (project.root / "look" / "report.html").read_bytes() == (
        project.root / "data" / "monitoring" / "report.html"
    ).read_bytes()
    answer = project.run(NAME, "monitor", "--production", "data/production", "--json", **env)
    assert json.loads(answer) == found


def test_traffic_goes_to_any_endpoint(
    project: Project, env: dict[str, Any], endpoint: Endpoint
) -> None:
    (project.root / "key").write_text(f"{KEY}\n")
    url = f"http://127.0.0.1:{endpoint.server_port}/digits/score"
    words = ("--key-file", "key", "--speed", "max", "--requests", "50")
    said = project.run(NAME, "simulate", "--url", url, *words, **env)
    assert "sent 50, answered 50, 0 retries, 0 rejected" in said
    assert "labels" not in said  # there is no store for them
    assert list(endpoint.came.values()) == [1] * 50
    (project.root / "key").write_text("another")
    said = project.run(NAME, "simulate", "--url", url, *words, code=1, **env)
    assert f"{url} does not accept the key" in said


def test_files_are_scored(project: Project, env: dict[str, Any]) -> None:
    words = (NAME, "score", "data/production/requests.parquet", "--out", "answers", "--json")
    done = subprocess.run(
        words, cwd=project.root, env=environment() | env, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["done_before"]) == (count(project), 0)
    again = project.run(*words[:-1], **env)
    assert "0 images in " in again and f"({found['images']:,} were done before)" in again


def test_production_runs_on_this_machine_with_its_page(
    project: Project, env: dict[str, Any]
) -> None:
    process = subprocess.Popen(
        [NAME, "local"],
        cwd=project.root,
        env=environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        assert said.startswith("Serving at"), said + process.communicate()[1]
        address = json.loads((project.root / ".emulator" / "address.json").read_text("utf-8"))
        with urllib.request.urlopen(address["page"], timeout=30) as page:
            assert b"<html" in page.read()
    finally:
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (0, "")
