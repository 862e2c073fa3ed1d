"""Sending: nothing lost and nothing counted twice, whatever the endpoint does."""

import asyncio
import json
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frozen
import numpy as np
import pytest
from azure.core.exceptions import ServiceRequestError
from conftest import random_digits

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from mlops.azure import collected
    from mlops.azure.endpoint import Target
    from mlops.azure.settings import load
    from mlops.cli import call
    from mlops.production import sender, simulate
from core import params
from core.errors import DigitsError
from digits.production.traffic import NEVER, Pool, Schedule, Stream

CLASSES = tuple("0123456789")
POOL = random_digits(200)
TRUTH = {image.tobytes(): int(label) for image, label in zip(POOL.images, POOL.labels, strict=True)}
Fault = Callable[[str, int], int]  # of a request's id and how often it came: 0 none, or a status


def stream(hours: float = 1.0, requests: int = 200) -> Stream:
    """Return some requests, half of which get a label."""
    phase = {"name": "quiet", "hours": hours, "share": {}, "noise": None}
    phase["requests_an_hour"] = requests / hours
    whole = {"start": "2026-01-05T00:00:00Z", "labelled_share": 0.5, "label_delay_hours": 0.5}
    plan = params.section(Schedule, {"simulate": whole | {"phases": [phase]}}, "simulate")
    return Stream(Pool([POOL], plan, 1), plan, 1)


class Endpoint(ThreadingHTTPServer):
    """An endpoint that counts the requests it has worked on by id, and fails as it is told to."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        """Listen on loopback."""
        self.came: Counter[str] = Counter()
        self.worked: Counter[str] = Counter()
        self.key = "first"
        self.model_status = "500"  # of a 424
        self.retry_after = ""  # of a 429
        self.fault: Fault = lambda name, time: 0
        self.each: Callable[[], None] = lambda: None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                endpoint.do(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""

    def do(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        name = request.headers["x-ms-client-request-id"]
        self.came[name] += 1
        status = self.fault(name, self.came[name])
        if request.headers["Authorization"] != f"Bearer {self.key}":
            status = 401
        answer: dict[str, Any] = {"message": "no"}
        if status in (0, LOST):
            self.worked[name] += 1
            image = np.array(body["data"][0], np.uint8)
            answer = {"predictions": [{"digit": str(TRUTH[image.tobytes()])}]}
        self.each()
        if status == LOST:
            request.close_connection = True
            return
        text = json.dumps(answer).encode()
        request.send_response(status or 200)
        if status == 424:
            request.send_header("ms-azureml-model-error-statuscode", self.model_status)
        if status == 429 and self.retry_after:
            request.send_header("Retry-After", self.retry_after)
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)


LOST = -1  # the request is worked on, but the connection breaks before the answer


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An endpoint; pauses between tries are short."""
    monkeypatch.setattr(sender, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(sender, "LONGEST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(sender, "TICK_SECONDS", 0.01)
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The labels that are written."""
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(collected, "append_labels", lambda _, __, rows: written.extend(rows))
    return written


def run(
    endpoint: Endpoint, requests: Stream, reached: sender.Checkpoint | None = None, **more: Any
) -> sender.Run:
    """Return a run that is to send requests to an endpoint."""

    def authorise() -> dict[str, str]:
        url = f"http://127.0.0.1:{endpoint.server_port}/digits/score"
        return {"url": url, "Authorization": f"Bearer {endpoint.key}"}

    settings = SimpleNamespace(request_timeout_seconds=5.0)
    target: Any = SimpleNamespace(
        name="digits", container=None, settings=settings, authorise=authorise
    )
    fresh = sender.Checkpoint("run", simulate.digest(requests), 0, len(requests), 0)
    begin, speed = reached or fresh, more.get("speed")
    return sender.Run(
        requests,
        CLASSES,
        target,
        begin,
        speed,
        lambda rows: collected.append_labels(target.container, target.name, rows),
    )


def check(whole: Stream, server: Endpoint, ran: sender.Run, labels: list[dict[str, Any]]) -> None:
    """Check that each request was answered once, and that each label was written once."""
    ids = [f"run-{name}" for name in whole.part(0, len(whole)).ids]
    assert set(server.came) == set(ids)
    assert ran.reached.answered == {"mnist": len(whole)} == ran.reached.right
    told = {ids[number] for number in np.flatnonzero(whole.label_times != NEVER)}
    assert len(labels) == len(told) == ran.reached.labels_written
    assert {row["request_id"] for row in labels} == told


def test_every_fault_is_tried_again_under_the_same_id(
    endpoint: Endpoint,
    labels: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults = [LOST, 503, 429, 424, 408, 404, 502, 0]

    def fault(name: str, time: int) -> int:
        return faults[int(name[-4:], 16) % 8] if time <= 2 else 0

    endpoint.fault = fault
    whole = stream()
    ran = run(endpoint, whole)
    asyncio.run(ran.go(tmp_path / "reached.json", 8))
    check(whole, endpoint, ran, labels)
    extra = sum(count - 1 for count in endpoint.came.values())
    assert ran.reached.retried == extra > 100
    assert 0 < ran.reached.busy < extra
    ran.report()
    assert f"{ran.reached.busy:,} answers 429" in capsys.readouterr().out
    assert max(endpoint.worked.values()) == 3  # which one id lets a reader see


def test_a_429_is_sent_again_after_the_time_that_it_names(
    endpoint: Endpoint, labels: list[dict[str, Any]], tmp_path: Path
) -> None:
    endpoint.fault = lambda name, time: 429 if time == 1 and int(name[-4:], 16) % 8 == 0 else 0
    endpoint.retry_after = "7"
    whole, waited = stream(), []
    ran = run(endpoint, whole)

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    ran.pause = pause  # type: ignore[method-assign]
    asyncio.run(ran.go(tmp_path / "reached.json", 8))
    assert waited == [7.0] * ran.reached.busy
    assert waited


def test_ctrl_c_keeps_what_was_answered_and_resume_goes_on(
    endpoint: Endpoint, labels: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = stream()

    stops = [40, 90, 150]

    def each() -> None:  # connections may add to the count at once, so it may pass over a number
        if stops and sum(endpoint.came.values()) >= stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGINT)

    endpoint.each = each
    path = tmp_path / "reached.json"
    reached = None
    for _ in range(3):
        ran = run(endpoint, whole, reached)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(ran.go(path, 4))
        asked = SimpleNamespace(resume=True)
        reached = simulate.reached(path, asked, whole)
        assert reached.count == sum(endpoint.worked.values())
    endpoint.each = lambda: None
    ran = run(endpoint, whole, reached)
    asyncio.run(ran.go(path, 4))
    check(whole, endpoint, ran, labels)
    assert set(endpoint.came.values()) == {1}


def test_a_killed_run_goes_on_and_its_doubles_have_one_id(
    endpoint: Endpoint, labels: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = stream()
    ran = run(endpoint, whole)
    path = tmp_path / "reached.json"
    ran.save(path)  # and nothing after that, although 200 are answered
    asyncio.run(ran.go(tmp_path / "lost.json", 4))
    labels.clear()
    again = run(endpoint, whole, simulate.reached(path, SimpleNamespace(resume=True), whole))
    asyncio.run(again.go(path, 4))
    check(whole, endpoint, again, labels)
    assert set(endpoint.worked.values()) == {2}


def test_an_endpoint_that_is_down_is_waited_for_and_told(
    endpoint: Endpoint,
    labels: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sender, "TOLD_SECONDS", 0.1)
    whole = stream()
    down = threading.Event()

    def fault(name: str, time: int) -> int:
        if len(endpoint.worked) == 100:
            down.set()
        return 503 if down.is_set() else 0

    endpoint.fault = fault
    ran = run(endpoint, whole)
    failures: list[BaseException] = []

    def mend() -> None:
        end = time.monotonic() + 20
        while not (ran.gap and ran.reached.retried > 20):
            if time.monotonic() > end:
                failures.append(TimeoutError())
                break
            time.sleep(0.01)
        endpoint.fault = lambda name, time: 0

    mender = threading.Thread(target=mend)
    mender.start()
    asyncio.run(ran.go(tmp_path / "reached.json", 4))
    mender.join()
    assert not failures
    check(whole, endpoint, ran, labels)
    told = capsys.readouterr().out.splitlines()
    assert "UTC: no answer for" in told[0]
    assert "503" in told[0]
    assert "UTC: answers are back after" in told[1]
    assert len(told) == 2


def test_without_any_answer_it_stops_in_the_end(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.2)
    endpoint.fault = lambda name, time: 503
    ran = run(endpoint, stream())
    with pytest.raises(DigitsError, match=r"gave no answer for .* continue with --resume"):
        asyncio.run(ran.go(tmp_path / "reached.json", 2))
    assert (tmp_path / "reached.json").exists()


def test_what_is_refused_is_counted_and_gets_no_label(
    endpoint: Endpoint,
    labels: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sender, "FAILED_SECONDS", 0.1)  # of the last ones, which are alone
    whole = stream()
    ids = [f"run-{name}" for name in whole.part(0, 200).ids]
    endpoint.model_status = "413"
    bad = {name: 424 if place % 20 else 500 for place, name in enumerate(ids) if place % 10 == 0}
    endpoint.fault = lambda name, time: bad.get(name, 0)
    ran = run(endpoint, whole)
    asyncio.run(ran.go(tmp_path / "reached.json", 1))
    assert ran.reached.answered == {"mnist": 180}
    assert sorted(ran.reached.refused) == list(range(0, 200, 10))
    assert {name for name in ids if endpoint.came[name] > 1} <= {
        name for name, status in bad.items() if status == 500
    }
    assert not {row["request_id"] for row in labels} & set(bad)
    ran.report()
    said = capsys.readouterr().out
    assert "is refused: 500" in said or "is refused: 413" in said
    assert "answered 180" in said
    assert "20 rejected" in said


def test_an_endpoint_that_refuses_everything_stops_it(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda name, time: 400
    with pytest.raises(DigitsError, match="refuses every request: 400"):
        asyncio.run(run(endpoint, stream()).go(tmp_path / "reached.json", 2))


def test_a_new_key_is_fetched_and_a_wrong_one_told(
    endpoint: Endpoint, labels: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = stream()
    ran = run(endpoint, whole)

    def each() -> None:
        if sum(endpoint.came.values()) == 50:
            endpoint.key = "second"

    endpoint.each = each
    asyncio.run(ran.go(tmp_path / "reached.json", 4))
    check(whole, endpoint, ran, labels)
    wrong: Any = run(endpoint, whole)
    wrong.target = SimpleNamespace(**vars(wrong.target) | {"authorise": lambda: wrong.headers})
    endpoint.key = "third"
    with pytest.raises(DigitsError, match="does not accept the key"):
        asyncio.run(wrong.go(tmp_path / "reached.json", 4))


def test_a_store_that_takes_no_labels_for_a_while_gets_them_all(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "SAVE_SECONDS", 0.01)
    written: list[dict[str, Any]] = []
    calls = Counter[str]()

    def append(workspace: Any, name: str, rows: list[dict[str, Any]]) -> None:
        calls["all"] += 1
        if calls["all"] <= 3:
            raise ServiceRequestError("the store is down")
        written.extend(rows)

    monkeypatch.setattr(collected, "append_labels", append)
    whole = stream()
    ran = run(endpoint, whole)
    asyncio.run(ran.go(tmp_path / "reached.json", 4))
    check(whole, endpoint, ran, written)


def test_a_part_of_the_stream_gets_the_labels_of_that_part(
    endpoint: Endpoint, labels: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = stream()
    ran = run(endpoint, whole, sender.Checkpoint("run", "", 50, 120, 50))
    asyncio.run(ran.go(tmp_path / "reached.json", 4))
    part = whole.part(50, 120)
    assert set(endpoint.came) == {f"run-{name}" for name in part.ids}
    told = {f"run-{part.ids[n - 50]}" for n in whole.known_labels() if 50 <= n < 120}
    assert {row["request_id"] for row in labels} == told
    assert len(labels) == len(told)


def test_the_pace_is_the_storys(
    endpoint: Endpoint, labels: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = stream(hours=1.0, requests=60)
    ran = run(endpoint, whole, speed=3600.0)
    began = time.monotonic()
    asyncio.run(ran.go(tmp_path / "reached.json", 2))
    story = (whole.times[-1] - whole.times[0]) / HOUR_MS
    assert story <= time.monotonic() - began < story + 5
    check(whole, endpoint, ran, labels)


HOUR_MS = 3_600_000


def test_a_label_waits_for_its_time_and_its_request(
    endpoint: Endpoint, labels: list[dict[str, Any]]
) -> None:
    whole = stream()
    ran = run(endpoint, whole)
    first = int(ran.labels[0])
    due = int(whole.label_times[first])
    assert asyncio.run(ran.write_labels(due))  # due, but its request is not answered yet
    assert labels == []
    ran.answered(first, b'{"predictions": [{"digit": "0"}]}')
    assert asyncio.run(ran.write_labels(due - 1))
    assert labels == []
    assert asyncio.run(ran.write_labels(due))
    (row,) = labels
    assert set(row) == {"time", "request_id", "position", "label", "script"}
    assert row["label"] == str(whole.truth(np.array([first]))[0][0])


def test_resume_wants_a_run_of_the_same_stream(tmp_path: Path) -> None:
    path, asked = tmp_path / "reached.json", SimpleNamespace(resume=True)
    whole = stream()
    with pytest.raises(DigitsError, match="no run to continue"):
        simulate.reached(path, asked, whole)
    path.write_text("{}")
    with pytest.raises(DigitsError, match="no run to continue"):
        simulate.reached(path, asked, whole)
    old = sender.Checkpoint("run", simulate.digest(stream(requests=100)), 0, 100, 0)
    path.write_text(json.dumps(vars(old)))
    with pytest.raises(DigitsError, match=r"params\.yaml or the pool has changed"):
        simulate.reached(path, asked, whole)


def test_connections_are_as_many_as_the_deployments_settings_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the concurrent requests of all instances, of the deployment that takes fewest."""
    deployments = [
        SimpleNamespace(
            name=name,
            instance_count=instances,
            request_settings=SimpleNamespace(max_concurrent_requests_per_instance=at_a_time),
        )
        for name, instances, at_a_time in (("blue", 2, 3), ("green", 5, 1), ("idle", 1, 1))
    ]
    target = object.__new__(Target)
    target.name = "digits"
    target.client = SimpleNamespace(  # type: ignore[assignment]
        online_deployments=SimpleNamespace(list=lambda name: deployments)
    )
    traffic = {"blue": 90, "green": 10, "idle": 0}
    monkeypatch.setattr(target, "get", lambda: SimpleNamespace(traffic=traffic))
    assert target.concurrency() == 2 * 5
    traffic["green"] = 0
    assert target.concurrency() == 2 * 2 * 3

    settings = replace(load(), requests_at_a_time=3, instance_count=4)
    address = sender.Address("https://a/score", tmp_path / "key", settings)
    assert address.concurrency() == 2 * 3 * 4

    used: list[int] = []

    async def go(run: sender.Run, path: Path, concurrency: int) -> None:
        used.append(concurrency)
        path.touch()

    (tmp_path / "key").write_text("key")
    (tmp_path / "params.yaml").write_text(frozen.text(), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulate, "read", lambda *_: stream())
    monkeypatch.setattr(sender.Run, "go", go)
    url = ("--url", "https://a/score", "--key-file", "key", "--speed", "max")
    call("simulate", *url)
    call("simulate", *url, "--concurrency", "5")
    own = load()
    assert used == [2 * own.requests_at_a_time * own.instance_count, 5]
