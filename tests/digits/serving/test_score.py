"""The endpoint on Azure's own server: it answers what the model says and collects requests."""

import base64
import io
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from benchmarks.photos import photograph
from conftest import ROOT, Endpoint, Project, environment, free_port, mnist_part, python
from PIL import Image
from pyarrow import parquet
from serving import serving_code

from azureml_emulator import inference
from azureml_emulator.web import EmulatorError
from digits.model import network
from digits.runtime.normalise import normalise
from digits.runtime.photograph import find_ink

pytestmark = pytest.mark.slow
Serve = Callable[..., Endpoint]
DIGITS = mnist_part("t10k", 20).images
BODY = json.dumps({"data": DIGITS.tolist()}).encode()
DEADLINE_SECONDS = 20.0
SCORING = """
import os
import sys
from core import determinism

determinism.configure()
from digits.serving import batch

def refuse(*_):
    raise PermissionError("a file of mounted blob storage cannot be renamed")


os.rename = os.replace = refuse
batch.init()
for script in ("", "mnist"):
    out = f"{sys.argv[2]}/told {script}"
    os.environ |= {"AZUREML_BI_OUTPUT_PATH": out, "DIGITS_SCRIPT": script}
    print(batch.run(sys.argv[1:2]))
"""


class Sink:
    """A data collector's sidecar: it keeps what is posted, or answers with another status."""

    def __init__(self, status: int = 200) -> None:
        """Listen on a free port of loopback."""
        self.received: list[tuple[dict[str, str], Any]] = []
        self.open = threading.Event()  # unless this is set, posts wait
        self.open.set()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/modeldata/log"
                assert sink.open.wait(DEADLINE_SECONDS)
                sink.received.append((dict(self.headers), rows))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        """What points a collector here."""
        port = str(self.server.server_port)
        host = {"AZUREML_MDC_HOST": "127.0.0.1", "AZUREML_MDC_PORT": port}
        return {"AZUREML_MDC_ENABLED": "true", **host}


@pytest.fixture(scope="module")
def sinks() -> Iterator[list[Sink]]:
    """Two sinks: one that works and one that fails."""
    both = [Sink(), Sink(500)]
    yield both
    for sink in both:
        sink.server.shutdown()
        sink.server.server_close()


@pytest.fixture(scope="module")
def endpoint(serve: Serve, sinks: list[Sink]) -> Endpoint:
    """An endpoint that collects."""
    return serve(**sinks[0].env)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow(minutes=0.3)
def test_an_answer_is_what_the_model_says(endpoint: Endpoint, reproduced: Project) -> None:
    status, answer, headers = endpoint.post(BODY)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    expected = network.predict(
        network.load(reproduced.root / "data/model/model.keras", 28, 10), DIGITS
    )
    manifest = json.loads((endpoint.model / "data/model/manifest.json").read_text("utf-8"))
    assert answer["model_version"] == manifest["model_sha256"][:12]
    assert answer["script"] is None
    found = answer["predictions"]
    probabilities = np.array([each["probabilities"] for each in found])
    np.testing.assert_allclose(probabilities, expected["digits"], atol=2e-6)
    assert [each["digit"] for each in found] == [
        answer["classes"][label] for label in expected["digits"].argmax(axis=1)
    ]
    np.testing.assert_allclose([e["confidence"] for e in found], probabilities.max(axis=1))
    np.testing.assert_allclose([e["ood_score"] for e in found], expected["ood_score"], atol=2e-6)


def test_an_image_is_answered_as_its_numbers_are(endpoint: Endpoint) -> None:
    for digit in DIGITS[:3]:
        file = io.BytesIO()
        Image.fromarray(255 - digit).save(file, "PNG")
        numbers = {"data": normalise(digit[np.newaxis], 28).tolist(), "script": "mnist"}
        found = endpoint.post(file.getvalue(), "/score?script=mnist")
        assert found[0] == 200
        assert found[1]["script"] == "mnist"
        assert found[:2] == endpoint.post(json.dumps(numbers).encode())[:2]


def test_explain_returns_the_picture_after_each_step(endpoint: Endpoint) -> None:
    body = photograph("ruled, dark", DIGITS[:1], 0)
    status, answer, _ = endpoint.post(body, "/score?explain=true")
    assert status == 200
    steps = {name: np.array(rows) for name, rows in answer.pop("steps").items()}
    with Image.open(io.BytesIO(body)) as image:
        found = find_ink(np.asarray(image.convert("L")), jpeg=True)
    expected = found.steps | {"model input": normalise(found.pixels[np.newaxis], 28)[0]}
    assert list(steps) == list(expected)
    assert all(np.array_equal(steps[name], image) for name, image in expected.items())
    assert answer == endpoint.post(body)[1]  # which has no steps
    numbers = endpoint.post(BODY, "/score?explain=true")[1]["steps"]
    assert np.array_equal(numbers.pop("model input"), DIGITS[0])
    assert numbers == {}


def test_a_script_that_the_model_does_not_know_changes_nothing(endpoint: Endpoint) -> None:
    told = json.dumps({"data": DIGITS.tolist(), "script": "klingon"}).encode()
    assert endpoint.post(told)[:2] == endpoint.post(BODY)[:2]


def test_files_are_answered_as_requests_with_the_same_images_are(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    images = mnist_part("t10k", 1037).images  # a request of the most images, and the rest
    rows = pa.array([image.tobytes() for image in images], pa.binary(784))
    parquet.write_table(pa.table({"image": rows}), tmp_path / "digits.parquet")
    both = python(SCORING, str(tmp_path / "digits.parquet"), str(tmp_path))
    env = environment() | {"AZUREML_MODEL_DIR": str(endpoint.model)}
    subprocess.run(both, cwd=ROOT / "src/digits/serving", env=env, check=True, capture_output=True)
    for script in ("", "mnist"):
        found = parquet.read_table(tmp_path / f"told {script}" / "digits.parquet").to_pylist()
        assert [row.pop("row") for row in found] == list(range(1037))
        for part in (slice(0, 1000), slice(1000, None)):
            told = {"script": script} if script else {}
            body = json.dumps({"data": images[part].tolist(), **told}).encode()
            status, answer, _ = endpoint.post(body)
            assert status == 200
            expected = [
                {**e, "model_version": answer["model_version"]} for e in answer["predictions"]
            ]
            assert found[part] == expected
    # Asked for alone, an image may be answered otherwise in the last decimal, and no more.
    for image, row in zip(images[:20], found, strict=False):
        body = json.dumps({"data": [image.tolist()], "script": "mnist"}).encode()
        (alone,) = endpoint.post(body)[1]["predictions"]
        assert alone["digit"] == row["digit"]
        assert abs(alone["confidence"] - row["confidence"]) < 2.1e-6
        assert abs(alone["ood_score"] - row["ood_score"]) < 2.1e-6


def test_requests_and_answers_are_collected_together(endpoint: Endpoint, sinks: list[Sink]) -> None:
    _, answer, headers = endpoint.post(BODY, x_request_id="my-request")
    assert headers["x-digits-uncollected"] == "0"
    received = sinks[0].received

    def of_request() -> list[dict[str, Any]]:
        tables = [r for h, r in list(received) if h["ce-type"].endswith(".model_inputs_outputs")]
        return [row for table in tables for row in table if row["request_id"] == "my-request"]

    wait_until(lambda: len(of_request()) == len(DIGITS))
    rows = of_request()
    images = [np.frombuffer(base64.b64decode(row.pop("image")), np.uint8) for row in rows]
    np.testing.assert_array_equal(np.stack(images), DIGITS.reshape(-1, 784))
    assert {row.pop("model_version") for row in rows} == {answer["model_version"]}
    assert {row.pop("request_id") for row in rows} == {"my-request"}
    assert [row.pop("position") for row in rows] == list(range(len(rows)))
    assert rows == answer["predictions"]


def test_a_request_is_collected_under_its_clients_id(endpoint: Endpoint, sinks: list[Sink]) -> None:
    endpoint.post(BODY, x_request_id="server's", x_ms_client_request_id="client's")

    def ids() -> set[str]:
        return {row.get("request_id") for _, table in list(sinks[0].received) for row in table}

    wait_until(lambda: "client's" in ids())
    assert "server's" not in ids()


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param("off", marks=pytest.mark.prove),
        "nobody listens",
        pytest.param("sink fails", marks=pytest.mark.prove),
    ],
)
def test_a_collection_that_fails_is_counted_and_fails_no_request(
    serve: Serve, sinks: list[Sink], trouble: str
) -> None:
    nobody = sinks[0].env | {"AZUREML_MDC_PORT": str(free_port())}
    troubled = serve(**{"off": {}, "nobody listens": nobody, "sink fails": sinks[1].env}[trouble])
    counted = []

    def lost() -> int:
        status, answer, headers = troubled.post(BODY)
        assert status == 200
        assert len(answer["predictions"]) == len(DIGITS)
        counted.append(int(headers["x-digits-uncollected"]))
        return counted[-1]

    wait_until(lambda: lost() >= 3)
    assert counted == sorted(counted)
    assert "not collected:" in troubled.log.read_text("utf-8")


def test_what_waits_is_collected_before_a_server_ends(endpoint: Endpoint, tmp_path: Path) -> None:
    sink, port, log = Sink(), free_port(), tmp_path / "log"
    sink.open.clear()
    code, env = endpoint.log.parent / "code", environment() | sink.env
    process = inference.start(code, endpoint.model.parent, port, log, env)
    mine = Endpoint(port, endpoint.model, log)
    assert [mine.post(BODY)[0] for _ in range(30)] == [200] * 30
    stopping = threading.Thread(target=inference.stop, args=(process,))
    stopping.start()

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=0.5):
                return True
        except OSError:
            return False

    wait_until(lambda: not answers())
    sink.open.set()
    stopping.join()
    assert len({row["request_id"] for _, table in sink.received for row in table}) == 30
    assert process.returncode == 0
    sink.server.shutdown()
    sink.server.server_close()


def test_only_loopback_is_listened_on(endpoint: Endpoint) -> None:
    lines = Path("/proc/net/tcp").read_text("utf-8").splitlines()[1:]
    local = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert f"0100007F:{endpoint.port:04X}" in local
    assert f"00000000:{endpoint.port:04X}" not in local


def test_a_folder_without_a_model_is_reported_and_leaves_no_server(tmp_path: Path) -> None:
    code = serving_code(tmp_path / "code")
    (tmp_path / "model").mkdir()
    port = free_port()
    with pytest.raises(EmulatorError, match="the inference server ended"):
        inference.start(code, tmp_path / "model", port, tmp_path / "log", environment())
    assert "expected 1 file MLmodel, found 0; " in (tmp_path / "log").read_text("utf-8")
    assert not inference.healthy(port)
