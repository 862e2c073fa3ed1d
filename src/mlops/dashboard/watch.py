"""The state of production for the live page: requests of the last minute, and monitoring.

Input: each request, which the router reports, and the collected requests and labels, which are read
from the blob store. Output: the state as JSON. The analysis is that of `digits monitor`: both give
the same result for the same rows, which the page reads some seconds later. Memory is bounded by
the constants below.
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
MINUTE = 60  # seconds
REQUESTS = 60_000  # per endpoint, in the last minute
MAX_ROWS = 200_000  # rows, and labels, per endpoint; above, all but the last half are deleted
WINDOWS = 120  # shown
RECENT, SHOWN = 500, 12  # digits kept per endpoint; the number shown in each list
POLL_SECONDS = 1.0  # between two reads of collected data
POLL_BYTES = 16_000_000  # per read
ENDPOINTS = 8  # the most recently used ones
Json = dict[str, Any]
Request = tuple[float, str, int, float]  # time, deployment ("": none), status, seconds


class Project:
    """The reference and the settings of a project, read again when their files change.

    If they are missing or invalid, the page shows production without monitoring, and the reason.
    """

    def __init__(self, root: Path) -> None:
        self.files = (root / REFERENCE, root / params.PATH)
        self.stamp: list[int] = []
        self.reference: Reference | None = None
        self.settings: Params | None = None
        self.task: params.Task | None = None  # None until params.yaml can be read
        self.scripts: list[str] = []
        self.item = "digit"  # what params.yaml calls one image
        self.unavailable_reason = ""  # why there is no monitoring

    def refresh(self) -> None:
        """Read both files again if one of them has changed."""
        stamp = [file.stat().st_mtime_ns if file.exists() else 0 for file in self.files]
        if stamp == self.stamp:
            return
        self.stamp, self.reference, self.settings, self.unavailable_reason = stamp, None, None, ""
        try:
            values = params.load(self.files[1])
            self.item = params.names(values).item
            self.task = params.task(values)
            self.scripts = ["mnist", *params.foreign_scripts(values)]
            self.settings = params.section(Params, values, "monitor")
            self.reference = Reference.read(self.files[0])
        except (DigitsError, OSError) as error:
            self.unavailable_reason = f"No monitoring: {error}"


@dataclass
class EndpointState:
    """The state of an endpoint."""

    rows: collected.Follower
    labels: collected.Follower
    monitor: Monitor | None = None  # None until params.yaml can be read
    left: LeftOut = field(default_factory=LeftOut)
    recent: deque[Json] = field(default_factory=lambda: deque(maxlen=RECENT))
    polled: float = -POLL_SECONDS
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=REQUESTS))

    def read(self, task: params.Task, container: ContainerClient) -> None:
        """Read newly collected data; read all again when classes or image size have changed."""
        monitor, now = self.monitor, time.monotonic()
        if monitor is None or (monitor.classes, monitor.image_size) != (
            task.classes,
            task.image_size,
        ):
            self.monitor = monitor = Monitor(task.classes, task.image_size)
            self.left = LeftOut()
            for part in (self.recent, self.rows.read, self.labels.read):
                part.clear()
        elif now < self.polled + POLL_SECONDS:
            return
        self.polled = now
        found = rows(self.rows.fresh(container, POLL_BYTES), None, self.left)
        for batch in records.batches(found, records.REQUESTS):
            valid = monitor.requests.add(batch)
            last = np.flatnonzero(valid)[-RECENT:]
            self.recent.extend(batch.take(pa.array(last)).to_pylist())
        known = labels(self.labels.fresh(container, POLL_BYTES), None, self.left)
        for batch in records.batches(known, records.LABELS):
            monitor.labels.add(batch)
        for kept in (monitor.requests, monitor.labels):
            if kept.count > MAX_ROWS:
                kept.forget(kept.count - MAX_ROWS // 2)


class LiveState:
    """The state of all endpoints; thread-safe."""

    def __init__(self, root: Path) -> None:
        """Use the reference and the settings of the project in `root`."""
        self.project = Project(root)
        self.project.refresh()
        self.lock = threading.Lock()  # held briefly: requests do not wait for the monitoring
        self.reading = threading.Lock()  # held while collected data is read and analysed
        self.endpoints: OrderedDict[str, EndpointState] = OrderedDict()
        self.lost, self.lost_reason = 0, ""  # requests that could not be collected

    def seen(self, endpoint: str) -> EndpointState:
        """Return the state of an endpoint; delete that of the least recently used one.

        The caller holds the lock.
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
        """Record an answered request."""
        with self.lock:
            self.seen(endpoint).requests.append((time.time(), deployment, status, seconds))

    def lose(self, requests: int, reason: str) -> None:
        """Count requests that could not be collected."""
        with self.lock:
            if not self.lost:
                print(f"Collected requests are lost; scoring goes on. {reason}", flush=True)
            self.lost += requests
            self.lost_reason = reason

    def state(self, endpoint: str, live: set[str], container: ContainerClient) -> Json:
        """Return the state of an endpoint, as page.js expects it.

        `live` are the deployments with traffic; `container` has the collected data. Times are
        seconds since 1970, shares are from 0 to 1, accuracies are [share, low, high]. `monitoring`
        are the values of `digits monitor --json`, or None.
        """
        now = time.time()
        with self.lock:
            seen = self.seen(endpoint)
            requests = [row for row in seen.requests if row[0] > now - MINUTE]
            lost, lost_reason = self.lost, self.lost_reason
        with self.reading:
            project = self.project
            project.refresh()
            try:
                if project.task:
                    seen.read(project.task, container)
            except collected.DeletedError:  # with the endpoint; read everything again
                seen.monitor = None
                seen.recent.clear()
            analysis, reason = self.analyse(seen, int(now * 1000))
            settings = project.settings
            found = predictions(seen, live, settings.window if settings else RECENT) | {
                "limit": settings.alarm.windows_between_false_alarms if settings else None,
                "window": settings.window if settings else None,
                "monitoring": None,
                "windows": [],
                "expected": None,
            }
            if settings and analysis:
                found["windows"] = [window_state(window) for window in analysis.windows[-WINDOWS:]]
                counts = analysis.reference.histograms.classes
                found["expected"] = (counts / counts.sum()).tolist()
                if live and analysis.windows:
                    found["monitoring"] = report.findings(analysis, settings)
            recent = list(seen.recent)
        most_anomalous = nlargest(SHOWN, recent, key=lambda row: row["ood_score"])
        return found | {
            "now": now,
            "lost": lost,
            "lost_reason": lost_reason,
            "minute": last_minute(requests, now),
            "reason": reason,
            "known_scripts": project.scripts,
            "recent": [digit(row) for row in recent[: -SHOWN - 1 : -1]],
            "most_anomalous": [digit(row) for row in most_anomalous],
        }

    def analyse(self, seen: EndpointState, now_ms: int) -> tuple[Analysis | None, str]:
        """Return the analysis of the collected data, or the reason why there is none."""
        reference, settings = self.project.reference, self.project.settings
        if seen.monitor is None or reference is None or settings is None:
            return None, self.project.unavailable_reason
        try:
            return seen.monitor.analyse(reference, settings, now_ms), ""
        except DigitsError as error:
            return None, f"No monitoring: {error}"


def predictions(seen: EndpointState, live: set[str], window: int) -> Json:
    """Return counts and accuracies of the active models, independent of the monitoring.

    A model is active if it gave the last answer of a live deployment, or the last answer of all if
    no deployment is live.
    """
    names: tuple[str, ...] = ()
    counts = np.zeros(0, np.int64)
    accuracies: dict[str, list[float]] = {}
    digits = duplicate = corrupted = tryouts = right = labelled = 0
    if seen.monitor:
        scan = seen.monitor.requests
        found = scan.rows(None)
        digits, duplicate = int(found.valid.sum()), found.issues["duplicate"]
        tryouts = found.issues["tryout"]
        corrupted = found.issues["corrupted"] + len(seen.left.damaged) + seen.left.clock
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
        "duplicate": duplicate,
        "corrupted": corrupted,
        "elsewhere": len(seen.left.elsewhere),
        "tryouts": tryouts,
        "classes": list(zip(names, counts.tolist(), strict=True)),
        "accuracy": wilson(right, labelled) if labelled else None,
        "labelled": labelled,
        "scripts": accuracies,
    }


def window_state(window: Window) -> Json:
    """Return a window for the page."""
    result = window.result
    return {
        "ended": window.last_ms / 1000,
        "requests": window.requests,
        "labelled": window.labelled,
        "accuracy": wilson(window.correct, window.labelled) if window.labelled else None,
        "estimated": result.accuracy,
        "ood_share": result.ood_share,
        "evidence": result.evidence,
        "drift": result.drift,
        "signal": min(result.p, key=lambda signal: result.p[signal]),
    }


def digit(row: Json) -> Json:
    """Return a row of REQUESTS for the page."""
    found = {name: row[name] for name in ("digit", "confidence", "ood_score")}
    found["image"] = base64.b64encode(row["image"]).decode()
    return found | {"tryout": row["request_id"].startswith(records.TRYOUT)}


def last_minute(requests: list[Request], now: float) -> Json:
    """Return rates, latencies and statuses of a minute's requests: by deployment, by second."""
    by_deployment: dict[str, list[Request]] = {}
    by_second: dict[int, list[Request]] = {}
    for row in requests:
        by_deployment.setdefault(row[1], []).append(row)
        by_second.setdefault(int(now) - int(row[0]), []).append(row)
    seconds: list[Json] = []
    for ago in range(MINUTE, 0, -1):  # without the current second
        rows = by_second.get(ago, [])
        counts = Counter(row[1] for row in rows)
        seconds.append({"ago": ago, "deployments": dict(counts)} | latency(rows))
    return latency(requests) | {
        "requests": len(requests),
        "statuses": dict(sorted(Counter(str(row[2]) for row in requests).items())),
        "deployments": {
            name: latency(rows)
            | {"requests": len(rows), "failed": len([row for row in rows if row[2] >= 500])}
            for name, rows in sorted(by_deployment.items())
        },
        "seconds": seconds,
    }


def latency(requests: list[Request]) -> Json:
    """Return median and 99th percentile in milliseconds, None without requests."""
    if not requests:
        return {"median_ms": None, "p99_ms": None}
    median, slow = np.percentile([row[3] for row in requests], [50, 99]) * 1000
    return {"median_ms": round(float(median), 2), "p99_ms": round(float(slow), 2)}
