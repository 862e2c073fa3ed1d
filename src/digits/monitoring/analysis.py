"""What happened in production: requests and late labels enter, windows with verdicts leave.

Requests are put in the order of their times and cut into windows; each is summarised (drift.py)
and judged against the reference in turn. The stream is read twice, in batches, so that memory
does not grow with the images.
"""

import csv
import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.stats import binomtest

from core.errors import DigitsError
from core.files import replacing
from core.params import STRICT
from digits.monitoring import drift
from digits.monitoring.drift import Reference, Verdict
from digits.monitoring.histograms import SIGNALS, Summary, bins
from digits.production import records

Stream = Callable[[], Iterable[pa.RecordBatch]]
EXAMPLES_A_WINDOW = 3
SPOILT = {"brightness", "ink", "row", "column"}  # signals of what takes the pictures, not of hands
DROWNED = 20  # times as much as a cause is said by another, which moves it a little itself
CLEAR = 7.0  # the logarithm of evidence that names a cause by itself


@dataclass(frozen=True)
class Params:
    """params.yaml's section `monitor`."""

    __pydantic_config__ = STRICT

    window: Annotated[int, Field(ge=50, le=100_000)]  # requests
    examples: Annotated[int, Field(ge=1, le=100)]  # digits shown in the report
    alarm: drift.Settings


@dataclass(frozen=True)
class Window:
    """Some requests in a row: when, how many, what was found.

    first_ms, last_ms: of its requests, ms since 1970
    labelled, right: how many have a label, and how many answers of those are right
    """

    first_ms: int
    last_ms: int
    summary: Summary
    verdict: Verdict
    labelled: int
    right: int

    @property
    def requests(self) -> int:
        """The number of requests."""
        return len(self.summary)


@dataclass(frozen=True)
class Example:
    """A request that looks strange: its window, image uint8 (size, size), answer and label."""

    window: int
    image: np.ndarray
    answer: str
    truth: str | None  # `script digit`, where its label has come


@dataclass(frozen=True)
class Episode:
    """An alarm: the windows in which the drift began, the alarm rose, and it ended."""

    began: int
    alarm: int
    ended: int | None


@dataclass(frozen=True)
class Analysis:
    """All that a report tells."""

    reference: Reference
    windows: list[Window]
    episodes: list[Episode]
    examples: list[Example]
    gaps: list[tuple[int, int]]  # from, to; ms since 1970
    faults: dict[str, int]  # of requests (production.FAULTS) and of labels
    first_foreign_ms: int | None  # of the first labelled request in a script the reference lacks

    @property
    def drift(self) -> bool:
        """Whether the alarm is on in the last window."""
        return bool(self.windows) and self.windows[-1].verdict.drift

    @property
    def at_least(self) -> bool:
        """Whether the last drift may have begun earlier, before the first window looked at."""
        return bool(self.episodes) and self.episodes[-1].began == 0

    @property
    def since_ms(self) -> int | None:
        """When the drift began that the alarm tells of; None when it is off."""
        return self.windows[self.episodes[-1].began].first_ms if self.drift else None

    def accuracy(self, first: int = 0) -> tuple[float, float, float] | None:
        """Return accuracy and its 95 % interval from a window on, None without labels."""
        chosen = self.windows[first:]
        return wilson(sum(w.right for w in chosen), sum(w.labelled for w in chosen))

    def estimated(self, first: int = 0) -> float | None:
        """Return the estimate of accuracy from a window on, None without requests."""
        return self._mean("accuracy", first)

    def strangers(self, first: int = 0) -> float | None:
        """Return the estimated share of strangers from a window on, None without requests."""
        return self._mean("strangers", first)

    def _mean(self, name: str, first: int) -> float | None:
        chosen = self.windows[first:]
        total = sum(window.requests for window in chosen)
        return sum(w.requests * getattr(w.verdict, name) for w in chosen) / total if total else None

    def lately(self) -> int:
        """Return the window that `lately` begins with: the last full one, if any is.

        The one after it may hold a single request, of which no share can be told.
        """
        last = len(self.windows) - 1
        part = last > 0 and self.windows[last].requests < self.windows[0].requests
        return max(last - part, 0)

    def causes(self) -> list[str]:
        """Return the signals that spoke in the last alarm, the loudest first."""
        return self._causes(self.episodes[-1]) if self.episodes else []

    def _causes(self, episode: Episode) -> list[str]:
        """Return the signals that spoke in an alarm, the loudest first; one at least is named.

        What counts is the most that one has said since the drift began: windows that are as known
        do not take it back, an alarm may last over many. What spoils images late in one that was
        loud already counts by the windows in which it was not drowned.
        """
        alarmed = [window.verdict.p for window in self.windows[episode.began : episode.ended]]
        steps = {
            name: np.array([drift.log_e_value(p[name]) for p in alarmed])
            for name in SIGNALS
            if name not in ("foreign", "confidence")  # parts of `looks`
        }
        loud = {name: float(np.cumsum(said).max()) for name, said in steps.items()}
        loudest = max(loud.values())
        limit = min(max(loudest / DROWNED, np.log(20)), loudest)
        together = np.max(list(steps.values()), axis=0)
        named = {name for name in loud if loud[name] >= limit}
        for name in SPOILT:
            said = steps[name]
            if _most(np.where(said >= together / DROWNED, said, np.minimum(said, 0))) >= CLEAR:
                named.add(name)
        return sorted(named, key=lambda name: -loud[name])

    def remedy(self) -> str | None:
        """Return what the causes of the last alarm call for, None without one.

        `mend`: images are spoilt, which makes any digit look strange, or were in an alarm before:
        their labels are not to be learnt; `retrain`: digits look like nothing that the model has
        learnt; `label`: neither, so labels must tell.
        """
        causes = self.causes()
        if any(SPOILT & set(self._causes(episode)) for episode in self.episodes):
            return "mend"
        return "retrain" if "looks" in causes else "label" if causes else None


def _most(log_e_values: np.ndarray) -> float:
    """Return the most evidence, a logarithm, of windows (n,) in a row from any start."""
    total = np.cumsum([0.0, *log_e_values])
    return float((total - np.minimum.accumulate(total)).max())


def wilson(right: int, labelled: int) -> tuple[float, float, float] | None:
    """Return the share and Wilson's 95 % interval, None when nothing is labelled.

    It takes each request for another digit; simulated production repeats those of a pool, and
    there it is too narrow.
    """
    if not labelled:
        return None
    interval = binomtest(right, labelled).proportion_ci(0.95, method="wilson")
    return right / labelled, float(interval.low), float(interval.high)


def analyse(
    stream: Stream,
    labels: Iterable[pa.RecordBatch],
    reference: Reference,
    own: Params,
    classes: tuple[str, ...],
    image_size: int,
    now_ms: int | None = None,
) -> Analysis:
    """Return what happened; `stream` gives the same batches of REQUESTS each time it is called.

    `now_ms`, ms since 1970: where production goes on. Raises DigitsError when the newest requests
    were answered by other models than the reference's.
    """
    if len(reference.summary.classes) != len(classes):
        raise DigitsError("the reference has other classes than params.yaml; run `dvc repro`")
    latest_ms = None if now_ms is None else now_ms + records.SKEW_MS
    rows = records.look(stream(), classes, image_size, {reference.model_version}, latest_ms)
    if others := passed_over(rows, own.window):
        raise DigitsError(
            f"the reference is of model {reference.model_version}, but the newest requests were "
            f"answered by {', '.join(others)}; check out the commit that is deployed and run "
            "`dvc repro`, or deploy this one"
        )
    counted = np.flatnonzero(rows.counts)
    ordered = counted[np.argsort(rows.time[counted], kind="stable")]
    window_of = np.full(len(rows.time), -1, np.int32)  # of each row in the stream's order
    window_of[ordered] = np.arange(len(ordered)) // own.window
    truth, scripts, label_faults = records.match(labels, rows, classes)
    counts, candidates = summarise(stream(), rows, window_of, reference, image_size)

    windows: list[Window] = []
    for number, verdict in enumerate(reference.verdicts(counts, own.alarm)):
        inside = ordered[number * own.window : (number + 1) * own.window]
        known = inside[truth[inside] >= 0]
        windows.append(
            Window(
                first_ms=int(rows.time[inside[0]]),
                last_ms=int(rows.time[inside[-1]]),
                summary=Summary(counts[number]),
                verdict=verdict,
                labelled=len(known),
                right=int((truth[known] == rows.label[known]).sum()),
            )
        )
    episodes = alarms(windows)
    last = episodes[-1] if episodes else None
    shown = spread(candidates, window_of, last, len(windows), own.examples)
    foreign = [row for row, script in scripts.items() if script not in reference.scripts]
    return Analysis(
        reference=reference,
        windows=windows,
        episodes=episodes,
        examples=[
            Example(
                int(window_of[row]),
                image,
                classes[rows.label[row]],
                f"{scripts[row]} {classes[truth[row]]}" if row in scripts else None,
            )
            for row, image in shown
        ],
        gaps=records.gaps(rows.time[ordered], own.window, now_ms),
        faults=rows.faults | label_faults,
        first_foreign_ms=min((int(rows.time[row]) for row in foreign), default=None),
    )


def passed_over(rows: records.Rows, window: int) -> list[str]:
    """Return the other models that answered most of the newest window, none when they did not.

    What came before the reference's model first answered is left out: it has just been deployed.
    """
    order = np.argsort(rows.time, kind="stable")
    order = order[(rows.counts | rows.other)[order]]
    newest = order[int(rows.counts[order].argmax()) if rows.counts.any() else 0 :][-window:]
    others = newest[rows.other[newest]]
    if 2 * len(others) <= len(newest):
        return []
    return sorted({rows.versions[number] for number in rows.version[others].tolist()})


def summarise(
    stream: Iterable[pa.RecordBatch],
    rows: records.Rows,
    window_of: np.ndarray,
    reference: Reference,
    image_size: int,
) -> tuple[np.ndarray, list[tuple[float, int, np.ndarray]]]:
    """Return the counts of all windows (windows, bins), and strange requests of each.

    Those are strangeness, row and image; up to EXAMPLES_A_WINDOW of a window, however the rows
    of the windows are mixed in the stream.
    """
    width = len(reference.summary.counts)
    counts = np.zeros((int(window_of.max(initial=-1)) + 1, width), np.int64)
    best: dict[int, list[tuple[float, int, np.ndarray]]] = {}
    start = 0
    for batch in stream:
        inside = np.flatnonzero(window_of[start : start + len(batch)] >= 0)
        if len(inside):
            whole = batch if len(inside) == len(batch) else batch.take(pa.array(inside))
            images = records.images(whole, image_size)
            chosen = start + inside
            window = window_of[chosen]
            places = bins(images, rows.label[chosen], rows.confidence[chosen], rows.foreign[chosen])
            first = int(window.min())
            flat = ((window - first)[:, None] * width + places).ravel()
            found = np.bincount(flat, minlength=(int(window.max()) - first + 1) * width)
            counts[first : int(window.max()) + 1] += found.reshape(-1, width)
            strange = reference.strangeness(places)
            order = np.lexsort((-strange, window))
            edges = np.searchsorted(window[order], window[order])  # where each window starts
            for place in order[np.arange(len(order)) - edges < EXAMPLES_A_WINDOW]:
                held = best.setdefault(int(window[place]), [])
                if len(held) < EXAMPLES_A_WINDOW or strange[place] > held[-1][0]:
                    held.append((float(strange[place]), int(chosen[place]), images[place].copy()))
                    held.sort(key=lambda example: (-example[0], example[1]))
                    del held[EXAMPLES_A_WINDOW:]
        start += len(batch)
    return counts, [example for held in best.values() for example in held]


def alarms(windows: list[Window]) -> list[Episode]:
    """Return the alarms in order."""
    found: list[Episode] = []
    began, on = 0, False
    for number, window in enumerate(windows):
        if window.verdict.began:
            began = number
        if window.verdict.drift and not on:
            found.append(Episode(began, number, None))
        if on and not window.verdict.drift:
            found[-1] = Episode(found[-1].began, found[-1].alarm, number)
        on = window.verdict.drift
    return found


def spread(
    candidates: list[tuple[float, int, np.ndarray]],
    window_of: np.ndarray,
    episode: Episode | None,
    window_count: int,
    count: int,
) -> list[tuple[int, np.ndarray]]:
    """Return rows and images of the strangest requests of an alarm, spread over its windows."""
    if episode is None:
        return []
    end = episode.ended or window_count
    chosen = np.unique(np.linspace(episode.began, end - 1, count).astype(int)).tolist()
    best: dict[int, list[tuple[int, np.ndarray]]] = {number: [] for number in chosen}
    for _, row, image in sorted(candidates, key=lambda found: (-found[0], found[1])):
        if (number := int(window_of[row])) in best and len(best[number]) * len(best) < count:
            best[number].append((row, image))
    return [example for number in chosen for example in best[number]][:count]


def iso(time_ms: int) -> str:
    """Return a time as ISO 8601 in UTC, to the second."""
    time = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def figures(analysis: Analysis) -> dict[str, float]:
    """Return the headline figures; those that are not known are left out.

    false_alarms rose before the first labelled request in a script that the reference lacks;
    requests_until_alarm came from it on until the first alarm after it.
    """
    windows = analysis.windows
    found: dict[str, float] = {}
    if accuracy := analysis.accuracy():
        found |= dict(zip(("accuracy", "accuracy_low", "accuracy_high"), accuracy, strict=True))
    if (estimated := analysis.estimated()) is not None:
        found["estimated_accuracy"] = estimated
    labelled = [w for w in windows if w.labelled]
    if labelled:
        missed = sum(w.labelled * abs(w.verdict.accuracy - w.right / w.labelled) for w in labelled)
        found["estimation_error"] = missed / sum(w.labelled for w in labelled)
    found |= {"windows": len(windows), "alarms": len(analysis.episodes)}
    first = analysis.first_foreign_ms
    if first is not None:
        raised = [windows[episode.alarm].last_ms for episode in analysis.episodes]
        found["false_alarms"] = sum(time < first for time in raised)
        if late := [time for time in raised if time >= first]:
            between = [w for w in windows if first <= w.last_ms <= late[0]]
            found["requests_until_alarm"] = sum(w.requests for w in between)
    return {name: round(value, 6) for name, value in found.items()}


def write_windows(path: Path, windows: list[Window]) -> None:
    """Write one row a window, as `dvc plots` reads it."""
    header = ["window", "time", "requests", "accuracy", "accuracy_low", "accuracy_high"]
    header += ["estimated_accuracy", "strangers", "evidence", "drift", *SIGNALS]
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for number, window in enumerate(windows):
            row: list[Any] = [number, iso(window.first_ms), window.requests]
            row += [f"{x:.4f}" for x in wilson(window.right, window.labelled) or ()] or [""] * 3
            row += [f"{window.verdict.accuracy:.4f}", f"{window.verdict.strangers:.4f}"]
            row += [f"{window.verdict.evidence:.3g}", int(window.verdict.drift)]
            writer.writerow([*row, *(f"{window.verdict.p[name]:.2g}" for name in SIGNALS)])
