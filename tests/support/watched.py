"""An emulator in a project of its own, two deployments of it, and a browser that opens its page."""

import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from histogram import histograms
from light import Deployable, Emulator, a_project
from playwright.sync_api import Browser, Page, expect

from digits.monitoring.drift import Reference

# It answers what a digit's first pixels say: which digit it is, how foreign it looks. A drawn
# digit is a 1 if it is narrow and a 0 if not; what is collected for it is like the rest.
SCORE = """
import base64, io, json, os
from pathlib import Path

import numpy as np
import pandas
from azureml.ai.monitoring import Collector
from azureml.ai.monitoring.context import BasicCorrelationContext
from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from PIL import Image


def init():
    global collector, version
    (path,) = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("answers.json")
    version = json.loads(path.read_text())["version"][:12]
    collector = Collector(name="model_inputs_outputs", on_error=print)


def images_of(body):
    if body.startswith(b"{"):
        return np.array(json.loads(body)["data"], np.uint8)
    ink = np.asarray(Image.open(io.BytesIO(body)).convert("L")) < 128
    rows, columns = ink.any(axis=1).sum(), ink.any(axis=0).sum()
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8)
    image[0, 0, :2] = columns * 2 < rows, 60
    return image


@rawhttp
def run(request):
    try:
        images = images_of(request.get_data())
    except Exception:
        return AMLResponse({"message": "the PNG cannot be read"}, 400, json_str=True)
    found = []
    for image in images:
        digit, foreign = int(image[0, 0]) % 10, int(image[0, 1])
        shares = [0.95 if number == digit else 0.05 / 9 for number in range(10)]
        how = 0.97 if foreign == 255 else foreign / 600
        answer = {"digit": str(digit), "confidence": 0.95, "ood_score": how}
        found.append(answer | {"probabilities": shares})
    names = [request.headers.get(f"x-ms-{kind}request-id") for kind in ("client-", "")]
    identity = names[0] or names[1]
    common = {"request_id": identity, "model_version": version}
    rows = [
        common | {"position": n, "image": base64.b64encode(image.tobytes()).decode()} | answer
        for n, (image, answer) in enumerate(zip(images, found))
    ]
    collector.collect(pandas.DataFrame(rows), BasicCorrelationContext(id=identity))
    told = {"model_version": version, "script": None, "classes": list("0123456789")}
    return AMLResponse(told | {"predictions": found}, 200, json_str=True)
"""


def known_images(count: int, strangers: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return uint8 (count, 28, 28), of which a share looks foreign."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    images[:, 0, 0] = rng.integers(0, 10, count)
    images[:, 0, 1] = rng.integers(0, 250, count)
    images[: round(count * strangers), 0, 1] = 255
    return images


@pytest.fixture(scope="module", name="home")
def a_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An emulator of one's own, started in a project of its own."""
    root = tmp_path_factory.mktemp("page")
    server = Emulator(root / "emulator", project=root / "project", page=True)
    project = a_project(root / "project", server, SCORE)
    (project.root / "node_modules").symlink_to(ROOT / "node_modules")
    server.start()
    try:
        yield server
    finally:
        server.stop(may_say="Collected requests are lost; scoring goes on.")


@pytest.fixture(scope="module", name="live")
def a_live_project(home: Emulator) -> Iterator[Deployable]:
    """Two deployments, `one` and `two`; `two` has all traffic, and a reference."""
    root = home.project
    project = Deployable(root, "pages", home.folder)
    project.set(smoke="{digits: 1, accuracy: 0.0, latency_seconds: 5.0}")
    project.git("rm", "-q", "--cached", "node_modules")
    (root / ".git" / "info" / "exclude").write_text("node_modules\n")
    project.commit("1e1")
    project.deploy("apply")
    version = project.commit("2e2")
    images = known_images(4000, seed=9)
    foreign = images[:, 0, 1] / 600
    sure = np.full(len(images), 0.95)
    summary = histograms(images, images[:, 0, 0].astype(int), sure, foreign)
    Reference.fit({"mnist": summary}, version[:12]).write(
        root / "data" / "monitoring" / "reference.json"
    )
    project.deploy("apply")
    yield project
    project.deploy("destroy", "--wait")


@pytest.fixture(name="open_page")
def an_opener(browser: Browser, home: Emulator) -> Iterator[Callable[..., Page]]:
    """Open the page; no error in its console and no request to another host, in any test."""
    wrong: list[str] = []
    address = home.address["page"]
    origin = address.partition("#")[0]
    contexts = []

    def opened(width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)

        def said(message: Any) -> None:
            # The browser tells a refused picture, which the page tells too.
            if message.type in ("error", "warning") and "/score?" not in message.location["url"]:
                wrong.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                wrong.append(request.url) if not request.url.startswith(origin) else None
            ),
        )
        page.goto(address)
        expect(page.locator("#health")).not_to_have_text("connecting")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong, wrong


def send(home: Emulator, project: Deployable, images: np.ndarray) -> list[str]:
    """Send images by hundreds; return the ids of the requests."""
    place = project.serving(home)
    path = place["url"].split("/", 3)[3]
    connection = http.client.HTTPConnection("127.0.0.1", home.address["router_port"], timeout=60)
    ids = []
    for start in range(0, len(images), 100):
        ids.append(str(uuid.uuid4()))
        body = json.dumps({"data": images[start : start + 100].tolist()})
        headers = {"Authorization": f"Bearer {place['key']}", "x-ms-client-request-id": ids[-1]}
        connection.request("POST", f"/{path}", body, headers | {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    connection.close()
    return ids


def stroke(page: Page, *points: tuple[int, int]) -> None:
    """Draw with the mouse, in the paper's own pixels."""
    box = page.get_by_label("Paper to draw a digit on").bounding_box()
    assert box
    scale = box["width"] / 280
    places = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()
