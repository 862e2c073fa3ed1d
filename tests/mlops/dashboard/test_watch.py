"""What the page remembers: within bounds, each answer and each label once."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from core import params
from digits.monitoring.drift import Reference
from digits.monitoring.histograms import Summary
from mlops.dashboard import page
from mlops.dashboard import watch as module
from mlops.dashboard.detector import Detector
from mlops.dashboard.watch import Watch, last_minute

VERSION = "0123456789ab"


def row(digit: str = "3", foreign: float = 0.1, version: str = VERSION) -> dict[str, Any]:
    """Return one collected row."""
    image = np.random.default_rng(int(foreign * 1e6)).integers(0, 256, (28, 28), np.uint8)
    answer = {"digit": digit, "confidence": 0.99, "foreign": foreign}
    return {"image": base64.b64encode(image.tobytes()).decode(), "model_version": version} | answer


def label(request: str, digit: str = "3", position: int = 0) -> bytes:
    """Return one line of labels."""
    place = {"time": "2026-01-05T00:00:00Z", "request_id": request, "position": position}
    return json.dumps(place | {"label": digit, "script": "mnist"}).encode()


def watch(folder: Path) -> Watch:
    """Return a watch whose project has a reference."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2000, 28, 28), np.uint8)
    sure, foreign = np.full(2000, 0.99), rng.uniform(0, 0.5, 2000)
    known = Summary.of(images, rng.integers(0, 10, 2000), sure, foreign, 10)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text("utf-8"), "utf-8")
    Reference.fit({"mnist": known}, VERSION).write(
        folder / "data" / "monitoring" / "reference.json"
    )
    return Watch(Detector(folder))


def test_a_request_sent_again_counts_once(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    for _ in range(2):
        seen.rows("e", "blue", "one", [row(), row("4")])
    state = seen.state("e")
    assert (state["digits"], state["doubled"]) == (2, 2)
    assert state["classes"] == {"3": 1, "4": 1}


def test_another_image_under_the_same_id_is_an_answer_of_its_own(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    for foreign in (0.1, 0.2, 0.2):
        seen.rows("e", "blue", "one", [row(foreign=foreign)])
    seen.labels("e", [label("one")])  # whose image?
    state = seen.state("e")
    assert (state["digits"], state["doubled"], state["labelled"]) == (2, 1, 0)


def test_a_label_counts_once_and_late_ones_reach_their_window(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    for number in range(500):
        seen.rows("e", "blue", str(number), [row()])
    seen.rows("e", "blue", "500", [row()])
    seen.labels("e", [label("0"), label("0"), label("1", "4"), label("unknown"), label("500")])
    state = seen.state("e")
    (window,) = state["windows"]
    assert (window["labelled"], window["right"]) == (2, 1)
    assert (state["labelled"], state["accuracy"][0]) == (3, 2 / 3)
    assert state["scripts"]["mnist"][3] == 3


def test_damaged_rows_and_labels_are_counted(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    broken: list[Any] = [row() | {"confidence": "much"}, {"image": "%"}, None, row()]
    broken += [row() | {"image": "AAAA"}, row("no class of ours"), row(foreign=1.5)]
    seen.rows("e", "blue", "one", broken)
    seen.labels("e", [b"{", b"[]", label("one", "three", 3), label("one", position=3)])
    state = seen.state("e")
    assert (state["digits"], state["damaged"], state["labelled"]) == (1, 9, 1)
    assert state["accuracy"][0] == 1


def test_accuracy_is_that_of_the_models_that_answer(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    for version, digit in (("old", "4"), (VERSION, "3")):
        for number in range(500):
            seen.rows("e", version, f"{version} {number}", [row(digit, version=version)])
        seen.labels("e", [label(f"{version} {number}") for number in range(10)])
        state = seen.state("e")
        assert state["accuracy"][0] == (digit == "3")
        assert (state["labelled"], state["scripts"]["mnist"][3]) == (10, 10)
    seen.labels("e", [label(f"old {number}") for number in range(10, 20)])  # late
    assert seen.state("e")["labelled"] == 10


def test_drift_is_seen_and_ends_with_the_model(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    rng = np.random.default_rng(1)
    for number in range(1000):
        foreign = 0.99 if number % 5 == 0 and number >= 500 else float(rng.uniform(0, 0.5))
        digit = str(rng.integers(0, 10))
        seen.rows("e", "blue", str(number), [row(digit, foreign)])
    quiet, drift = seen.state("e")["windows"]
    assert not quiet["verdict"]["drift"]
    assert drift["verdict"]["drift"]
    assert drift["strangers"] > 0.1
    assert drift["estimated"] < quiet["estimated"] - 0.1
    assert drift["since"] >= quiet["ended"] - 1e-3
    assert not drift["at_least"]
    for number in range(500):
        seen.rows("e", "blue", f"new{number}", [row(version="another")])
    assert seen.state("e")["windows"][-1]["verdict"] is None
    assert "the reference is of model 0123" in seen.detector.why_not("another")


def test_a_model_that_still_runs_is_judged_by_its_own_reference(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    seen.state("e")
    path = tmp_path / "data" / "monitoring" / "reference.json"
    old = Reference.read(path)
    Reference.fit({"mnist": old.summary + old.summary}, "another").write(path)
    for number in range(500):
        seen.rows("e", "blue", str(number), [row()])
        seen.rows("e", "green", str(number), [row(version="another")])
    assert all(window["verdict"] for window in seen.state("e")["windows"])
    assert len(seen.state("e")["expected"]) == 10


def test_a_window_without_a_verdict_does_not_end_an_alarm(tmp_path: Path) -> None:
    seen = watch(tmp_path)

    def fill(name: str, foreign: float) -> list[dict[str, Any]]:
        for number in range(500):
            seen.rows("e", "blue", f"{name} {number}", [row(str(number % 10), foreign)])
        windows: list[dict[str, Any]] = seen.state("e")["windows"]
        return windows

    drifted = page.latest(fill("drift", 0.99), {"blue"})
    path = tmp_path / "params.yaml"
    text = path.read_text("utf-8")
    path.write_text("", "utf-8")
    windows = fill("not judged", 0.99)
    assert windows[-1]["verdict"] is None
    assert page.latest(windows, {"blue"}) == drifted
    path.write_text(text, "utf-8")
    first, _, last = fill("calm", 0.1)
    assert first["verdict"]["drift"]
    assert last["verdict"]["drift"]
    assert last["since"] == first["since"]
    assert last["at_least"]  # the first window of all drifted


def test_a_file_that_changed_is_known_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(tmp_path)
    load, during = params.load, []

    def slow(path: Path) -> Any:
        during.append((seen.detector.lock.locked(), seen.detector.stamp))
        return load(path)

    monkeypatch.setattr(params, "load", slow)
    seen.detector.refresh()
    assert during == [(True, [])]  # another thread waits, since the stamp is the last to change
    assert seen.detector.stamp


def test_what_is_missing_is_said_and_read_when_it_comes(tmp_path: Path) -> None:
    seen = Watch(Detector(tmp_path))
    seen.state("e")
    assert "params.yaml: not found" in seen.detector.why_not("")
    watch(tmp_path)
    assert seen.state("e")["limit"] == 1000
    assert seen.detector.why_not(VERSION) == ""


def test_windows_of_a_release_that_is_over_are_not_shown(tmp_path: Path) -> None:
    seen = watch(tmp_path)

    def ask(deployment: str, count: int, version: str = VERSION) -> list[tuple[str, int]]:
        for number in range(count):
            seen.request("e", deployment, 200, 0.01)
            name = f"{deployment} {version} {number}"
            seen.rows("e", deployment, name, [row(version=version)])
        found = seen.state("e")
        shown = [(one["deployment"], one["digits"]) for one in found["filling"]]
        assert found["classes"]["3"] == sum(digits for _, digits in shown)
        return shown

    assert ask("blue", 3) == [("blue", 3)]
    assert ask("green", 5) == [("blue", 3), ("green", 5)]  # both are live
    assert ask("green", 2, "another") == [("blue", 3), ("green", 2)]
    requests = seen.endpoints["e"].requests
    old = [(at - module.MINUTE, *rest) for at, *rest in requests if rest[0] == "blue"]
    requests.clear()
    requests.extend(old)  # type: ignore[arg-type]
    assert ask("green", 1, "another2") == [("green", 1)]
    requests.clear()
    assert ask("green", 0) == [("green", 1)]  # nothing comes: the one that was filled last


def test_each_endpoint_gets_its_labels() -> None:
    class Container:
        """Two endpoints' labels."""

        def list_blobs(self, name_starts_with: str, **_: Any) -> list[Any]:
            return [SimpleNamespace(name=f"{name_starts_with}2026/01/05/00.jsonl", size=3)]

        def download_blob(self, name: str, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(readall=lambda: f"{name.split('/')[1]}\n\n".encode())

    labels = module.Labels(Container())  # type: ignore[arg-type]
    assert [labels.fresh(name)[0] for name in ("e", "f")] == [b"e", b"f"]
    assert labels.fresh("e") == []  # within a second
    assert labels.fresh("") == []


def test_memory_is_bounded(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("REQUESTS", "AWAITED", "RECENT", "SCRIPTS"):
        monkeypatch.setattr(module, name, 10)
    monkeypatch.setattr(module, "ENDPOINTS", 2)
    monkeypatch.setattr(module, "FILLING", 2)
    seen = watch(tmp_path)
    for endpoint in ("e", "f", "g"):
        for number in range(30):
            seen.request(endpoint, "blue", 200, 0.01)
            seen.rows(endpoint, f"revision {number // 5}", str(number), [row(version=f"{number}")])
            seen.labels(endpoint, [label(str(number))])
    assert list(seen.endpoints) == ["f", "g"]
    last = seen.endpoints["g"]
    assert (len(last.requests), len(last.answers), len(last.recent)) == (10, 10, 10)
    assert (last.digits, len(last.scripts)) == (30, 10)
    assert list(last.filling) == [("revision 5", "28"), ("revision 5", "29")]


def test_the_last_minute() -> None:
    now = 1000.5
    requests = [(now - 2, "blue", 200, 0.01), (now - 2, "green", 502, 0.03), (now - 1, "", 404, 0)]
    told = last_minute([(float(t), name, code, s) for t, name, code, s in requests], now)
    assert told["statuses"] == {"200": 1, "404": 1, "502": 1}
    assert told["deployments"]["green"] == {
        "requests": 1,
        "failed": 1,
        "median_ms": 30.0,
        "p99_ms": 30.0,
    }
    assert told["seconds"][-2]["deployments"] == {"blue": 1, "green": 1}
    assert len(told["seconds"]) == 60
    assert last_minute([], now)["median_ms"] is None
