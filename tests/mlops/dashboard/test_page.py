"""The page of `digits local`, in a real browser: by pointer, by keyboard, by telephone."""

import datetime
import http.client
import io
import json
import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from azure.storage.blob import BlobServiceClient
from benchmarks.photos import photograph
from blobs import Blobs
from browser import a_browser, faults  # noqa: F401
from conftest import Project, mnist_part
from light import Deployable, Emulator
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect
from serving import serving_code
from signed import keyed
from watched import a_home, a_live_project, an_opener, known_images, send, stroke  # noqa: F401

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azureml_emulator.collector import Collector
    from azureml_emulator.storage import CONTAINER
    from azureml_emulator.web import Servers
    from mlops.azure import collected
    from mlops.azure.workspace import connect, store
    from mlops.dashboard import page
from azureml_emulator import web
from azureml_emulator.router import Launch, Router
from digits.runtime.photograph import SEVERAL
from mlops.dashboard.watch import LiveState

pytestmark = pytest.mark.slow

SECRET = "s" * 43
ROUND = [(140, 60), (200, 100), (200, 180), (140, 220), (80, 180), (80, 100), (140, 60)]


def test_without_a_deployment_it_says_what_to_run(open_page: Callable[..., Page]) -> None:
    page = open_page()
    notices = page.get_by_role("status", name="Notices")
    expect(notices).to_contain_text("digits deploy apply")
    stroke(page, *ROUND)
    expect(page.locator("#answer")).to_contain_text("404: nothing is deployed yet")
    assert faults(page) == []


def test_the_secret_survives_the_skip_link_and_is_missed_without(
    home: Emulator, browser: Browser, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    page.evaluate("location.hash = '#now'")
    page.reload()
    expect(page.locator("#health")).to_have_text(re.compile("live|nothing|no deployment|drift"))
    with browser.new_context() as context:
        other = context.new_page()
        other.goto(f"http://127.0.0.1:{home.address['page_port']}")
        expect(other.locator("#health")).to_have_text("open the address that `digits local` prints")
        assert faults(other) == []


def test_a_digit_is_drawn_and_read(
    live: Deployable, home: Emulator, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    stroke(page, *ROUND)
    expect(page.locator("#digit")).to_have_text("0")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#digit")).to_have_text("?")
    stroke(page, (140, 40), (140, 240))
    answer = page.locator("#answer")
    expect(answer).to_contain_text("Confidence 95.0 %. In distribution.")
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.get_by_role("row", name="1 95.0 %")).to_be_visible()
    foreign = page.get_by_role("meter", name="Out-of-distribution score")
    expect(foreign).to_have_attribute("aria-valuenow", "0.1")
    expect(page.locator("#asked")).to_contain_text(re.compile(r"^(?!0[.]0 )"))
    expect(page.locator("[data-chart=latency] circle").first).to_be_attached()  # one request
    paper, upload = page.locator("#paper").bounding_box(), page.get_by_text("Upload").bounding_box()
    assert paper and upload and upload["x"] + upload["width"] <= paper["x"] + paper["width"] + 1
    assert faults(page) == []
    place = live.serving(home)
    assert place["key"] not in page.content()
    page.get_by_role("combobox", name="Script").select_option("mnist")
    expect(page.locator("#by")).to_contain_text("It does not know this script")


def test_a_wrong_answer_gets_a_label_and_a_try_out_is_marked(
    live: Deployable, home: Emulator, open_page: Callable[..., Page]
) -> None:
    page = open_page(1366)
    page.set_viewport_size({"width": 1366, "height": 768})
    stroke(page, (140, 40), (140, 240))
    page.get_by_label("Wrong? It was").select_option("7")
    page.get_by_role("button", name="Save label").click()
    expect(page.locator("#labelsaved")).to_contain_text("Saved: it was 7")
    for part in ("#paper", "#digit", "#sentence", "#correction"):  # beside each other, in sight
        box = page.locator(part).bounding_box()
        assert box and box["y"] + box["height"] <= 768
    container = store(connect("local", home.folder))
    folder = collected.LABELS.format(endpoint=live.serving(home)["name"])
    (blob,) = container.list_blob_names(name_starts_with=folder)
    row = json.loads(container.download_blob(blob).readall().splitlines()[-1])
    assert (row["label"], row["script"], row["position"]) == ("7", "mnist", 0)
    assert row["request_id"].startswith("try-")
    expect(page.locator("#recent li").first).to_contain_text("try-out")
    expect(page.locator("#counts")).to_contain_text(re.compile("[1-9] try-outs?"))
    for change in ({"label": "no class"}, {"request_id": "id-1"}, {"endpoint": "other"}):
        query = "&".join(f"{key}={value}" for key, value in (row | change).items())
        path = f"/label?{query}".replace(" ", "%20").replace("+", "%2B")
        own = f"Bearer {home.address['page'].partition('=')[2]}"
        assert call(home, "POST", path, Authorization=own)[0] == 400
        assert call(home, "POST", path)[0] == 401


def test_a_chart_tells_the_values_under_the_pointer(
    live: Deployable, open_page: Callable[..., Page]
) -> None:
    page = open_page(forced_colors="active")
    plot = page.locator("[data-chart=rates] .plot")
    plot.hover()
    expect(plot.locator(".hover text")).to_contain_text(re.compile(r"\d+ s ago: "))
    with page.expect_response("**/state?*"):
        pass
    expect(plot.locator(".hover text")).to_contain_text(re.compile(r"\d+ s ago: "))
    page.mouse.move(0, 0)
    expect(plot.locator(".hover text")).to_have_count(0)


def test_a_picture_is_uploaded(live: Deployable, open_page: Callable[..., Page]) -> None:
    page = open_page()
    picture = np.full((60, 60), 255, np.uint8)
    picture[10:50, 28:32] = 0
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    upload = page.get_by_label("Upload a picture of a digit")

    def choose(content: bytes) -> None:
        upload.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": content})

    choose(png.getvalue())
    expect(page.locator("#digit")).to_have_text("1")
    for again in (
        page.get_by_role("button", name="Read it").click,
        lambda: page.get_by_role("combobox", name="Script").select_option("mnist"),
    ):
        with page.expect_request("**/score?*") as asked:
            again()
        length = asked.value.all_headers()["content-length"]
        assert length == str(len(png.getvalue()))  # itself, not how the paper shows it
    expect(page.locator("#by")).to_contain_text("It does not know this script")
    choose(b"\x89PNG\r\n\x1a\nbroken")
    expect(page.locator("#sentence")).to_have_text("400: the PNG cannot be read")
    stroke(page, (140, 40), (140, 240))
    expect(page.locator("#digit")).to_have_text("1")


def test_an_answer_does_not_outlive_the_paper(
    live: Deployable, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    held: list[Route] = []
    page.route("**/score?*", lambda route: held.append(route))
    stroke(page, *ROUND)
    with page.expect_request("**/score?*"):
        page.keyboard.press("Enter")
    page.get_by_role("button", name="Clear").click()
    stroke(page, (140, 40), (140, 240))
    page.locator("#paper").press("Delete")
    with page.expect_response("**/score?*"):
        for route in held:  # more than one, where the machine is slower than the pause
            route.continue_()
    for _ in range(2):  # more than a second: longer than the pause after a stroke
        with page.expect_response("**/state?*"):
            pass
    expect(page.locator("#sentence")).to_have_text("Draw a digit or upload a picture of one.")


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
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#said")).to_have_text("46 % from the left, 75 % from the top.")
    page.keyboard.press("ArrowRight")
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
    live: Deployable, home: Emulator, open_page: Callable[..., Page]
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
    container = store(connect("local", home.folder))
    collected.append_labels(container, live.serving(home)["name"], labels)
    expect(page.locator("#accuracy")).to_have_text("90.0 %")
    expect(page.get_by_role("table", name="Accuracy by script")).to_contain_text("mnist")
    send(home, live, known_images(500, 0.2, seed=2))
    expect(page.locator("#drift")).to_have_text("yes")
    notices = page.locator("#notices")
    expect(notices).to_contain_text("Drift since")
    expect(notices).to_contain_text("digits unlike the training data")
    expect(notices).to_contain_text("windows without drift at the earliest")
    expect(notices.get_by_role("button", name="Copy digits monitor")).to_be_visible()
    chart = page.locator("[data-chart=evidence]")
    expect(chart.get_by_role("img", name=re.compile("Evidence .* drift since"))).to_be_visible()
    chart.get_by_text("As a table").click()
    expect(chart.get_by_role("row").nth(2)).to_contain_text("yes")
    page.set_viewport_size({"width": 1280, "height": 1500})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert faults(page) == [], scheme


def test_the_split_between_deployments(
    live: Deployable, home: Emulator, open_page: Callable[..., Page]
) -> None:
    page = open_page()
    path = f"{live.endpoint}/{live.serving(home)['name']}"
    names = [one["name"] for one in home.call("GET", f"{path}/deployments")["value"]]
    assert len(names) == 2
    set_traffic(home, live, dict.fromkeys(names, 50))
    table = page.locator("#deployments")
    for one in names:
        expect(table.get_by_role("row", name=one)).to_contain_text("weight 50 %")
    before = dict.fromkeys(names, 0)
    send(home, live, known_images(2000, seed=3))
    for one in before:
        expect(table.get_by_role("row", name=one)).to_contain_text(re.compile(r"\d+ % \(\d"))
    rates = page.locator("[data-chart=rates]")
    expect(rates.get_by_role("listitem")).to_have_text(sorted(names))
    assert faults(page) == []


def test_tiles_write_large_numbers_alike(live: Deployable, open_page: Callable[..., Page]) -> None:
    def many(route: Route) -> None:
        answer = route.fetch()
        state = answer.json()
        state["minute"] |= {"requests": 1985, "statuses": {"200": 1985}}
        route.fulfill(response=answer, json=state)

    page = open_page()
    page.route("**/state?*", many)
    expect(page.locator("#rate")).to_have_text("1,985")
    expect(page.locator("#statuses")).to_have_text("1,985 × 200")


def set_traffic(home: Emulator, live: Deployable, traffic: dict[str, int]) -> dict[str, int]:
    """Set how the endpoint splits its requests; return how it did before."""
    path = f"{live.endpoint}/{live.serving(home)['name']}"
    body = home.call("GET", path)
    before: dict[str, int] = body["properties"]["traffic"]
    body["properties"]["traffic"] = traffic
    home.call("PUT", path, body)
    return before


def test_an_endpoint_without_traffic_says_so(
    live: Deployable, home: Emulator, open_page: Callable[..., Page]
) -> None:
    """As one that is paused, or not ready yet."""
    before = set_traffic(home, live, {})
    page = open_page()
    expect(page.locator("#health")).to_have_text("no deployment")
    expect(page.locator("#notices")).to_contain_text("It is starting or paused")
    expect(page.locator("#drift")).to_have_text("unknown")
    stroke(page, *ROUND)
    expect(page.locator("#sentence")).to_contain_text("404: No valid deployments to route to")
    assert faults(page) == []
    set_traffic(home, live, before)
    expect(page.locator("#health")).to_have_text(re.compile("live|drift"))
    safaris = "new TypeError('Load failed')"
    page.evaluate(f"() => {{ window.fetch = () => Promise.reject({safaris}) }}")
    expect(page.locator("#health")).to_have_text("digits local has stopped")
    expect(page.locator("body")).to_have_class("stale")  # which dims the old figures
    assert faults(page) == []


def test_a_telephone_in_the_dark(live: Deployable, open_page: Callable[..., Page]) -> None:
    page = open_page(360, color_scheme="dark", has_touch=True)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 120
    page.get_by_label("Paper to draw a digit on").tap()
    expect(page.locator("#digit")).to_have_text("0")  # a dot is as wide as high
    assert faults(page) == []


def call(home: Emulator, method: str, path: str, **headers: str) -> tuple[int, Any]:
    """Call the page's server as another program would; return status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", home.address["page_port"], timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, b"x" if method == "POST" else None, named)
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer.status, answer


def test_only_who_knows_its_address_may_use_it(home: Emulator) -> None:
    own = {"Authorization": f"Bearer {home.address['page'].partition('=')[2]}"}
    assert call(home, "GET", "/")[0] == 200
    for method, path in (("GET", "/state"), ("POST", "/score"), ("POST", "/label")):
        assert call(home, method, path)[0] == 401
        assert call(home, method, path, Authorization="Bearer \xff")[0] == 401
        assert call(home, method, path, Host="evil.example", **own)[0] == 403
    assert call(home, "GET", "/state", **own)[0] == 200
    assert call(home, "POST", "/score", **own)[0] in (404, 400, 200)
    assert call(home, "POST", "/score", Content_Length="99999999999", **own)[0] == 413
    assert call(home, "POST", "/other")[0] == 404
    for path in ("/../page.py", "/%2e%2e/page.py", "/web/..%2fpage.py", "/index.html/", "//x"):
        assert call(home, "GET", path)[0] == 404
    _, answer = call(home, "GET", "/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "http" not in policy


def raw(port: int, *parts: bytes) -> bytes:
    """Send bytes to the page's server as they are; return what it sends until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_slow_and_malformed_requests_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(web, "READ_SECONDS", 0.2)
    watch = LiveState(tmp_path)
    servers = Servers()
    router = Router(servers, 0, lambda *_: None, watch.request)
    router.endpoints["one"] = keyed("key")
    shown = servers.serve(page.application(router, watch, Blobs(), SECRET))  # type: ignore[arg-type]
    host = f"Host: 127.0.0.1:{shown.port}\r\n".encode()
    post = b"POST /score?endpoint=one HTTP/1.1\r\n" + host
    post += f"Authorization: Bearer {SECRET}\r\n".encode()
    try:
        assert raw(shown.port) == b""  # idle
        assert raw(shown.port, b"GET / HTTP/1.1\r\n" + host) == b""  # headers that do not end
        assert b" 408 " in raw(shown.port, post + b"Content-Length: 9\r\n\r\nhalf")
        lengths = b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"
        assert b" 400 " in raw(shown.port, post + lengths)
        both = b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert b" 400 " in raw(shown.port, post + both)
        assert b" 411 " in raw(shown.port, post + b"Transfer-Encoding: chunked\r\n\r\n")
    finally:
        shown.stop()
        router.close()
        servers.close()


def test_a_full_disk_stops_no_scoring(
    live: Deployable, home: Emulator, open_page: Callable[..., Page]
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


def test_a_late_state_does_not_undo_the_choice_of_an_endpoint(
    browser: Browser, tmp_path: Path
) -> None:
    watch = LiveState(tmp_path)
    servers = Servers()
    router = Router(servers, 0, lambda *_: None, watch.request)
    router.endpoints |= {"one": keyed("key"), "two": keyed("key")}
    shown = servers.serve(page.application(router, watch, Blobs(), SECRET))  # type: ignore[arg-type]
    context = browser.new_context()
    held: list[Route] = []
    try:
        opened = context.new_page()
        opened.goto(f"http://127.0.0.1:{shown.port}/#secret={SECRET}")
        where = opened.locator("#where")
        expect(where).to_contain_text("endpoint one")
        opened.route("**/state?endpoint=one", lambda route: held.append(route))
        while not held:
            opened.evaluate("0")  # which lets the browser's events come
        opened.get_by_label("Endpoint").select_option("two")
        held[0].continue_()
        expect(where).to_contain_text("endpoint two")
    finally:
        context.close()
        shown.stop()
        router.close()
        servers.close()


def check_what_the_model_saw(page: Page) -> None:
    """Upload photographs: a digit on ruled paper, which is shown without its lines, and two."""
    digits = mnist_part("t10k", 3).images
    upload = page.get_by_label("Upload a picture of a digit")

    def choose(condition: str) -> None:
        content = photograph(condition, digits, 0)
        upload.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": content})

    choose("ruled, dark")
    expect(page.locator("#digit")).to_have_text("7")
    names = page.locator("#steps figcaption")
    expect(names).to_have_text(["closer", "paper", "contrast", "without lines", "ink"])
    expect(page.locator("#saw figcaption")).to_have_text(["model input"])
    expect(page.locator("#sentence")).not_to_contain_text("Warning")
    seen = page.get_by_role("img", name="model input").evaluate(
        "(canvas) => [canvas.width, ...canvas.getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    assert seen[0] == 28
    shades = np.array(seen[1:], np.uint8).reshape(28, 28, 4)[:, :, 0]
    assert np.corrcoef(shades.ravel(), digits[0].ravel())[0, 1] > 0.6  # turned a little
    choose("two digits")
    expect(page.locator("#sentence")).to_contain_text(f"Warning: {SEVERAL}.")
    expect(page.locator("#digit")).to_have_class(re.compile("anomalous"))


@pytest.mark.prove
def test_the_real_model(
    reproduced: Project, home: Emulator, browser: Browser, tmp_path: Path
) -> None:
    url = f"{home.address['blobs']}/devstoreaccount1"
    with BlobServiceClient(url, credential=home.address["blob_key"]) as service:
        container = service.get_container_client(CONTAINER)
        watch = LiveState(reproduced.root)
        servers = Servers()
        store: Any = SimpleNamespace(client=container, url=url)
        collector = Collector(store, on_lost=watch.lose)
        router = Router(servers, 0, collector.take, watch.request)
        router.endpoints["real"] = keyed("key", {"blue": 100})
        shown = servers.serve(page.application(router, watch, container, SECRET))
        model = reproduced.root / "data" / "package"
        code = serving_code(tmp_path / "code")
        collecting = {"AZUREML_MDC_ENABLED": "true"}
        context = browser.new_context()
        try:
            log = str(tmp_path / "log")
            launch = Launch(str(code), str(model), "score.py", log, collecting, 60.0)
            router.start("real", "blue", launch)
            opened = context.new_page()
            opened.goto(f"http://127.0.0.1:{shown.port}/#secret={SECRET}")
            expect(opened.locator("#health")).to_have_text("live")
            stroke(opened, (140, 40), (140, 240))
            expect(opened.locator("#digit")).to_have_text(re.compile("[0-9]"), timeout=20_000)
            table = opened.get_by_role("table", name="Probabilities")
            expect(table.get_by_role("row")).to_have_count(10 + 1)  # and the head
            check_what_the_model_saw(opened)
            connection = http.client.HTTPConnection("127.0.0.1", router.port)
            sideways = np.rot90(mnist_part("t10k", 500).images, axes=(1, 2))
            for images in (mnist_part("t10k", 600).images, sideways):
                body = json.dumps({"data": images.tolist()})
                headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
                connection.request("POST", "/real/score", body, headers)
                assert connection.getresponse().read()
            connection.close()
            expect(opened.locator("#drift")).to_have_text("yes")
        finally:
            context.close()
            shown.stop()
            router.close()
            servers.close()
