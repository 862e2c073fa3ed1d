"""What happened in production: requests and late labels enter, windows with verdicts leave.

Requests are put in the order of their times and cut into windows; each is judged against the
reference in turn. This is the one engine of stage monitor, `digits monitor` and the live page:

    analysis = analyse(stream, labels, reference, own, classes, image_size)  # of Parquet batches
    monitor = Monitor(classes, image_size)                 # or as rows come, again and again:
    monitor.requests.add(batch); monitor.labels.add(batch)
    analysis = monitor.analyse(reference, own, now_ms)

Memory does not grow with the images: the bins of each row are kept, 47 bytes a row in all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from core.errors import DigitsError
from core.params import STRICT
from core.statistics import wilson
from digits.monitoring import drift
from digits.monitoring.drift import Reference, Verdict
from digits.monitoring.histograms import SIGNALS, BinnedRequests, Summary, count
from digits.monitoring.labels import Joined, Labels
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
        return accuracy(self.windows[first:])

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


def accuracy(windows: list[Window]) -> tuple[float, float, float] | None:
    """Return the accuracy of windows by labels and its 95 % interval, None without labels."""
    labelled = sum(window.labelled for window in windows)
    return wilson(sum(window.right for window in windows), labelled) if labelled else None


class Monitor:
    """Requests and labels as they come, and the analysis of those so far."""

    def __init__(self, classes: tuple[str, ...], image_size: int) -> None:
        self.classes, self.image_size = classes, image_size
        self.requests = BinnedRequests(classes, image_size)
        self.labels = Labels(classes)
        self.judged: tuple[Reference, drift.Settings, np.ndarray, list[Verdict]] | None = None

    def analyse(
        self,
        reference: Reference,
        own: Params,
        now_ms: int | None = None,
        stream: Stream | None = None,
    ) -> Analysis:
        """Return what happened; verdicts on windows that stayed as they were are not made again.

        `now_ms`, ms since 1970: where production goes on. `stream` gives the same batches again,
        for images of examples; without it there are none. Raises DigitsError when the newest
        requests were answered by other models than the reference's.
        """
        classes = self.classes
        if len(reference.summary.classes) != len(classes):
            raise DigitsError("the reference has other classes than params.yaml; run `dvc repro`")
        latest_ms = None if now_ms is None else now_ms + records.SKEW_MS
        rows = self.requests.rows({reference.model_version}, latest_ms)
        if others := passed_over(rows, own.window):
            raise DigitsError(
                f"the reference is of model {reference.model_version}, but the newest requests "
                f"were answered by {', '.join(others)}; check out the commit that is deployed and "
                "run `dvc repro`, or deploy this one"
            )
        ordered = rows.ordered()
        joined = self.labels.join(rows)
        counts = count(self.requests.bins()[ordered], own.window, self.requests.width)
        windows: list[Window] = []
        for number, verdict in enumerate(self._verdicts(reference, own.alarm, counts)):
            inside = ordered[number * own.window : (number + 1) * own.window]
            known = inside[joined.truth[inside] >= 0]
            windows.append(
                Window(
                    first_ms=int(rows.time[inside[0]]),
                    last_ms=int(rows.time[inside[-1]]),
                    summary=Summary(counts[number]),
                    verdict=verdict,
                    labelled=len(known),
                    right=int((joined.truth[known] == rows.label[known]).sum()),
                )
            )
        episodes = alarms(windows)
        examples = []
        if stream and episodes:
            shown = self._strangest(reference, ordered, episodes[-1], len(windows), own)
            images = self._images(stream(), list(shown))
            examples = [
                Example(window, images[row], classes[rows.label[row]], _truth(joined, classes, row))
                for row, window in shown.items()
            ]
        unknown = [name not in reference.scripts for name in joined.scripts]
        foreign = np.array([*unknown, False])[joined.script]
        return Analysis(
            reference=reference,
            windows=windows,
            episodes=episodes,
            examples=examples,
            gaps=records.gaps(rows.time[ordered], own.window, now_ms),
            faults=rows.faults | joined.faults,
            first_foreign_ms=int(rows.time[foreign].min()) if foreign.any() else None,
        )

    def _verdicts(
        self, reference: Reference, settings: drift.Settings, counts: np.ndarray
    ) -> list[Verdict]:
        """Return the verdicts on windows; the first ones may be those of the last call."""
        known: list[Verdict] = []
        if self.judged and self.judged[0] is reference and self.judged[1] == settings:
            pairs = zip(self.judged[2], counts, strict=False)
            other = (n for n, (old, new) in enumerate(pairs) if not np.array_equal(old, new))
            known = self.judged[3][: next(other, min(len(self.judged[2]), len(counts)))]
        before = known[-1] if known else None
        verdicts = [*known, *reference.verdicts(counts[len(known) :], settings, before)]
        self.judged = (reference, settings, counts, verdicts)
        return verdicts

    def _strangest(
        self,
        reference: Reference,
        ordered: np.ndarray,
        episode: Episode,
        window_count: int,
        own: Params,
    ) -> dict[int, int]:
        """Return the strangest rows of an alarm, spread over its windows, and their windows."""
        end = episode.ended or window_count
        spread = np.unique(np.linspace(episode.began, end - 1, own.examples).astype(int)).tolist()
        found: dict[int, int] = {}
        for window in spread:
            inside = np.sort(ordered[window * own.window : (window + 1) * own.window])
            strange = reference.strangeness(self.requests.bins()[inside])
            some = min(-(-own.examples // len(spread)), EXAMPLES_A_WINDOW)
            chosen = inside[np.argsort(-strange, kind="stable")[:some]]
            found |= dict.fromkeys(chosen.tolist(), window)
        return dict(list(found.items())[: own.examples])

    def _images(self, stream: Iterable[pa.RecordBatch], rows: list[int]) -> dict[int, np.ndarray]:
        """Return the images of rows of a stream."""
        found: dict[int, np.ndarray] = {}
        start = 0
        for batch in stream:
            inside = [row for row in rows if start <= row < start + len(batch)]
            if inside:
                chosen = batch.take(pa.array([row - start for row in inside]))
                images = records.images(chosen, self.image_size)
                found |= {row: image.copy() for row, image in zip(inside, images, strict=True)}
            start += len(batch)
        return found


def analyse(
    stream: Stream,
    labels: Iterable[pa.RecordBatch],
    reference: Reference,
    own: Params,
    classes: tuple[str, ...],
    image_size: int,
    now_ms: int | None = None,
) -> Analysis:
    """Return what happened, with examples; `stream` gives the same batches each time it is called.

    See `Monitor.analyse`.
    """
    monitor = Monitor(classes, image_size)
    for batch in stream():
        monitor.requests.add(batch)
    for batch in labels:
        monitor.labels.add(batch)
    return monitor.analyse(reference, own, now_ms, stream)


def _truth(joined: Joined, classes: tuple[str, ...], row: int) -> str | None:
    if joined.truth[row] < 0:
        return None
    return f"{joined.scripts[joined.script[row]]} {classes[joined.truth[row]]}"


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
