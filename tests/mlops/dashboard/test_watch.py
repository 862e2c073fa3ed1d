"""What the page shows of production: each answer and each label once, within bounds."""

import datetime
import json
import os
import warnings
from pathlib import Path
from typing import Any

import frozen
import numpy as np
import pytest
from blobs import Blobs
from histogram import histograms

from digits.monitoring.drift import Reference

pytestmark = pytest.mark.slow

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.dashboard import watch as module
    from mlops.dashboard.watch import LiveState, last_minute

VERSION = "0123456789ab"
START = datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC)
LIVE = {"blue", "green"}


class Site:
    """A project's folder, what was collected, and what the page shows of it."""

    def __init__(self, root: Path, known: bool = True) -> None:
        self.root, self.blobs = root, Blobs()
        self.seen = LiveState(root)
        self.clock = START
        if known:
            self.write_project()

    def write_project(self, version: str = VERSION) -> None:
        """Write settings and a reference of requests that look known."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (2000, 28, 28), np.uint8)
        sure, foreign = np.full(2000, 0.99), rng.uniform(0, 0.5, 2000)
        known = histograms(images, rng.integers(0, 10, 2000), sure, foreign)
        (self.root / "params.yaml").write_text(frozen.text(), "utf-8")
        path = self.root / "data" / "monitoring" / "reference.json"
        Reference.fit({"mnist": known}, version).write(path)

    def ask(self, name: str, *changes: dict[str, Any], endpoint: str = "e") -> None:
        """Collect a request of one image for each of `changes`, a second after the last."""
        self.clock += datetime.timedelta(seconds=1)
        rows = []
        for change in changes or ({},):
            row: dict[str, Any] = {"digit": "3", "confidence": 0.99, "ood_score": 0.1}
            row |= {"deployment": "blue", "model_version": VERSION, "request_id": name} | change
            rng = np.random.default_rng(int(float(row["ood_score"]) * 1e6))
            row = {"time": self.clock, "image": rng.integers(0, 256, 784, np.uint8).tobytes()} | row
            rows.append(row)
        self.blobs.collect(endpoint, rows)

    def label(self, name: str, digit: str = "3", position: int = 0) -> None:
        """Let the true label of an image come."""
        place = {"request_id": name, "position": position, "time": self.clock}
        self.blobs.label("e", place | {"label": digit, "script": "mnist"})

    def state(self, live: set[str] | None = None, endpoint: str = "e") -> dict[str, Any]:
        """Return what the page shows."""
        asked = LIVE if live is None else live
        return self.seen.state(endpoint, asked, self.blobs)  # type: ignore[arg-type]


@pytest.fixture(name="site")
def a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A project with a reference, whose page looks each time it is asked."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    return Site(tmp_path)


def test_a_request_sent_again_counts_once(site: Site) -> None:
    for _ in range(2):
        site.ask("one", {}, {"digit": "4"})
    state = site.state()
    assert (state["digits"], state["duplicate"]) == (2, 2)
    assert dict(state["classes"]) == dict.fromkeys("0123456789", 0) | {"3": 1, "4": 1}


def test_another_image_under_the_same_id_is_an_answer_of_its_own(site: Site) -> None:
    for foreign in (0.1, 0.2, 0.2):
        site.ask("one", {"ood_score": foreign})
    site.label("one")  # whose image?
    state = site.state()
    assert (state["digits"], state["duplicate"], state["labelled"]) == (2, 1, 0)


def test_a_label_counts_once_and_late_ones_reach_their_window(site: Site) -> None:
    for number in range(501):
        site.ask(str(number))
    site.state()
    for name, digit in (("0", "3"), ("0", "3"), ("1", "4"), ("unknown", "3"), ("500", "3")):
        site.label(name, digit)
    state = site.state()
    full, last = state["windows"]
    assert (full["labelled"], full["accuracy"][0], last["labelled"]) == (2, 0.5, 1)
    assert (last["requests"], state["window"]) == (1, 500)
    assert (state["labelled"], state["accuracy"][0]) == (3, 2 / 3)
    assert state["scripts"]["mnist"][3] == 3


def test_damaged_rows_and_labels_are_counted(site: Site) -> None:
    site.ask("one")
    site.ask("damaged 1", {"confidence": "much"})
    site.ask("damaged 2", {"image": bytes(3)})
    site.ask("damaged 3", {"digit": "no class of ours"})
    site.ask("damaged 4", {"ood_score": 1.5})
    large = {"time": START.isoformat(), "source": "blue", "dataref": "https://a/b"}
    for path, line in (
        ("modelDataCollector/e/blue/model_inputs_outputs", b"{"),
        ("modelDataCollector/e/blue/model_inputs_outputs", json.dumps(large).encode()),
        ("labels/e", b"["),
    ):
        hour = f"{START:%Y/%m/%d/%H}"
        file = f"{hour}.jsonl" if path.startswith("labels") else f"{hour}/local.jsonl"
        site.blobs.append(f"{path}/{file}", line)
    site.label("one", "three")
    site.label("one")
    state = site.state()
    assert (state["digits"], state["corrupted"], state["labelled"]) == (1, 6, 1)
    assert state["elsewhere"] == 1
    assert state["accuracy"][0] == 1
    assert state["monitoring"]["issues"]["corrupted"] == 3
    assert [one["digit"] for one in state["recent"]] == ["3"]


def test_accuracy_is_that_of_the_models_that_answer(site: Site) -> None:
    for deployment, version, digit in (("blue", "old", "4"), ("green", VERSION, "3")):
        for number in range(500):
            change = {"deployment": deployment, "model_version": version, "digit": digit}
            site.ask(f"{version} {number}", change)
        for number in range(10):
            site.label(f"{version} {number}")
        state = site.state({deployment})
        assert state["accuracy"][0] == (digit == "3")
        assert (state["labelled"], state["scripts"]["mnist"][3]) == (10, 10)
        assert dict(state["classes"])[digit] == 500
    for number in range(10, 20):
        site.label(f"old {number}")  # late
    assert site.state({"green"})["labelled"] == 10
    assert site.state(LIVE)["labelled"] == 30
    assert site.state(set())["labelled"] == 10  # nothing is live: what answered last


def test_drift_is_seen_and_ends_with_the_model(site: Site) -> None:
    rng = np.random.default_rng(1)
    for number in range(1000):
        foreign = 0.99 if number % 5 == 0 and number >= 500 else float(rng.uniform(0, 0.5))
        site.ask(str(number), {"digit": str(rng.integers(0, 10)), "ood_score": foreign})
    state = site.state()
    quiet, drift = state["windows"]
    assert not quiet["drift"]
    assert drift["drift"]
    assert drift["ood_share"] > 0.1
    assert drift["estimated"] < quiet["estimated"] - 0.1
    found = state["monitoring"]
    since = datetime.datetime.fromisoformat(found["since"])
    assert since.timestamp() == quiet["ended"] + 1
    assert (found["drift"], found["onset_censored"]) == (True, False)
    assert state["most_anomalous"][0]["ood_score"] == pytest.approx(0.99)
    assert site.state(set())["monitoring"] is None  # nothing is live
    for number in range(1500):
        site.ask(f"new{number}", {"model_version": "another"})
    state = site.state()
    assert (state["windows"], state["monitoring"]) == ([], None)
    assert f"expected answers of model {VERSION}" in state["reason"]
    assert "found another" in state["reason"]


def test_try_outs_are_shown_and_raise_no_alarm(site: Site) -> None:
    for number in range(500):
        site.ask(str(number), {"digit": str(number % 10)})
        site.ask(f"try-{number}", {"digit": str(number % 10), "ood_score": 0.99})
    site.label("try-1", "4")
    state = site.state()
    assert (state["digits"], state["tryouts"], state["labelled"]) == (500, 500, 0)
    assert not state["monitoring"]["drift"]
    faults = state["monitoring"]["issues"]
    assert (faults["tryout"], faults["labels_unmatched"]) == (500, 0)
    assert [one["tryout"] for one in state["recent"][:2]] == [True, False]


def test_an_endpoint_that_was_destroyed_is_forgotten(site: Site) -> None:
    for number in range(500):
        site.ask(str(number), {"digit": str(number % 10), "ood_score": 0.99})
    assert site.state()["monitoring"]["drift"]
    site.blobs.content.clear()
    for _ in range(2):
        state = site.state()
        assert (state["digits"], state["monitoring"], state["recent"]) == (0, None, [])
    site.ask("new")
    assert site.state()["digits"] == 1


def test_settings_that_cannot_be_read_do_not_end_an_alarm(site: Site) -> None:
    def fill(name: str, foreign: float) -> dict[str, Any]:
        for number in range(500):
            site.ask(f"{name} {number}", {"digit": str(number % 10), "ood_score": foreign})
        return site.state()

    drifted = fill("drift", 0.99)["monitoring"]
    path = site.root / "params.yaml"
    text = path.read_text("utf-8")
    path.write_text("", "utf-8")
    state = fill("not judged", 0.99)
    assert state["monitoring"] is None
    assert "No monitoring: " in state["reason"]
    assert dict(state["classes"])["3"] == 50  # is shown nevertheless
    path.write_text(text, "utf-8")
    found = fill("calm", 0.1)["monitoring"]
    assert found["drift"]
    assert found["since"] == drifted["since"]
    assert found["onset_censored"]  # the first window of all drifted


def test_what_is_missing_is_said_and_read_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    site = Site(tmp_path, known=False)
    site.ask("before")
    state = site.state()
    assert "params.yaml: not found" in state["reason"]
    assert (state["digits"], state["recent"]) == (0, [])
    site.write_project()
    state = site.state()
    assert (state["limit"], state["reason"], state["digits"]) == (1000, "", 1)
    assert len(state["expected"]) == 10
    assert state["known_scripts"] == ["mnist", "devanagari", "japanese"]


def test_other_classes_or_images_of_another_size_are_read_anew(site: Site) -> None:
    site.ask("one")
    assert site.state()["digits"] == 1
    path = site.root / "params.yaml"
    text = path.read_text("utf-8")
    path.write_text(text.replace("image_size: 28", "image_size: 16"), "utf-8")
    os.utime(path, ns=(1, 1))
    site.ask("two", {"image": bytes(256)})
    state = site.state()
    assert (state["digits"], state["corrupted"], len(state["recent"])) == (1, 1, 1)
    path.write_text(text, "utf-8")
    assert site.state()["digits"] == 1


def test_windows_that_stayed_are_not_judged_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, verdicts = [], Reference.evaluate_windows

    def counted(self: Reference, windows: np.ndarray, *rest: Any) -> Any:
        judged.append(len(windows))
        return verdicts(self, windows, *rest)

    monkeypatch.setattr(Reference, "evaluate_windows", counted)
    for number in range(1600):
        site.ask(str(number), {"digit": str(number % 10)})
        if number in (1099, 1100):
            site.state()
    site.state()
    early = {"time": START + datetime.timedelta(seconds=600, milliseconds=1)}
    site.ask("late", early)
    site.state()
    assert judged == [3, 1, 2, 3]  # a late row moves those after it


def test_it_looks_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    now = [100.0]
    monkeypatch.setattr("mlops.dashboard.watch.time.monotonic", lambda: now[0])
    digits: list[int] = []
    for seconds in (0.0, 0.9, 0.2):
        site.ask(str(len(digits)))
        now[0] += seconds
        digits.append(site.state()["digits"])
    assert digits == [1, 1, 3]


def test_memory_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REQUESTS": 10, "RECENT": 10, "MAX_ROWS": 20, "ENDPOINTS": 2}.items():
        monkeypatch.setattr(module, name, value)
    for endpoint in ("e", "f", "g"):
        for number in range(30):
            site.seen.request(endpoint, "blue", 200, 0.01)
            site.ask(str(number), endpoint=endpoint)
            site.label(str(number))
        site.state(endpoint=endpoint)
    assert list(site.seen.endpoints) == ["f", "g"]
    last = site.seen.endpoints["g"]
    assert (len(last.requests), len(last.recent)) == (10, 10)
    assert last.monitor
    assert last.monitor.requests.count == 10
    state = site.state()  # of an endpoint that was forgotten: read again
    assert (state["digits"], state["labelled"]) == (10, 10)
    assert site.seen.endpoints["e"].monitor.labels.count == 10  # type: ignore[union-attr]


def test_the_last_minute() -> None:
    now = 1000.5
    requests = [(now - 2, "blue", 200, 0.01), (now - 2, "green", 502, 0.03), (now - 1, "", 404, 0)]
    found = last_minute([(float(t), name, code, s) for t, name, code, s in requests], now)
    assert found["statuses"] == {"200": 1, "404": 1, "502": 1}
    assert found["deployments"]["green"] == {
        "requests": 1,
        "failed": 1,
        "median_ms": 30.0,
        "p99_ms": 30.0,
    }
    assert found["seconds"][-2]["deployments"] == {"blue": 1, "green": 1}
    assert len(found["seconds"]) == 60
    assert last_minute([], now)["median_ms"] is None
