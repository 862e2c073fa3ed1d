"""Analyse production: test windows of requests for drift, and join their late labels.

Input: batches of requests and labels. Output: an Analysis with the result of each window and the
alarms. Requests are sorted by time and divided into windows, which are compared with the reference.

Images are not kept in memory; a row takes 47 bytes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from core.errors import DigitsError
from core.params import strict
from core.statistics import wilson
from digits.monitoring import drift
from digits.monitoring.drift import Reference, WindowResult
from digits.monitoring.histograms import SIGNALS, BinnedRequests, Histograms, count
from digits.monitoring.labels import Joined, Labels
from digits.production import records

Stream = Callable[[], Iterable[pa.RecordBatch]]
Answered = tuple[np.ndarray, str, float]  # image, answer, confidence
EXAMPLES_PER_WINDOW = 3
INPUT_QUALITY_SIGNALS = {"brightness", "ink", "row", "column"}  # of the scanner or camera
DOMINANCE_RATIO = 20  # a signal with this much less evidence may be a side effect of another
MIN_LOG_EVIDENCE = 7.0  # minimum evidence of an input quality signal


@strict
class Params:
    """params.yaml's section `monitor`."""

    window: Annotated[int, Field(ge=50, le=100_000)]  # requests
    examples: Annotated[int, Field(ge=1, le=100)]  # images shown in the report
    alarm: drift.Settings


@dataclass(frozen=True)
class Window:
    """Consecutive requests and the result of their drift test.

    first_ms, last_ms: times of the first and last request, ms since 1970
    labelled, correct: the number of requests with a label, and of correct answers among them
    """

    first_ms: int
    last_ms: int
    histograms: Histograms
    result: WindowResult
    labelled: int
    correct: int

    @property
    def requests(self) -> int:
        return len(self.histograms)


@dataclass(frozen=True)
class Example:
    """An out-of-distribution request: its window, image uint8 (size, size), answer and label."""

    window: int
    image: np.ndarray
    answer: str
    confidence: float
    truth: str | None  # `SCRIPT CLASS` if its label is known


@dataclass(frozen=True)
class Alarm:
    """An alarm: the windows of its estimated onset, when it was raised and when it was cleared."""

    onset: int
    raised: int
    cleared: int | None


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis; the reports are made from it."""

    reference: Reference
    windows: list[Window]
    alarms: list[Alarm]
    examples: list[Example]
    gaps: list[tuple[int, int]]  # start and end, ms since 1970
    issues: dict[str, int]  # data-quality issues: records.ISSUES and labels.ISSUES
    first_foreign_ms: int | None  # time of the first labelled request in an unknown script

    @property
    def drift(self) -> bool:
        """Whether the alarm is active in the last window."""
        return bool(self.windows) and self.windows[-1].result.drift

    @property
    def onset_censored(self) -> bool:
        """Whether the onset of the last alarm may lie before the first window."""
        return bool(self.alarms) and self.alarms[-1].onset == 0

    @property
    def since_ms(self) -> int | None:
        """The onset of the active alarm, ms since 1970; None without one."""
        return self.windows[self.alarms[-1].onset].first_ms if self.drift else None

    def mean(self, name: str, first: int = 0) -> float | None:
        """Return the mean estimated `accuracy` or `ood_share` of windows, from index `first`."""
        chosen = self.windows[first:]
        total = sum(window.requests for window in chosen)
        return sum(w.requests * getattr(w.result, name) for w in chosen) / total if total else None

    def recent(self) -> int:
        """Return the index of the last complete window, 0 without one.

        The window after it may have too few requests for an estimate.
        """
        last = len(self.windows) - 1
        incomplete = last > 0 and self.windows[last].requests < self.windows[0].requests
        return max(last - incomplete, 0)

    def contributing_signals(self) -> list[str]:
        """Return the signals that contribute to the last alarm, by decreasing evidence."""
        return self._contributing_signals(self.alarms[-1]) if self.alarms else []

    def _contributing_signals(self, alarm: Alarm) -> list[str]:
        """Return the signals that contribute to an alarm, at least one, by decreasing evidence.

        The evidence of a signal is the maximum of its cumulative evidence since the onset, which
        later windows without drift do not reduce. An input quality signal also
        contributes if its evidence suffices in the windows where no other signal dominates it.
        """
        p_values = [window.result.p for window in self.windows[alarm.onset : alarm.cleared]]
        steps = {
            name: np.array([drift.log_e_value(p[name]) for p in p_values])
            for name in SIGNALS
            if name not in ("ood_score", "confidence")  # contained in `ood_confidence`
        }
        evidence_of = {name: float(np.cumsum(evidence).max()) for name, evidence in steps.items()}
        strongest = max(evidence_of.values())
        limit = min(max(strongest / DOMINANCE_RATIO, np.log(20)), strongest)
        together = np.max(list(steps.values()), axis=0)
        named = {name for name in evidence_of if evidence_of[name] >= limit}
        for name in INPUT_QUALITY_SIGNALS:
            evidence = steps[name]
            if (
                _max_log_evidence(
                    np.where(
                        evidence >= together / DOMINANCE_RATIO, evidence, np.minimum(evidence, 0)
                    )
                )
                >= MIN_LOG_EVIDENCE
            ):
                named.add(name)
        return sorted(named, key=lambda name: -evidence_of[name])

    def action(self) -> str | None:
        """Return the recommended action for the last alarm, None without one.

        `fix_input`: image quality changed in some alarm, so the labelled images must not be used
        for training. `retrain`: there are out-of-distribution digits. `label`: neither, so labels
        are needed to decide.
        """
        signals = self.contributing_signals()
        found = map(self._contributing_signals, self.alarms)
        if any(INPUT_QUALITY_SIGNALS & set(names) for names in found):
            return "fix_input"
        return "retrain" if "ood_confidence" in signals else "label" if signals else None


def _max_log_evidence(log_e_values: np.ndarray) -> float:
    """Return the maximum log evidence of consecutive windows (n,), from any start."""
    total = np.cumsum([0.0, *log_e_values])
    return float((total - np.minimum.accumulate(total)).max())


def accuracy(windows: list[Window]) -> tuple[float, float, float] | None:
    """Return the accuracy of labelled requests and its 95 % interval, None without labels."""
    labelled = sum(window.labelled for window in windows)
    return wilson(sum(window.correct for window in windows), labelled) if labelled else None


class Monitor:
    """Collects requests and labels while they arrive, and analyses those so far."""

    def __init__(
        self, classes: tuple[str, ...], image_size: int, stream: Stream | None = None
    ) -> None:
        """`stream` reads all requests again for the images of examples; None: no examples."""
        self.classes, self.image_size, self.stream = classes, image_size, stream
        self.requests = BinnedRequests(classes, image_size)
        self.labels = Labels(classes)
        self.previous: tuple[Reference, drift.Settings, np.ndarray, list[WindowResult]] | None = (
            None
        )

    def analyse(self, reference: Reference, config: Params, now_ms: int | None = None) -> Analysis:
        """Return the analysis; results of windows that did not change are reused.

        `now_ms`, ms since 1970, is given for a running production. Raises DigitsError when the
        newest requests were answered by another model than the reference's.
        """
        classes = self.classes
        if len(reference.histograms.classes) != len(classes):
            raise DigitsError(
                f"the reference: expected {len(classes)} classes (params.yaml), found "
                f"{len(reference.histograms.classes)}. Run `dvc repro`."
            )
        latest_ms = None if now_ms is None else now_ms + records.SKEW_MS
        rows = self.requests.rows({reference.model_version}, latest_ms)
        if others := unexpected_models(rows, config.window):
            raise DigitsError(
                f"the newest requests: expected answers of model {reference.model_version} (the "
                f"reference), found {', '.join(others)}. Check out the deployed commit and run "
                "`dvc repro`, or deploy this one."
            )
        ordered = rows.ordered()
        joined = self.labels.join(rows)
        counts = count(self.requests.bins()[ordered], config.window, self.requests.width)
        windows: list[Window] = []
        for number, result in enumerate(self._evaluate_windows(reference, config.alarm, counts)):
            inside = ordered[number * config.window : (number + 1) * config.window]
            known = inside[joined.truth[inside] >= 0]
            windows.append(
                Window(
                    first_ms=int(rows.time[inside[0]]),
                    last_ms=int(rows.time[inside[-1]]),
                    histograms=Histograms(counts[number]),
                    result=result,
                    labelled=len(known),
                    correct=int((joined.truth[known] == rows.label[known]).sum()),
                )
            )
        alarms = find_alarms(windows)
        examples = []
        if self.stream and alarms:
            shown = self._select_examples(reference, ordered, alarms[-1], len(windows), config)
            images = self._images(self.stream(), list(shown))
            examples = [
                Example(window, *images[row], truth=_truth(joined, classes, row))
                for row, window in shown.items()
            ]
        unknown = [name not in reference.scripts for name in joined.scripts]
        foreign = np.array([*unknown, False])[joined.script]
        return Analysis(
            reference=reference,
            windows=windows,
            alarms=alarms,
            examples=examples,
            gaps=records.gaps(rows.time[ordered], config.window, now_ms),
            issues=rows.issues | joined.issues,
            first_foreign_ms=int(rows.time[foreign].min()) if foreign.any() else None,
        )

    def _evaluate_windows(
        self, reference: Reference, settings: drift.Settings, counts: np.ndarray
    ) -> list[WindowResult]:
        """Return the results of windows, reusing those of the last call if possible."""
        known: list[WindowResult] = []
        if self.previous and self.previous[0] is reference and self.previous[1] == settings:
            pairs = zip(self.previous[2], counts, strict=False)
            other = (n for n, (old, new) in enumerate(pairs) if not np.array_equal(old, new))
            known = self.previous[3][: next(other, min(len(self.previous[2]), len(counts)))]
        before = known[-1] if known else None
        results = [*known, *reference.evaluate_windows(counts[len(known) :], settings, before)]
        self.previous = (reference, settings, counts, results)
        return results

    def _select_examples(
        self,
        reference: Reference,
        ordered: np.ndarray,
        alarm: Alarm,
        window_count: int,
        config: Params,
    ) -> dict[int, int]:
        """Return the rows with the highest anomaly weight in windows of an alarm: {row: window}."""
        end = alarm.cleared or window_count
        spread = np.unique(np.linspace(alarm.onset, end - 1, config.examples).astype(int)).tolist()
        found: dict[int, int] = {}
        for window in spread:
            inside = np.sort(ordered[window * config.window : (window + 1) * config.window])
            weights = reference.anomaly_weights(self.requests.bins()[inside])
            some = min(-(-config.examples // len(spread)), EXAMPLES_PER_WINDOW)
            chosen = inside[np.argsort(-weights, kind="stable")[:some]]
            found |= dict.fromkeys(chosen.tolist(), window)
        return dict(list(found.items())[: config.examples])

    def _images(self, stream: Iterable[pa.RecordBatch], rows: list[int]) -> dict[int, Answered]:
        """Return image, answer and confidence of rows of a stream."""
        found: dict[int, Answered] = {}
        start = 0
        for batch in stream:
            inside = [row for row in rows if start <= row < start + len(batch)]
            if inside:
                chosen = batch.take(pa.array([row - start for row in inside]))
                images = records.images(chosen, self.image_size)
                names, sure = chosen["digit"].to_pylist(), chosen["confidence"].to_pylist()
                parts = zip(map(np.copy, images), names, sure, strict=True)
                found |= dict(zip(inside, parts, strict=True))
            start += len(batch)
        return found


def read(folder: Path, classes: tuple[str, ...], image_size: int) -> Monitor:
    """Return a monitor of a folder's requests.parquet and labels.parquet."""

    def requests() -> Iterable[pa.RecordBatch]:
        return records.read(folder / "requests.parquet", records.REQUESTS)

    monitor = Monitor(classes, image_size, requests)
    for batch in requests():
        monitor.requests.add(batch)
    for batch in records.read(folder / "labels.parquet", records.LABELS):
        monitor.labels.add(batch)
    return monitor


def _truth(joined: Joined, classes: tuple[str, ...], row: int) -> str | None:
    if joined.truth[row] < 0:
        return None
    return f"{joined.scripts[joined.script[row]]} {classes[joined.truth[row]]}"


def unexpected_models(rows: records.Rows, window: int) -> list[str]:
    """Return the other models if they answered most of the newest window, otherwise an empty list.

    Requests before the first answer of the reference's model are ignored: it may be newly deployed.
    """
    order = np.argsort(rows.time, kind="stable")
    order = order[(rows.valid | rows.other_model)[order]]
    newest = order[int(rows.valid[order].argmax()) if rows.valid.any() else 0 :][-window:]
    others = newest[rows.other_model[newest]]
    if 2 * len(others) <= len(newest):
        return []
    return sorted({rows.versions[number] for number in rows.version[others].tolist()})


def find_alarms(windows: list[Window]) -> list[Alarm]:
    """Return the alarms in chronological order."""
    found: list[Alarm] = []
    onset, on = 0, False
    for number, window in enumerate(windows):
        if window.result.onset:
            onset = number
        if window.result.drift and not on:
            found.append(Alarm(onset, number, None))
        if on and not window.result.drift:
            found[-1] = Alarm(found[-1].onset, found[-1].raised, number)
        on = window.result.drift
    return found
