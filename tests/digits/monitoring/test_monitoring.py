"""Windows, alarms, accuracy, gaps and the report of a production that is made up."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import frozen
import numpy as np
import pyarrow as pa
import pytest
from answered import SECOND, START, answered, batches, labels
from benchmarks import bench_monitor
from browser import a_browser, faults  # noqa: F401
from histogram import histograms
from playwright.sync_api import Browser

from core.dataset import Digits
from core.errors import DigitsError
from core.params import Names
from digits.monitoring import analysis, report
from digits.monitoring.analysis import Analysis, Monitor, Params
from digits.monitoring.drift import Reference
from digits.monitoring.histograms import SIGNALS
from digits.pipeline import monitor
from digits.production import records

CLASSES = tuple("0123456789")
OWN = frozen.section(Params, "monitor")
TASK = Names("mnist", "digit")


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of parts one after another in time."""
    whole = {name: np.concatenate([np.array(p[name]) for p in parts]) for name in parts[0]}
    return whole | {"time": START + SECOND * np.arange(len(whole["time"]))}


@pytest.fixture(scope="module", name="reference")
def a_reference() -> Reference:
    """A reference of 4,000 requests of model v1."""
    columns = answered(4000, np.random.default_rng(0))
    images = np.frombuffer(b"".join(columns["image"]), np.uint8).reshape(-1, 28, 28)
    numbers = columns["digit"].astype(int)
    counts = histograms(images, numbers, columns["confidence"], columns["ood_score"])
    return Reference.fit({"mnist": counts}, "v1")


def test_a_script_in_two_parts_of_the_pool_is_one(tmp_path: Path) -> None:
    columns = answered(28, np.random.default_rng(12))
    path = tmp_path / "reference.parquet"
    records.write(path, batches(columns), records.REQUESTS)
    images = np.frombuffer(b"".join(columns["image"]), np.uint8).reshape(-1, 28, 28)
    truth = columns["truth"].astype(np.uint8)
    parts = {"mnist": (0, 12), "devanagari": (12, 23)}
    pool = [Digits(images[a:b], truth[a:b], name, True, 10) for name, (a, b) in parts.items()]
    pool.append(Digits(images[23:], truth[23:], "devanagari", False, 10))
    found = monitor.fit(path, pool, CLASSES).scripts
    assert {name: len(summary) for name, summary in found.items()} == {
        "mnist": 12,
        "devanagari": 16,
    }


def analyse(
    reference: Reference, stream: list[pa.RecordBatch], known: list[pa.RecordBatch], **more: Any
) -> Analysis:
    """Analyse batches as the stage does."""
    monitor = Monitor(CLASSES, 28, lambda: stream)
    for batch in stream:
        monitor.requests.add(batch)
    for batch in known:
        monitor.labels.add(batch)
    return monitor.analyse(reference, OWN, **more)


def words(page: str) -> str:
    """Return the text of a page: without its tags, and spaces alike."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


@pytest.fixture(scope="module", name="drift_scenario")
def build_drift_scenario(reference: Reference) -> Analysis:
    """Ten windows as known, ten with a tenth foreign, a last one that is not full."""
    rng = np.random.default_rng(1)
    columns = joined(answered(5000, rng), answered(5123, rng, foreign=0.1))
    return analyse(reference, batches(columns), labels(columns, np.arange(0, 10_123, 3)))


def test_the_alarm_states_since_when(drift_scenario: Analysis) -> None:
    assert len(drift_scenario.windows) == 21
    assert drift_scenario.windows[-1].requests == 123
    assert drift_scenario.drift
    assert drift_scenario.since_ms == START + 5000 * SECOND
    figures = report.summary_metrics(drift_scenario)
    assert (figures["alarms"], figures["false_alarms"]) == (1, 0)
    assert 0 < figures["requests_until_alarm"] <= 1000
    assert drift_scenario.contributing_signals()[0] == "ood_confidence"
    assert drift_scenario.action() == "retrain"
    assert {example.window for example in drift_scenario.examples} <= set(range(10, 21))
    assert len(drift_scenario.examples) <= OWN.examples


def test_a_script_that_the_model_knows_starts_no_drift(reference: Reference) -> None:
    columns = answered(1000, np.random.default_rng(15))
    columns["script"][:] = "devanagari"
    both = Reference.fit({"mnist": reference.histograms, "devanagari": reference.histograms}, "v1")
    known = labels(columns, np.arange(1000))
    assert analyse(reference, batches(columns), known).first_foreign_ms == START
    assert analyse(both, batches(columns), known).first_foreign_ms is None


@pytest.mark.parametrize(
    ("signal", "p", "action"),
    [("ood_confidence", 1e-4, "retrain"), ("width", 0.02, "label"), ("row", 0.02, "fix_input")],
)
def test_a_weak_alarm_has_a_signal_and_an_action(
    drift_scenario: Analysis, signal: str, p: float, action: str
) -> None:
    window = drift_scenario.windows[-1]
    calm = dataclasses.replace(window.result, p=dict.fromkeys(SIGNALS, 1.0))
    loud = dataclasses.replace(calm, p=calm.p | {signal: p})
    windows = [dataclasses.replace(window, result=verdict) for verdict in [loud, *[calm] * 12]]
    episodes = [analysis.Alarm(0, 0, None)]
    found = dataclasses.replace(drift_scenario, windows=windows, alarms=episodes)
    assert found.contributing_signals() == [signal]
    assert found.action() == action
    assert "<h2>Recommended action</h2><p>" in report.page(found, OWN, TASK)


def with_p_values(drift_scenario: Analysis, *alarms: list[dict[str, float]]) -> Analysis:
    """Return an analysis of alarms, each of windows with these p-values; calm ones between."""
    window = drift_scenario.windows[-1]
    windows: list[analysis.Window] = []
    episodes = []
    for alarm in alarms:
        start = len(windows)
        episodes.append(analysis.Alarm(start, start, start + len(alarm)))
        for p in [*alarm, *[dict[str, float]()] * 3]:
            verdict = dataclasses.replace(window.result, p=dict.fromkeys(SIGNALS, 1.0) | p)
            windows.append(dataclasses.replace(window, result=verdict))
    return dataclasses.replace(drift_scenario, windows=windows, alarms=episodes)


def test_a_scanner_that_breaks_in_a_loud_alarm_is_seen_at_once(drift_scenario: Analysis) -> None:
    foreign = {"ood_confidence": 1e-99, "row": 1e-3}  # foreign digits are drawn a little higher
    assert with_p_values(drift_scenario, [foreign] * 60).action() == "retrain"
    found = with_p_values(drift_scenario, [*[foreign] * 60, foreign | {"brightness": 1e-8}])
    assert found.contributing_signals() == ["ood_confidence", "brightness"]
    assert found.action() == "fix_input"


def test_what_an_earlier_alarm_spoilt_is_not_learnt_with_a_later_one(
    drift_scenario: Analysis,
) -> None:
    foreign, dim = [{"ood_confidence": 1e-20}] * 4, [{"ood_confidence": 1e-20, "ink": 1e-20}] * 4
    found = with_p_values(drift_scenario, dim, foreign)
    assert found.contributing_signals() == ["ood_confidence"]
    assert found.action() == "fix_input"
    assert with_p_values(drift_scenario, foreign, foreign).action() == "retrain"


def test_a_broken_scanner_is_fixed_and_not_trained_on(reference: Reference) -> None:
    rng = np.random.default_rng(16)
    dim = answered(2000, rng, foreign=0.5)  # altered digits are out of distribution, too
    for number, image in enumerate(dim["image"]):
        dim["image"][number] = bytes(pixel // 2 for pixel in image)
    found = analyse(reference, batches(joined(answered(2000, rng), dim)), [])
    assert {"ood_confidence", "brightness"} <= set(found.contributing_signals())
    assert found.action() == "fix_input"
    page = report.page(found, OWN, TASK)
    assert "Check the input first" in page
    assert "digits retrain" not in page


@pytest.mark.parametrize(
    ("count", "first", "requests"),
    [(501, 0, 501), (1000, 1, 500), (1001, 1, 501), (60, 0, 60), (1, 0, 1), (0, 0, 0)],
)
def test_lately_is_a_full_window_at_least(
    reference: Reference, count: int, first: int, requests: int
) -> None:
    columns = answered(count, np.random.default_rng(17))
    columns["ood_score"][500::500] = 0.999  # the first of each window but one
    columns["confidence"][500::500] = 0.3
    found = analyse(reference, batches(columns) if count else [], [])
    assert found.recent() == first
    assert sum(window.requests for window in found.windows[first:]) == requests
    if count > 500:
        assert found.mean("ood_share", first) == pytest.approx(0, abs=0.03)
        said = f"out-of-distribution digits, last {requests} requests</dt><dd>"
        assert re.search(f"{said}[0-2][.][0-9]%", report.page(found, OWN, TASK))


def test_accuracy_is_by_labels_and_estimated_without(drift_scenario: Analysis) -> None:
    for first, truth in ((0, 0.955), (10, 0.91)):
        found = analysis.accuracy(drift_scenario.windows[first:])
        assert found
        assert found[1] < truth < found[2]
        assert drift_scenario.mean("accuracy", first) == pytest.approx(truth, abs=0.02)


def test_the_order_of_rows_changes_nothing(reference: Reference) -> None:
    rng = np.random.default_rng(2)
    columns = joined(answered(1500, rng), answered(1500, rng, foreign=0.2))
    known = labels(columns, np.arange(0, 3000, 5))
    stream = pa.Table.from_batches(batches(columns))
    shuffled = stream.take(rng.permutation(3000)).to_batches(700)
    one, two = (analyse(reference, rows, known) for rows in (stream.to_batches(), shuffled))
    assert two.issues["late"] + two.issues["out_of_order"] > 2000
    for left, right in zip(one.windows, two.windows, strict=True):
        assert (left.histograms.counts == right.histograms.counts).all()
        assert (left.result, left.correct) == (right.result, right.correct)


def test_doubled_requests_and_labels_count_once(reference: Reference) -> None:
    columns = answered(1000, np.random.default_rng(3))
    stream, known = batches(columns), labels(columns, np.arange(100))
    unmatched = {
        "time": START,
        "request_id": "id-x",
        "position": 0,
        "label": "1",
        "script": "mnist",
    }
    wrong = [unmatched, unmatched | {"request_id": "id-1", "label": "eleven"}]
    others = list(records.batches(wrong, records.LABELS))
    found = analyse(reference, stream + stream, known + known + others)
    assert [window.requests for window in found.windows] == [500, 500]
    assert found.issues["duplicate"] == 1000
    assert [found.issues[f"labels_{what}"] for what in ("duplicate", "unmatched", "corrupted")] == [
        *(100, 1, 1)
    ]
    assert sum(window.labelled for window in found.windows) == 100


def test_a_label_of_an_id_that_images_share_is_of_none(reference: Reference) -> None:
    columns = answered(500, np.random.default_rng(14))
    rows = pa.Table.from_batches(batches(columns)).to_pylist()
    rows[0]["image"], rows[1]["request_id"] = bytes(784), "id-0"
    stream = list(records.batches(rows, records.REQUESTS))
    found = analyse(reference, stream, labels(columns, np.array([0, 2])))
    assert [window.requests for window in found.windows] == [500]
    assert (found.issues["labels_unmatched"], found.windows[0].labelled) == (1, 1)


def test_a_gap_is_shown_and_nothing_is_lost(reference: Reference) -> None:
    columns = answered(1000, np.random.default_rng(4))
    columns["time"][700:] += 60 * SECOND
    found = analyse(reference, batches(columns), [])
    assert found.gaps == [(START + 699 * SECOND, START + 760 * SECOND)]
    assert sum(window.requests for window in found.windows) == 1000
    assert "no requests from 2026-01-05 00:11 UTC to 2026-01-05 00:12" in report.page(
        found, OWN, TASK
    )


def test_steady_traffic_has_no_gaps() -> None:
    rng = np.random.default_rng(5)
    times = np.cumsum(rng.exponential(60_000, 20_000)).astype(np.int64)
    assert len(records.gaps(times, 500)) <= 1
    assert len(records.gaps(times.repeat(100), 500)) <= 1  # so many images a request


@pytest.mark.parametrize("count", [3, 501, 502, 503, 510])
def test_a_gap_is_seen_wherever_it_lies(count: int) -> None:
    times = START + SECOND * np.arange(count)
    times[-1] += 3600 * SECOND
    assert records.gaps(times, 500) == ([tuple(times[-2:].tolist())] if count > 3 else [])


def test_an_endpoint_that_is_down_now_has_a_gap(reference: Reference) -> None:
    columns = answered(510, np.random.default_rng(16))
    last = int(columns["time"][-1])
    for seconds, down in ((200, []), (400, [(last, last + 400 * SECOND)])):
        found = analyse(reference, batches(columns), [], now_ms=last + seconds * SECOND)
        assert found.gaps == down
    assert 'class="gap" x="' in report.page(found, OWN, TASK)
    places = [
        float(x)
        for x in re.findall(r'class="gap" x="([\d.]+)" width=', report.page(found, OWN, TASK))
    ]
    assert places and max(places) < 836  # the right edge of the chart
    assert records.gaps(np.array([], np.int64), 500, START) == []


def test_requests_ahead_of_this_clock_are_judged(reference: Reference) -> None:
    columns = answered(500, np.random.default_rng(17))
    now = int(columns["time"][-1]) - records.SKEW_MS
    found = analyse(reference, batches(columns), [], now_ms=now)
    assert (found.windows[0].requests, found.issues["wrong_clock"], found.gaps) == (500, 0, [])
    assert analyse(reference, batches(columns), [], now_ms=now - 1).issues["wrong_clock"] == 1


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_request(reference: Reference, count: int) -> None:
    columns = answered(count, np.random.default_rng(6), foreign=1.0)
    found = analyse(reference, batches(columns) if count else [], [])
    assert len(found.windows) == count
    assert not found.drift
    assert found.since_ms is None
    assert report.summary_metrics(found)["alarms"] == 0
    assert ("There are no requests" in report.page(found, OWN, TASK)) == (count == 0)


def test_only_foreign_digits_from_the_start(reference: Reference) -> None:
    columns = answered(1000, np.random.default_rng(7), foreign=1.0)
    found = analyse(reference, batches(columns), labels(columns, np.arange(1000)))
    assert found.since_ms == START
    assert found.alarms == [analysis.Alarm(0, 0, None)]
    assert "Drift at least since 2026-01-05 00:00 UTC" in words(report.page(found, OWN, TASK))
    over = dataclasses.replace(found, alarms=[analysis.Alarm(0, 0, 1)])
    calm = dataclasses.replace(found.windows[-1].result, drift=False)
    windows = [found.windows[0], dataclasses.replace(found.windows[-1], result=calm)]
    page = words(report.page(dataclasses.replace(over, windows=windows), OWN, TASK))
    assert "drift at least from 2026-01-05 00:00 UTC to" in page


def test_a_reference_of_another_model_is_reported(reference: Reference) -> None:
    columns = answered(600, np.random.default_rng(8))
    with pytest.raises(DigitsError, match=r"answers of model v1 .*, found v2"):
        analyse(reference, batches(columns, "v2"), [])
    both = batches(columns, "v2")[:1] + batches(columns)[:1]
    mixed = [batch for batch in both if batch.num_rows]
    renamed = mixed[0].set_column(1, "request_id", pa.array([f"o{n}" for n in range(600)]))
    found = analyse(reference, [renamed, mixed[1]], [])
    assert found.issues["other_model"] == 600
    assert found.windows[0].requests == 500


def two_models(first: str, second: str) -> list[pa.RecordBatch]:
    """Return 900 requests: 640 answered by one model, then 260 by another."""
    columns = answered(900, np.random.default_rng(13))
    table = pa.Table.from_batches(batches(columns))
    place = table.schema.get_field_index("model_version")
    return table.set_column(
        place, "model_version", pa.array([first] * 640 + [second] * 260)
    ).to_batches(700)


def test_a_model_that_went_live_again_is_unexpected(reference: Reference) -> None:
    rolled_back = two_models("v1", "v2")[::-1]  # its order is that of the times
    with pytest.raises(DigitsError, match=r"the newest requests: .*, found v2"):
        analyse(reference, rolled_back, [])
    assert analyse(reference, two_models("v2", "v1"), []).windows[0].requests == 260


def test_labels_of_another_model_are_not_unmatched(reference: Reference) -> None:
    columns = answered(900, np.random.default_rng(13))
    stray = {"time": START, "request_id": "id-x", "position": 0, "label": "1", "script": "mnist"}
    known = [
        *labels(columns, np.arange(0, 900, 2)),
        *records.batches([stray], records.LABELS),
    ]
    found = analyse(reference, two_models("v0", "v1"), known)
    assert found.issues["labels_other_model"] == 320
    assert found.issues["labels_unmatched"] == 1
    assert sum(window.labelled for window in found.windows) == 130
    assert "320 labels of requests to another model" in report.page(found, OWN, TASK)


def test_other_classes_are_reported(reference: Reference) -> None:
    with pytest.raises(DigitsError, match=r"expected [0-9]+ classes"):
        Monitor(("a", "b"), 28).analyse(reference, OWN)


class Tags(HTMLParser):
    """Collects what a page would fetch, and whether its tags are closed."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note addresses; tags that enclose something stay open."""
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost tag."""
        assert self.open.pop() == tag


def test_the_report_is_whole_and_fetches_nothing(drift_scenario: Analysis) -> None:
    page = report.page(drift_scenario, OWN, TASK)
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert tags.fetched
    assert all(address.startswith("data:image/png;base64,") for address in tags.fetched)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    for heading in ("Contributing signals", "Recommended action", "Examples of", "All windows"):
        assert heading in page
    assert "digits retrain" in page
    assert page == report.page(drift_scenario, OWN, TASK)
    assert "Drift since 2026-01-05 01:23 UTC" in words(page)


def test_the_report_states_how_bad_it_is_and_when_it_ends(drift_scenario: Analysis) -> None:
    page = words(report.page(drift_scenario, OWN, TASK))
    for name, windows, more in (
        ("accuracy by labels since the onset", drift_scenario.windows[10:], "before: 100.0%"),
        (
            "accuracy by labels, last 623 requests",
            drift_scenario.windows[-2:],
            "accuracy estimated",
        ),
    ):
        figure, low, high = analysis.accuracy(windows) or (0, 0, 0)
        assert f"{name} {figure:.1%} ({low:.1%} to {high:.1%}) {more}" in page
    assert "It was raised 500 requests after the onset" in page
    assert re.search(r"this alarm ends after \d+ such windows at the earliest\.", page)
    calm = dataclasses.replace(drift_scenario, windows=drift_scenario.windows[:10], alarms=[])
    assert "this alarm ends" not in report.page(calm, OWN, TASK)


STATES = ["scanner", "over", "calm", "unlabelled", "empty"]


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("drift", marks=pytest.mark.slow),
        *(pytest.param(state, marks=pytest.mark.prove) for state in STATES),
    ],
)
def test_the_report_is_accessible_and_fits_a_telephone(
    state: str, drift_scenario: Analysis, reference: Reference, browser: Browser
) -> None:
    known = drift_scenario
    calm = dataclasses.replace(known, windows=known.windows[:10], alarms=[])
    gap = (START + 100 * SECOND, START + 2000 * SECOND)
    found = {
        "drift": known,
        "scanner": with_p_values(known, [{"brightness": 1e-20, "classes": 1e-20}] * 9),
        "over": dataclasses.replace(known, alarms=[analysis.Alarm(10, 11, 15)], gaps=[gap]),
        "calm": dataclasses.replace(calm, issues=calm.issues | {"duplicate": 3}),
        "unlabelled": analyse(reference, batches(answered(60, np.random.default_rng(18))), []),
        "empty": analyse(reference, [], []),
    }[state]
    for scheme, width in (("light", 1280), ("dark", 360)):
        page = browser.new_page(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        page.set_content(report.page(found, OWN, TASK))
        page.locator("summary").click()  # the table of the windows
        assert faults(page) == [], width
        assert page.evaluate("document.documentElement.scrollWidth") == width
        wider = "(boxes) => boxes.filter((box) => box.scrollWidth > box.clientWidth).length"
        assert page.locator(".status, .state, .facts").evaluate_all(wider) == 0
        page.close()


@pytest.mark.slow
def test_the_last_of_many_windows_and_gaps_are_named_so(drift_scenario: Analysis) -> None:
    page = report.page(drift_scenario, OWN, TASK)
    assert page.count("<tr><td>") == 21
    gaps = [(START + n * SECOND, START + n * SECOND) for n in range(0, 6000, 60)]
    many = dataclasses.replace(drift_scenario, windows=drift_scenario.windows * 50, gaps=gaps)
    page = report.page(many, OWN, TASK)
    assert "The last 1,000 of 1,050 windows" in page
    assert page.count("<tr><td>") == 1000
    assert "the last 50 of 100 gaps" in page
    assert page.count("no requests from") == 50
    assert f"no requests from {report.when(gaps[-1][0])}" in page


def test_names_in_the_report_are_escaped(reference: Reference) -> None:
    columns = answered(500, np.random.default_rng(9), foreign=1.0)
    columns["script"][:] = "<b>&"
    page = report.page(
        analyse(reference, batches(columns), labels(columns, np.arange(500))), OWN, TASK
    )
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page


def test_windows_csv_has_a_row_a_window(drift_scenario: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    report.write_windows(path, drift_scenario.windows)
    head, *rows = path.read_text().splitlines()
    assert len(rows) == 21
    assert {row.count(",") for row in rows} == {head.count(",")}


@pytest.mark.prove
def test_a_million_requests_need_less_than_500_megabytes(tmp_path: Path) -> None:
    bench_monitor.make(tmp_path)
    _, megabytes = bench_monitor.monitored(tmp_path)
    assert megabytes < 500
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["production"]["windows"] == 2000
