"""What production does now, for the live page: the last minute's requests, and the monitoring.

The router reports each request. What was collected, requests and labels, is read from the blob
store as it grows, and judged by the engine of `digits monitor`: both give the same verdict on the
same rows, but for the seconds that the page lags. Memory is bounded by the numbers below.
"""

import base64
import threading
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from azure.storage.blob import ContainerClient

from core import params
from core.errors import DigitsError
from core.statistics import wilson
from digits.monitoring import report
from digits.monitoring.analysis import Analysis, Monitor, Params, Window
from digits.monitoring.drift import Reference
from digits.production import records
from mlops.azure import collected
from mlops.production.monitor import LeftOut, labels, rows

REFERENCE = Path("data/monitoring/reference.json")
MINUTE = 60  # seconds that are looked back on
REQUESTS = 60_000  # an endpoint, of the last minute
KEPT = 200_000  # rows, and labels, an endpoint; of more, the last half as many are kept on
WINDOWS = 120  # the last, that are shown
RECENT, SHOWN = 500, 12  # digits: an endpoint, and of those the latest and the most foreign
LOOK_SECONDS = 1.0  # between two looks for what was collected
LOOK_BYTES = 16_000_000  # that are read at one look
ENDPOINTS = 8  # those asked last
Json = dict[str, Any]
Request = tuple[float, str, int, float]  # time, deployment ("": none), status, seconds it took


class Project:
    """The reference and the settings of a project, read again when their files change.

    What is missing is no error: production is shown, and the reason why it is not judged.
    """

    def __init__(self, root: Path) -> None:
        self.files = (root / REFERENCE, root / params.PATH)
        self.stamp: list[int] = []
        self.reference: Reference | None = None
        self.settings: Params | None = None
        self.task: params.Task | None = None  # None until params.yaml can be read
        self.scripts: list[str] = []
        self.unavailable_reason = ""  # why nothing is judged

    def refresh(self) -> None:
        """Read both files again if one of them changed."""
        stamp = [file.stat().st_mtime_ns if file.exists() else 0 for file in self.files]
        if stamp == self.stamp:
            return
        self.stamp, self.reference, self.settings, self.unavailable_reason = stamp, None, None, ""
        try:
            values = params.load(self.files[1])
            self.task = params.task(values)
            self.scripts = ["mnist", *params.foreign_scripts(values)]
            self.settings = params.section(Params, values, "monitor")
            self.reference = Reference.read(self.files[0])
        except DigitsError as error:
            self.unavailable_reason = f"Not judged: {error}"


@dataclass
class EndpointState:
    """All that is remembered of one endpoint."""

    rows: collected.Follower
    labels: collected.Follower
    monitor: Monitor | None = None  # None until params.yaml states what a digit is
    left: LeftOut = field(default_factory=LeftOut)
    recent: deque[Json] = field(default_factory=lambda: deque(maxlen=RECENT))
    looked: float = -LOOK_SECONDS
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=REQUESTS))

    def read(self, task: params.Task, container: ContainerClient) -> None:
        """Read what was collected since the last look; all again when a digit became another."""
        monitor, now = self.monitor, time.monotonic()
        if monitor is None or (monitor.classes, monitor.image_size) != (
            task.classes,
            task.image_size,
        ):
            self.monitor = monitor = Monitor(task.classes, task.image_size)
            self.left = LeftOut()
            for part in (self.recent, self.rows.read, self.labels.read):
                part.clear()
        elif now < self.looked + LOOK_SECONDS:
            return
        self.looked = now
        found = rows(self.rows.fresh(container, LOOK_BYTES), None, self.left)
        for batch in records.batches(found, records.REQUESTS):
            valid = monitor.requests.add(batch)
            last = np.flatnonzero(valid)[-RECENT:]
            self.recent.extend(batch.take(pa.array(last)).to_pylist())
        known = labels(self.labels.fresh(container, LOOK_BYTES), None, self.left)
        for batch in records.batches(known, records.LABELS):
            monitor.labels.add(batch)
        for kept in (monitor.requests, monitor.labels):
            if kept.count > KEPT:
                kept.forget(kept.count - KEPT // 2)


class Watch:
    """What is remembered of all endpoints; safe for threads."""

    def __init__(self, root: Path) -> None:
        """Judge by the project in `root`."""
        self.project = Project(root)
        self.lock = threading.Lock()  # held for moments: requests do not wait for the monitoring
        self.reading = threading.Lock()  # held while what was collected is read and judged
        self.endpoints: OrderedDict[str, EndpointState] = OrderedDict()
        self.lost, self.lost_reason = 0, ""  # collected requests that could not be kept

    def seen(self, endpoint: str) -> EndpointState:
        """Return what is remembered of an endpoint; the one that was silent longest is forgotten.

        The lock is held.
        """
        if endpoint not in self.endpoints:
            self.endpoints[endpoint] = EndpointState(
                rows=collected.Follower(collected.ROWS, endpoint),
                labels=collected.Follower(collected.LABELS, endpoint),
            )
        self.endpoints.move_to_end(endpoint)
        while len(self.endpoints) > ENDPOINTS:
            self.endpoints.popitem(last=False)
        return self.endpoints[endpoint]

    def request(self, endpoint: str, deployment: str, status: int, seconds: float) -> None:
        """Remember one request that was answered."""
        with self.lock:
            self.seen(endpoint).requests.append((time.time(), deployment, status, seconds))

    def lose(self, requests: int, reason: str) -> None:
        """Count collected requests that could not be kept."""
        with self.lock:
            if not self.lost:
                print(f"Collected requests are lost; scoring goes on. {reason}", flush=True)
            self.lost += requests
            self.lost_reason = reason

    def state(self, endpoint: str, live: set[str], container: ContainerClient) -> Json:
        """Return what is known of an endpoint, for the page: its script says what it shows.

        `live` are the deployments that get traffic; `container` has what is collected. Seconds
        are counted since the epoch, shares from 0 to 1, accuracies are [share, low, high];
        `monitoring` is what `digits monitor` states, None where nothing is judged.
        """
        now = time.time()
        with self.lock:
            seen = self.seen(endpoint)
            requests = [row for row in seen.requests if row[0] > now - MINUTE]
            lost, lost_reason = self.lost, self.lost_reason
        with self.reading:
            project = self.project
            project.refresh()
            if project.task:
                seen.read(project.task, container)
            analysis, reason = self.judge(seen, int(now * 1000))
            settings = project.settings
            found = answers(seen, live, settings.window if settings else RECENT) | {
                "limit": settings.alarm.windows_between_false_alarms if settings else None,
                "window": settings.window if settings else None,
                "monitoring": None,
                "windows": [],
                "expected": None,
            }
            if settings and analysis:
                found["windows"] = [shown(window) for window in analysis.windows[-WINDOWS:]]
                found["expected"] = expected(analysis)
                if live and analysis.windows:
                    found["monitoring"] = report.findings(analysis, settings)
            recent = list(seen.recent)
        most_foreign = nlargest(SHOWN, recent, key=lambda row: row["foreign"])
        return found | {
            "now": now,
            "lost": lost,
            "lost_reason": lost_reason,
            "minute": last_minute(requests, now),
            "reason": reason,
            "known_scripts": project.scripts,
            "recent": [digit(row) for row in recent[: -SHOWN - 1 : -1]],
            "strangest": [digit(row) for row in most_foreign],
        }

    def judge(self, seen: EndpointState, now_ms: int) -> tuple[Analysis | None, str]:
        """Return the analysis of what was collected, or the reason why there is none."""
        reference, settings = self.project.reference, self.project.settings
        if seen.monitor is None or reference is None or settings is None:
            return None, self.project.unavailable_reason
        try:
            return seen.monitor.analyse(reference, settings, now_ms), ""
        except DigitsError as error:
            return None, f"Not judged: {error}"


def answers(seen: EndpointState, live: set[str], window: int) -> Json:
    """Return what the models answered that answer now, whether they are judged or not.

    These are the last of each live deployment, or the last one, where none is live.
    """
    names: tuple[str, ...] = ()
    counts = np.zeros(0, np.int64)
    accuracies: dict[str, list[float]] = {}
    digits = doubled = damaged = right = labelled = 0
    if seen.monitor:
        scan = seen.monitor.requests
        found = scan.rows(None)
        digits, doubled = int(found.counts.sum()), found.faults["doubled"]
        damaged = found.faults["damaged"] + len(seen.left.damaged) + seen.left.clock
        ordered = found.ordered()
        places, last = np.unique(found.deployment[ordered][::-1], return_index=True)
        newest = zip(places.tolist(), ordered[::-1][last].tolist(), strict=True)
        running = [row for place, row in newest if found.deployments[place] in live]
        models = found.version[running or ordered[-1:]]
        chosen = ordered[np.isin(found.version[ordered], models)]
        names = scan.classes
        counts = np.bincount(found.label[chosen[-window:]], minlength=len(names))
        joined = seen.monitor.labels.join(found)
        known = chosen[joined.truth[chosen] >= 0]
        is_right = joined.truth[known] == found.label[known]
        right, labelled = int(is_right.sum()), len(known)
        for number, name in sorted(enumerate(joined.scripts), key=lambda script: script[1]):
            if len(inside := is_right[joined.script[known] == number]):
                accuracies[name] = [*wilson(int(inside.sum()), len(inside)), len(inside)]
    return {
        "digits": digits,
        "doubled": doubled,
        "damaged": damaged,
        "classes": dict(zip(names, counts.tolist(), strict=True)),
        "accuracy": wilson(right, labelled) if labelled else None,
        "labelled": labelled,
        "scripts": accuracies,
    }


def shown(window: Window) -> Json:
    """Return a window for the page."""
    verdict = window.verdict
    return {
        "ended": window.last_ms / 1000,
        "requests": window.requests,
        "labelled": window.labelled,
        "accuracy": wilson(window.right, window.labelled) if window.labelled else None,
        "estimated": verdict.accuracy,
        "strangers": verdict.strangers,
        "evidence": verdict.evidence,
        "drift": verdict.drift,
        "cause": min(verdict.p, key=lambda signal: verdict.p[signal]),
    }


def digit(row: Json) -> Json:
    """Return a row of REQUESTS for the page."""
    image = base64.b64encode(row["image"]).decode()
    return {"image": image} | {name: row[name] for name in ("digit", "confidence", "foreign")}


def expected(analysis: Analysis) -> list[float]:
    """Return the share of each class among the answers of the reference."""
    counts = analysis.reference.summary.classes
    shares: list[float] = (counts / counts.sum()).tolist()
    return shares


def last_minute(requests: list[Request], now: float) -> Json:
    """Return rates, latencies and statuses of a minute's requests: by deployment, by second."""
    by_deployment: dict[str, list[Request]] = {}
    by_second: dict[int, list[Request]] = {}
    for row in requests:
        by_deployment.setdefault(row[1], []).append(row)
        by_second.setdefault(int(now) - int(row[0]), []).append(row)
    seconds: list[Json] = []
    for ago in range(MINUTE, 0, -1):  # the second under way is left out
        rows = by_second.get(ago, [])
        counts = Counter(row[1] for row in rows)
        seconds.append({"ago": ago, "deployments": dict(counts)} | latency(rows))
    ten = sum(sum(second["deployments"].values()) for second in seconds[-10:])
    return latency(requests) | {
        "requests": len(requests),
        "rate": ten / 10,
        "statuses": dict(sorted(Counter(str(row[2]) for row in requests).items())),
        "deployments": {
            name: latency(rows)
            | {"requests": len(rows), "failed": len([row for row in rows if row[2] >= 500])}
            for name, rows in sorted(by_deployment.items())
        },
        "seconds": seconds,
    }


def latency(requests: list[Request]) -> Json:
    """Return median and 99th percentile in milliseconds, None of no request."""
    if not requests:
        return {"median_ms": None, "p99_ms": None}
    median, slow = np.percentile([row[3] for row in requests], [50, 99]) * 1000
    return {"median_ms": round(float(median), 2), "p99_ms": round(float(slow), 2)}
