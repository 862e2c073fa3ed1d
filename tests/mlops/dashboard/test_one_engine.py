"""Stage monitor, `digits monitor` and the live page give the same verdict on the same rows."""

import csv
import datetime
import json
import warnings
from pathlib import Path
from typing import Any

import frozen
import numpy as np
import pytest
from blobs import Blobs

from core import params
from core.dataset import Digits, write_split
from digits.monitoring import report
from digits.monitoring.analysis import Params
from digits.monitoring.drift import Reference
from digits.pipeline import monitor as stage
from digits.production import records

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.cli import call
    from mlops.dashboard import watch as module
    from mlops.dashboard.watch import LiveState
    from mlops.production import monitor

START = datetime.datetime(2026, 1, 5, 9, 30, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
Row = dict[str, Any]


def answers(count: int, rng: np.random.Generator, ood_share: float) -> list[Row]:
    """Return rows of REQUESTS, two each three seconds, by two deployments of model v1 in turn."""
    rows = []
    for number in range(count):
        foreign = float(rng.beta(6, 3) if rng.random() < ood_share else rng.beta(2, 20))
        rows.append(
            {
                "time": START + datetime.timedelta(seconds=3 * (number // 2)),
                "request_id": f"id-{number}",
                "position": 0,
                "deployment": ("green", "blue")[number % 2],
                "model_version": "v1",
                "digit": str(rng.integers(0, 10)),
                "confidence": 1 - foreign / 3,
                "ood_score": foreign,
                "image": rng.integers(0, 256, 784, np.uint8).tobytes(),
            }
        )
    return rows


def production(rng: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """Return requests as they came, and labels: duplicates, late ones, another model."""
    calm, drifted = answers(1500, rng, 0.0), answers(2670, rng, 0.4)[1500:]
    # Without the first, the edges of windows lie between the two that came at one time.
    came = [
        row | {"request_id": f"{row['request_id']}-{row['time']:%M%S}"}
        for row in (calm + drifted)[1:]
    ]
    sent_again = [row | {"time": row["time"] + datetime.timedelta(seconds=3)} for row in came[:40]]
    other = [row | {"model_version": "v0", "request_id": f"v0-{n}"} for n, row in enumerate(came)]
    # The retry comes first, from the other deployment, with the later time.
    came[1991] |= {"ood_score": 0.99, "confidence": 0.3}  # in which window it lies shows
    early = came[1991] | {"deployment": "blue", "time": came[1991]["time"] + HOUR / 60}
    stream = [*other[:300], *came[1:600], *sent_again[1:], *came[1200:1300]]
    stream += [
        *came[600:1200],
        *came[1300:1990],
        early,
        *came[1990:2600],
        *other[300:320],
        *came[2600:],
    ]
    stream += [sent_again[0], came[0]]  # an hour late, the retry first
    known = [
        {name: row[name] for name in ("request_id", "position")}
        | {"time": row["time"] + 30 * HOUR, "script": "mnist"}
        | {"label": row["digit"] if number % 3 else "0"}
        for number, row in enumerate([*came[::4], *other[:5]])
    ]
    stray = known[0] | {"request_id": "never-asked"}
    return stream, [*known, *known[:7], stray, known[0] | {"label": "eleven"}]


@pytest.mark.slow
@pytest.mark.parametrize("looks", [1, 5])
def test_all_three_give_the_same_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    rng = np.random.default_rng(0)
    stream, known = production(rng)
    (tmp_path / "params.yaml").write_text(frozen.text(), "utf-8")
    monkeypatch.chdir(tmp_path)
    pool = answers(3000, rng, 0.0)
    images = np.frombuffer(b"".join(row["image"] for row in pool), np.uint8)
    labels = np.array([int(row["digit"]) for row in pool], np.uint8)
    digits = Digits(images.reshape(-1, 28, 28), labels, "mnist", False, 10)
    write_split(tmp_path / "validation.npz", [digits])
    for name, rows, schema in (
        ("requests", stream, records.REQUESTS),
        ("labels", known, records.LABELS),
        ("reference", pool, records.REQUESTS),
    ):
        records.write(tmp_path / "rows" / f"{name}.parquet", records.batches(rows, schema), schema)

    # The stage.
    arguments = ["--production", "rows", "--validation", "validation.npz"]
    stage.main([*arguments, "--out", "data/monitoring"])
    with Path("data/monitoring/windows.csv").open(encoding="utf-8") as file:
        by_stage = list(csv.DictReader(file))
    assert sum(int(row["drift"]) for row in by_stage) > 0
    assert by_stage[0]["drift"] == "0"

    # The live page, as the rows come.
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    blobs = Blobs()
    seen = LiveState(tmp_path)
    at_once, clock = -(-len(stream) // looks), START
    for start in range(0, len(stream), at_once):
        for row in stream[start : start + at_once]:
            clock = max(clock, row["time"])
            blobs.collect("e", [row], clock)  # in the hour when it came
        state = seen.state("e", {"blue", "green"}, blobs)  # type: ignore[arg-type]
    for row in known:
        blobs.label("e", row)
    state = seen.state("e", {"blue", "green"}, blobs)  # type: ignore[arg-type]

    # `digits monitor`, of what the workspace collected, and of files.
    left = monitor.fetch(blobs, "e", None, tmp_path / "fetched")  # type: ignore[arg-type]
    values = params.load()
    own, task = params.section(Params, values, "monitor"), params.task(values)
    reference = Reference.read(Path("data/monitoring/reference.json"))
    now_ms = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    analysis = monitor.analyse_files(tmp_path / "fetched", reference, own, task, left, now_ms)
    call("monitor", "--production", "rows", "--out", "out")
    by_command = json.loads(Path("out/monitoring.json").read_text("utf-8"))

    by_page = state["monitoring"]
    order = ("late", "out_of_order")  # of rows in a file; the store keeps it by hour alone
    for found in (report.findings(analysis, own), by_command):
        for name in set(by_page) - {"issues", "gaps"}:
            wanted = by_page[name]
            wanted = pytest.approx(wanted) if isinstance(wanted, float) else wanted
            assert found[name] == wanted, name
        counted = {name: count for name, count in by_page["issues"].items() if name not in order}
        assert counted.items() <= found["issues"].items()
        # Of a folder's rows nobody knows whether production goes on: no gap reaches to now.
        open_gap = found is not by_command
        assert len(found["gaps"]) == len(by_page["gaps"]) - (not open_gap)
    assert by_command["issues"]["late"] == 1
    assert by_page["drift"]
    assert not by_page["onset_censored"]
    assert counted == dict.fromkeys(counted, 0) | {
        "duplicate": 41,
        "other_model": 320,
        "labels_corrupted": 1,
        "labels_duplicate": 7,
        "labels_other_model": 5,
        "labels_unmatched": 1,
    }
    assert json.loads(Path("data/monitoring/metrics.json").read_text())["production"]["alarms"] == 1
    assert len(by_stage) == len(state["windows"]) == by_page["windows"]
    onset = next(row["time"] for row in by_stage if row["time"] == by_page["since"])
    assert onset > by_stage[0]["time"]
    for row, window in zip(by_stage, state["windows"], strict=True):
        assert int(row["requests"]) == window["requests"]
        assert row["drift"] == str(int(window["drift"]))
        assert row["evidence"] == f"{window['evidence']:.3g}"
        assert row["ood_share"] == f"{window['ood_share']:.4f}"
        assert row["estimated_accuracy"] == f"{window['estimated']:.4f}"
        assert row["accuracy"] == f"{window['accuracy'][0]:.4f}"
