"""`digits monitor` on a workspace: what was collected, labels, damaged lines, other models."""

import base64
import contextlib
import datetime
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import frozen
import numpy as np
import pytest
from histogram import histograms
from light import Emulator

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.azure import collected
    from mlops.azure.workspace import Workspace, connect, store
from core.dataset import read_csv
from core.errors import DigitsError
from digits.monitoring.drift import Reference
from mlops.cli import call

pytestmark = pytest.mark.slow

START = datetime.datetime(2026, 1, 5, 10, tzinfo=datetime.UTC)
ENDPOINT = "digits-test"
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 28, 28), np.uint8)


def line(number: int, foreign: float, **changes: Any) -> bytes:
    """Return what the collector writes for one request."""
    row = {
        "request_id": f"id-{number}",
        "position": 0,
        "image": base64.b64encode(IMAGES[number % 50].tobytes()).decode(),
        "model_version": "v1",
        "digit": str(number % 10),
        "confidence": 1 - foreign / 2,
        "ood_score": foreign,
        "probabilities": [0.1] * 10,
    }
    time = changes.pop("time", START + datetime.timedelta(seconds=number))
    event = {
        "source": f"/onlineEndpoints/{ENDPOINT}/deployments/blue",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "data": [row | changes],
    }
    return json.dumps(event).encode()


@dataclass(frozen=True)
class Site:
    """A project's folder and a workspace with an endpoint's name of its own."""

    root: Path
    workspace: Workspace

    def collect(
        self, endpoint: str, hour: str, lines: list[bytes], day: datetime.datetime = START
    ) -> None:
        """Put lines where the collector puts them."""
        hour = f"{day:%Y/%m/%d}/{hour}"
        path = f"modelDataCollector/{endpoint}/blue/model_inputs_outputs/{hour}/x.jsonl"
        store(self.workspace).upload_blob(path, b"\n".join(lines), overwrite=True)

    def monitor(self, endpoint: str, *arguments: str) -> tuple[dict[str, Any], str]:
        """Run `digits monitor`; return monitoring.json and what it printed."""
        said, before = io.StringIO(), Path.cwd()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            os.chdir(self.root)
            try:
                command = ["--workspace", "local", "--endpoint", endpoint, "--out", "out"]
                call("monitor", *command, *arguments)
            finally:
                os.chdir(before)
        return json.loads((self.root / "out" / "monitoring.json").read_text()), said.getvalue()


@pytest.fixture(name="site", scope="module")
def a_site(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A project with a reference of requests that look known."""
    root = tmp_path_factory.mktemp("site")
    (root / ".emulator").symlink_to(emulator.folder)
    (root / "params.yaml").write_text(frozen.text(), "utf-8")
    foreign = RNG.beta(2, 20, 4000)
    numbers = np.arange(4000)
    counts = histograms(IMAGES[numbers % 50], numbers % 10, 1 - foreign / 2, foreign)
    Reference.fit({"mnist": counts}, "v1").write(root / "data" / "monitoring" / "reference.json")
    with warnings.catch_warnings(), patch.dict(os.environ):
        warnings.simplefilter("ignore")
        yield Site(root, connect("local", emulator.folder))


def test_the_clock_of_this_machine_may_be_a_day_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.collect("digits-behind", "10", [line(n, 0.1) for n in range(50)])
    yesterday = (START - datetime.timedelta(days=1)).timestamp()
    monkeypatch.setattr("mlops.production.monitor.time.time", lambda: yesterday)
    told, said = site.monitor("digits-behind")
    assert told["requests"] == 0
    assert "50 requests omitted: their clock or the local one is wrong" in said
    assert "not known whether there is drift; 0 requests" in said
    assert "no drift" not in said


def test_drift_is_told_with_its_time_and_digits_are_brought_home(site: Site) -> None:
    lines = [line(n, float(RNG.beta(2, 20))) for n in range(1000)]
    lines += [line(n, float(RNG.beta(6, 3))) for n in range(1000, 2000)]
    broken = [b"{", b"[]", line(5, 0.1)[:-30], line(2001, 0.1, image="AA=="), line(7, 0.1)]
    large = json.loads(line(2003, 0.1)) | {"data": None, "dataref": "https://a/b"}
    strange = [line(2002, 0.1, model_version="v0"), json.dumps(large).encode()]
    site.collect(ENDPOINT, "10", [*lines, *broken, *strange, b""])
    late = START + datetime.timedelta(hours=30)
    known = [
        {"time": late, "request_id": f"id-{n}", "position": 0, "label": str(n % 10)}
        | {"script": "devanagari" if n >= 1000 else "mnist"}
        for n in range(0, 2000, 4)
    ]
    known.append(known[0] | {"script": "../elsewhere", "request_id": "id-1"})
    collected.append_labels(store(site.workspace), ENDPOINT, known)
    collected.append_labels(store(site.workspace), ENDPOINT, known[:10])  # again, after a failure

    begun = datetime.datetime.now(datetime.UTC)
    labelled = site.root / "labelled"
    told, said = site.monitor(ENDPOINT, "--labelled", str(labelled))
    assert told["drift"]
    assert (told["since"], told["onset_censored"]) == ("2026-01-05T10:16:40Z", False)
    (gap,) = told["gaps"]  # none have come since
    assert gap[0] == "2026-01-05T10:33:19Z"
    assert begun <= datetime.datetime.fromisoformat(gap[1]) + datetime.timedelta(seconds=1)
    assert (told["windows"], told["requests"], told["alarms"]) == (4, 2000, 1)
    assert told["recent_requests"] == 500
    assert (told["contributing_signals"][0], told["action"]) == ("ood_confidence", "retrain")
    assert told["accuracy"] == 1
    faults = {name: count for name, count in told["issues"].items() if count}
    assert faults == {
        "corrupted": 1,
        "duplicate": 1,
        "other_model": 1,
        "lines_corrupted": 3,
        "lines_stored_elsewhere": 1,
        "labels_duplicate": 10,
    }
    assert "drift since 2026-01-05T10:16:40Z" in said
    assert "not counted: " in said and "its rows are stored elsewhere" in said
    page = (site.root / "out" / "report.html").read_text()
    assert "<!doctype html>" in page
    assert "<li>1 lines whose rows the collector stored elsewhere" in page
    assert not [name for name in told["issues"] if f" {name}</li>" in page]  # all have words
    names = {path.name for path in labelled.iterdir()}
    assert names == {"devanagari_20260106.csv", "mnist_20260106.csv"}
    digits = read_csv(labelled / "mnist_20260106.csv", 28, 10, "mnist")
    assert len(digits) == 25  # of fifty images, each asked for again and again
    before = {path: path.read_bytes() for path in labelled.iterdir()}
    site.monitor(ENDPOINT, "--labelled", str(labelled))
    assert before == {path: path.read_bytes() for path in labelled.iterdir()}
    for path in before:
        path.rename(path.with_name(path.name.replace("20260106", "20260101")))
    site.monitor(ENDPOINT, "--labelled", str(labelled))
    assert len(list(labelled.iterdir())) == 2  # what other files hold is not written again
    told, said = site.monitor(ENDPOINT, "--since", "2026-01-05T10:20:00Z")
    assert told["onset_censored"]
    assert "drift at least since 2026-01-05T10:20:00Z" in said


def test_labels_of_merged_requests_are_joined_by_request_and_position(site: Site) -> None:
    """Azure's collector writes requests that come together as one line with the first one's id."""
    endpoint = "digits-merged"
    events = [json.loads(line(n, 0.1)) for n in range(300)]
    rows = [event["data"][0] for event in events]
    for number, row in enumerate(rows):  # two requests of two digits and of one, again and again
        row |= {"request_id": f"id-{number - (number % 3 == 1)}", "position": int(number % 3 == 1)}
    merged = [
        events[n] | {"xrequestid": f"id-{n}", "data": rows[n : n + 3]} for n in range(0, 300, 3)
    ]
    site.collect(endpoint, "10", [json.dumps(one).encode() for one in merged])
    known = [
        {"time": START, "script": "mnist"}
        | {name: row[name] for name in ("request_id", "position")}
        # Of each line the second digit of the first request was answered wrongly.
        | {"label": str((number + (number % 3 == 1)) % 10)}
        for number, row in enumerate(rows)
    ]
    collected.append_labels(store(site.workspace), endpoint, known)
    told, _ = site.monitor(endpoint)
    assert told["requests"] == 300
    assert told["accuracy"] == pytest.approx(2 / 3)


def test_requests_since_an_hour(site: Site) -> None:
    endpoint = "digits-since"
    site.collect(endpoint, "09", [line(n, 0.1) for n in range(300)] + [b""])
    site.collect(endpoint, "11", [line(n, 0.1) for n in range(3600, 3800)] + [b""])
    assert site.monitor(endpoint)[0]["requests"] == 500
    assert site.monitor(endpoint, "--since", "2026-01-05T11:00:00Z")[0]["requests"] == 200


def test_a_line_that_is_still_being_written_waits(site: Site) -> None:
    now = datetime.datetime.now(datetime.UTC)
    soon = now + datetime.timedelta(hours=1)
    lines = [line(number, 0.1, time=now) for number in range(2)]
    site.collect("digits-writing", f"{soon:%H}", lines, soon)
    told, _ = site.monitor("digits-writing")
    assert told["requests"] == 1
    assert not any(told["issues"].values())


def test_a_clock_that_was_reset_stretches_nothing(site: Site) -> None:
    reset = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    lines = [line(n, float(RNG.beta(6, 3))) for n in range(600)]
    site.collect("digits-reset", "10", [*lines, line(999, 0.9, time=reset), b""])
    told, _ = site.monitor("digits-reset")
    assert (told["since"], told["requests"]) == ("2026-01-05T10:00:00Z", 600)
    assert [start for start, _ in told["gaps"]] == ["2026-01-05T10:09:59Z"]  # until now
    assert told["issues"]["wrong_clock"] == 1
    page = (site.root / "out" / "report.html").read_text()
    assert "1970" not in page
    assert "1 rows with a wrong time" in page


def test_a_label_of_a_clock_that_is_ahead_names_no_file_of_the_future(site: Site) -> None:
    site.collect("ahead", "10", [line(1, 0.1)])
    ahead = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)
    known = {"time": ahead, "request_id": "id-1", "position": 0, "label": "1", "script": "mnist"}
    collected.append_labels(store(site.workspace), "ahead", [known])
    labelled = site.root / "ahead"
    before = datetime.datetime.now(datetime.UTC)
    site.monitor("ahead", "--labelled", str(labelled))
    days = {f"mnist_{day:%Y%m%d}.csv" for day in (before, datetime.datetime.now(datetime.UTC))}
    assert {path.name for path in labelled.iterdir()} <= days


def test_nothing_collected_is_no_drift(site: Site) -> None:
    told, said = site.monitor("digits-quiet")
    assert not told["drift"]
    assert (told["windows"], told["accuracy"], told["estimated_accuracy"]) == (0, None, None)
    assert (told["ood_share"], told["recent_requests"]) == (None, 0)
    assert "0 requests, accuracy by labels not known" in said


def test_a_reference_of_another_model_or_none_is_told(site: Site) -> None:
    endpoint = "digits-newer"
    site.collect(endpoint, "10", [line(0, 0.1, model_version="v2"), b""])
    with pytest.raises(DigitsError, match=r"expected answers of model v1 .*, found v2"):
        site.monitor(endpoint)
    with pytest.raises(DigitsError, match=r"nowhere.json: not found"):
        site.monitor(endpoint, "--reference", "nowhere.json")
    with pytest.raises(DigitsError, match="is not an endpoint name"):
        site.monitor("../../secrets")
