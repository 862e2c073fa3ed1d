"""The page of `digits serve`, in a real browser: by pointer, by keyboard, by telephone."""

import datetime
import http.client
import io
import json
import re
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from azure.storage.blob import BlobServiceClient
from browser import chromium
from conftest import ROOT, Project, mnist_part
from light import Deployable, StandIn, a_project
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from digits.azure import collected, page
    from digits.azure.serve import CONTAINER, KEY, Collector
    from digits.azure.workspace import connect
from digits import inference
from digits.azure.detector import Detector
from digits.azure.router import Endpoint, Router, Server
from digits.azure.watch import Labels, Watch
from digits.drift import Reference
from digits.summary import Summary

pytestmark = pytest.mark.slow

AXE = (ROOT / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")
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
        answer = {"digit": str(digit), "confidence": 0.95, "foreign": how}
        found.append(answer | {"probabilities": shares})
    rows = [
        {"image": base64.b64encode(image.tobytes()).decode(), "model_version": version} | answer
        for image, answer in zip(images, found)
    ]
    identity = request.headers.get("x-ms-client-request-id", "")
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
def a_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A stand-in of one's own, started in a project of its own."""
    root = tmp_path_factory.mktemp("page")
    server = StandIn(root / "standin", project=root / "project")
    project = a_project(root / "project", server, SCORE)
    (project.root / "node_modules").symlink_to(ROOT / "node_modules")
    server.start()
    try:
        yield server
    finally:
        server.stop(may_say="Collected requests are lost; scoring goes on.")


@pytest.fixture(scope="module", name="live")
def a_live_project(home: StandIn) -> Iterator[Deployable]:
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
    summary = Summary.of(images, images[:, 0, 0].astype(int), sure, foreign, 10)
    Reference.fit(summary, version[:12]).write(root / "data" / "monitoring" / "reference.json")
    project.deploy("apply")
    yield project
    project.deploy("destroy", "--wait")


@pytest.fixture(scope="module", name="browser")
def a_browser() -> Iterator[Browser]:
    """A running Chromium."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox"]  # tests may run as root
        browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        yield browser
        browser.close()


@pytest.fixture(name="open_page")
def an_opener(browser: Browser, home: StandIn) -> Iterator[Callable[..., Page]]:
    """Open the page; no error in its console and no request to another host, in any test."""
    wrong: list[str] = []
    address = home.address["page"]
    contexts = []

    def opened(width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)

        def said(message: Any) -> None:
            # The browser tells a refused picture, which the page tells too.
            if message.type in ("error", "warning") and "/score?" not in message.location["url"]:
                wrong.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                wrong.append(request.url) if not request.url.startswith(address + "/") else None
            ),
        )
        page.goto(address)
        expect(page.locator("#health")).not_to_have_text("connecting")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def send(home: StandIn, project: Deployable, images: np.ndarray) -> list[str]:
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


ROUND = [(140, 60), (200, 100), (200, 180), (140, 220), (80, 180), (80, 100), (140, 60)]


def faults(page: Page) -> list[str]:
    """Return what axe-core finds against the WCAG's rules and its own best practices."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:120]}" for one in found]


def test_without_a_deployment_it_says_what_to_run(open_page: Callable[..., Page]) -> None:
    page = open_page()
    notices = page.get_by_role("status", name="Notices")
    expect(notices).to_contain_text("digits deploy apply")
    stroke(page, *ROUND)
    expect(page.locator("#answer")).to_contain_text("404: nothing is deployed yet")
    assert faults(page) == []


def test_a_digit_is_drawn_and_read(
    live: Deployable, home: StandIn, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    stroke(page, *ROUND)
    expect(page.locator("#digit")).to_have_text("0")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#digit")).to_have_text("?")
    stroke(page, (140, 40), (140, 240))
    answer = page.locator("#answer")
    expect(answer).to_contain_text("95.0 % sure. It looks like the digits that the model knows.")
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.get_by_role("row", name="1 95.0 %")).to_be_visible()
    foreign = page.get_by_role("meter", name="How foreign it looks")
    expect(foreign).to_have_attribute("aria-valuenow", "0.1")
    place = live.serving(home)
    assert place["key"] not in page.content()
    page.get_by_label("Written in").select_option("mnist")
    expect(page.locator("#by")).to_contain_text("It does not know this script")


def test_a_picture_is_uploaded(live: Deployable, open_page: Callable[..., Page]) -> None:
    page = open_page()
    picture = np.full((60, 60), 255, np.uint8)
    picture[10:50, 28:32] = 0
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    upload = page.get_by_label("Upload a PNG or JPEG of a digit")

    def choose(content: bytes) -> None:
        upload.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": content})

    choose(png.getvalue())
    expect(page.locator("#digit")).to_have_text("1")
    choose(b"\x89PNG\r\n\x1a\nbroken")
    expect(page.locator("#sentence")).to_have_text("400: the PNG cannot be read")


def test_the_keyboard_is_enough(live: Deployable, open_page: Callable[..., Page]) -> None:
    page = open_page()
    for _ in range(2):  # the link to skip, the paper
        page.keyboard.press("Tab")
    expect(page.get_by_role("application", name="Paper to draw a digit on")).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Space")
    for _ in range(15):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    expect(page.locator("#said")).to_have_text("The pen is up.")
    page.keyboard.press("Enter")
    expect(page.locator("#digit")).to_have_text("1")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    expect(page.locator("#sentence")).to_contain_text("The paper is empty")
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[:4] == ["ask", "clear", "file", "script"]


def test_drift_appears_and_labels_tell_accuracy(
    live: Deployable, home: StandIn, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    known = known_images(500, seed=1)
    ids = send(home, live, known)
    expect(page.locator("#drift")).to_have_text("no")
    time_known = datetime.datetime.now(datetime.UTC)
    labels = [
        {
            "time": time_known,
            "request_id": ids[number // 100],
            "position": number % 100,
            "label": str(known[number, 0, 0] if number % 10 else (known[number, 0, 0] + 1) % 10),
            "script": "mnist",
        }
        for number in range(200)
    ]
    collected.append_labels(connect("local", home.folder), live.serving(home)["name"], labels)
    expect(page.locator("#accuracy")).to_have_text("90.0 %")
    expect(page.get_by_role("table", name="Accuracy by script")).to_contain_text("mnist")
    send(home, live, known_images(500, 0.2, seed=2))
    expect(page.locator("#drift")).to_have_text("yes")
    expect(page.locator("#notices")).to_contain_text("Drift since")
    chart = page.locator("[data-chart=evidence]")
    expect(chart.get_by_role("img", name=re.compile("Evidence .* drift since"))).to_be_visible()
    chart.get_by_text("As a table").click()
    expect(chart.get_by_role("row").nth(2)).to_contain_text("yes")
    page.set_viewport_size({"width": 1280, "height": 1500})
    assert faults(page) == []


def test_the_split_between_deployments(
    live: Deployable, home: StandIn, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    name = live.serving(home)["name"]
    path = f"{live.endpoint}/{name}"
    names = [one["name"] for one in home.call("GET", f"{path}/deployments")["value"]]
    assert len(names) == 2
    body = home.call("GET", path)
    body["properties"]["traffic"] = dict.fromkeys(names, 50)
    home.call("PUT", path, body)
    table = page.locator("#deployments")
    for one in names:
        expect(table.get_by_role("row", name=one)).to_contain_text("50 % set")
    before = dict.fromkeys(names, 0)
    send(home, live, known_images(2000, seed=3))
    for one in before:
        expect(table.get_by_role("row", name=one)).to_contain_text(re.compile(r"\d+ % \(\d"))
    rates = page.locator("[data-chart=rates]")
    expect(rates.get_by_role("listitem")).to_have_text(sorted(names))


def test_a_telephone_in_the_dark(live: Deployable, open_page: Callable[..., Page]) -> None:
    page = open_page(360, color_scheme="dark", has_touch=True)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 120
    page.get_by_label("Paper to draw a digit on").tap()
    expect(page.locator("#digit")).to_have_text("0")  # a dot is as wide as high
    assert faults(page) == []


def call(home: StandIn, method: str, path: str, **headers: str) -> tuple[int, Any]:
    """Call the page's server as another program would; return status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", home.address["page_port"], timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, b"x" if method == "POST" else None, named)
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer.status, answer


def test_only_its_own_page_may_use_it(home: StandIn) -> None:
    port = home.address["page_port"]
    own = f"127.0.0.1:{port}"
    assert call(home, "GET", "/")[0] == 200
    assert call(home, "GET", "/state", Host=f"localhost:{port}")[0] == 200
    assert call(home, "GET", "/state", Host="evil.example")[0] == 403
    assert call(home, "GET", "/state", Host="127.0.0.1:1")[0] == 403
    assert call(home, "POST", "/score", Origin="http://evil.example")[0] == 403
    assert call(home, "POST", "/score", Origin="null")[0] == 403
    assert call(home, "POST", "/score", Host=own, Origin=f"http://{own}")[0] in (404, 400, 200)
    assert call(home, "POST", "/score", Content_Length="99999999999")[0] == 413
    assert call(home, "POST", "/other")[0] == 404
    for path in ("/../page.py", "/%2e%2e/page.py", "/web/..%2fpage.py", "/index.html/", "//x"):
        assert call(home, "GET", path)[0] == 404
    _, answer = call(home, "GET", "/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "http" not in policy


def test_a_full_disk_stops_no_scoring(
    live: Deployable, home: StandIn, open_page: Callable[..., Page]
) -> None:
    resource = pytest.importorskip("resource", reason="limits of processes, which Windows lacks")
    page = open_page()
    blobs = str(home.folder / "blobs")
    (emulator,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if blobs in path.read_bytes().decode(errors="replace").split("\0")
        and b"azurite" in path.read_bytes()
    ]
    before = resource.prlimit(emulator, resource.RLIMIT_FSIZE)
    # No file of it can grow: what a full disk does.
    resource.prlimit(emulator, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        send(home, live, known_images(500, seed=4))
        expect(page.locator("#notices")).to_contain_text("lost", timeout=30_000)
        send(home, live, known_images(100, seed=5))
    finally:
        resource.prlimit(emulator, resource.RLIMIT_FSIZE, before)
    expect(page.locator("#counts")).to_contain_text(
        re.compile("[1-9]\\d* collected requests? lost")
    )


def test_the_real_model(
    reproduced: Project, home: StandIn, browser: Browser, tmp_path: Path
) -> None:
    watch = Watch(Detector(reproduced.root))
    url = f"{home.address['blobs']}/devstoreaccount1"
    with BlobServiceClient(url, credential=KEY) as service:
        container = service.get_container_client(CONTAINER)
        router = Router(0, Collector(container, watch).take, watch.request)
        router.endpoints["real"] = Endpoint(["key"], {"blue": 100})
        shown = Server(("127.0.0.1", 0), page.handler(router, watch, Labels(container))).start()
        router.server.start()
        model = reproduced.root / "data" / "package"
        code = inference.serving_code(tmp_path / "code")
        collecting = {"AZUREML_MDC_ENABLED": "true"}
        context = browser.new_context()
        try:
            router.start(("real", "blue"), code, model, collecting, tmp_path / "log", 60.0)
            opened = context.new_page()
            opened.goto(f"http://127.0.0.1:{shown.server_address[1]}")
            expect(opened.locator("#health")).to_have_text("live")
            stroke(opened, (140, 40), (140, 240))
            expect(opened.locator("#digit")).to_have_text(re.compile("[0-9]"), timeout=20_000)
            table = opened.get_by_role("table", name="Probabilities")
            expect(table.get_by_role("row")).to_have_count(10 + 1)  # and the head
            connection = http.client.HTTPConnection("127.0.0.1", router.server.server_address[1])
            for images in (mnist_part("t10k", 600).images, 255 - mnist_part("t10k", 500).images):
                body = json.dumps({"data": images.tolist()})
                headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
                connection.request("POST", "/real/score", body, headers)
                assert connection.getresponse().read()
            connection.close()
            expect(opened.locator("#drift")).to_have_text("yes")
        finally:
            context.close()
            router.close()
            shown.stop()
