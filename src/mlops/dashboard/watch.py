"""What production does now: the last minute's requests, windows of answers, labels as they come.

The router reports each request, the collector hands its rows over, labels are read from the blob
store; the page asks for `state`.
Memory is bounded: all that is kept stands in rings of the lengths below, for a few endpoints.
"""

import base64
import threading
import time
import zlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any

import numpy as np
from azure.core.exceptions import AzureError
from azure.storage.blob import ContainerClient
from scipy.stats import binomtest

from digits.monitoring.drift import Verdict
from digits.production import records
from mlops.dashboard.detector import Detector

MINUTE = 60  # seconds that are looked back on
REQUESTS = 60_000  # an endpoint, of the last minute
AWAITED = 100_000  # answers an endpoint whose labels may still come
WINDOWS = 120  # an endpoint
FILLING = 4  # windows an endpoint that are not full: of what answered last
RECENT, SHOWN = 500, 12  # digits: an endpoint, and of those the latest and the most foreign
LOOK_SECONDS = 1.0  # between two looks for labels
LABEL_BYTES = 16_000_000  # of a blob that are read at one look
ENDPOINTS = 8  # those asked last
SCRIPTS = 64  # an endpoint, of all models together
Json = dict[str, Any]
Request = tuple[float, str, int, float]  # time, deployment ("": none), status, seconds it took


@dataclass
class Window:
    """Consecutive answers of one model; its labels may come when it is long over."""

    deployment: str
    version: str  # of the model
    began: float
    ended: float = 0.0
    digits: int = 0
    classes: Counter[str] = field(default_factory=Counter)  # predicted
    verdict: Verdict | None = None  # what the detector says, where it knows the model
    strangers: float | None = None  # share of digits that the model does not know, estimated
    estimated: float | None = None  # accuracy, before labels come
    since: float = 0.0  # when the drift of an alarm began
    at_least: bool = True  # it may have begun before: that is the first window of this place
    right: int = 0
    labelled: int = 0

    @property
    def place(self) -> tuple[str, str]:
        """Where it belongs."""
        return self.deployment, self.version

    def shown(self) -> Json:
        """Return it for the page."""
        row = dict(vars(self)) | {"accuracy": interval(self.right, self.labelled)}
        if found := self.verdict:
            cause = min(found.p, key=lambda signal: found.p[signal])
            row["verdict"] = {"evidence": found.evidence, "drift": found.drift, "cause": cause}
        return row


@dataclass
class Seen:
    """All that is remembered of one endpoint."""

    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=REQUESTS))
    answers: OrderedDict[tuple[str, int], list[Any]] = field(default_factory=OrderedDict)
    filling: dict[tuple[str, str], tuple[Window, list[Json]]] = field(default_factory=dict)
    windows: deque[Window] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    recent: deque[Json] = field(default_factory=lambda: deque(maxlen=RECENT))
    digits: int = 0
    doubled: int = 0
    # [right, labelled] of each model version and script, the latest last
    scripts: OrderedDict[tuple[str, str], list[int]] = field(default_factory=OrderedDict)
    damaged: int = 0


def interval(right: int, of: int) -> list[float] | None:
    """Return a share and its 95 % interval (Wilson's), or None of nothing."""
    if not of:
        return None
    found = binomtest(right, of).proportion_ci(0.95, method="wilson")
    return [right / of, float(found.low), float(found.high)]


class Watch:
    """What is remembered of all endpoints; safe for threads."""

    def __init__(self, detector: Detector) -> None:
        """Let the detector judge each full window."""
        self.detector = detector
        self.lock = threading.Lock()
        self.endpoints: OrderedDict[str, Seen] = OrderedDict()
        self.lost, self.lost_reason = 0, ""  # collected requests that could not be kept

    def seen(self, endpoint: str) -> Seen:
        """Return what is remembered of an endpoint; the one that was silent longest is forgotten.

        The lock is held.
        """
        found = self.endpoints.setdefault(endpoint, Seen())
        self.endpoints.move_to_end(endpoint)
        while len(self.endpoints) > ENDPOINTS:
            self.endpoints.popitem(last=False)
        return found

    def request(self, endpoint: str, deployment: str, status: int, seconds: float) -> None:
        """Remember one request that was answered."""
        with self.lock:
            self.seen(endpoint).requests.append((time.time(), deployment, status, seconds))

    def rows(self, endpoint: str, deployment: str, request_id: str, rows: list[Json]) -> None:
        """Remember the answers of one request; one sent again, its images too, counts once."""
        with self.lock:
            seen = self.seen(endpoint)
            for position, row in enumerate(rows):
                try:
                    pixels = np.frombuffer(base64.b64decode(row["image"]), np.uint8)
                    kept = {
                        "image": pixels,
                        "digit": str(row["digit"]),
                        "confidence": float(row["confidence"]),
                        "foreign": float(row["foreign"]),
                    }
                    version = str(row["model_version"])
                    if not self.detector.reads(kept):
                        raise ValueError("params.yaml names another size or other classes")
                except (ValueError, KeyError, TypeError):
                    seen.damaged += 1
                    continue
                key, image = (request_id, position), zlib.crc32(pixels.tobytes())
                known = seen.answers.get(key) if request_id else None
                if known and known[2] == image:
                    seen.doubled += 1
                    continue
                seen.digits += 1
                seen.recent.append(kept | {"image": row["image"]})
                window = self.add(seen, (deployment, version), kept)
                # A label of an id that images share would tell of one of them, nobody knows which.
                seen.answers[key] = [kept["digit"], None if known else window, image]
                if len(seen.answers) > AWAITED:
                    seen.answers.popitem(last=False)

    def add(self, seen: Seen, place: tuple[str, str], row: Json) -> Window:
        """Put an answer into its window and return that; close it when it is full."""
        window, rows = seen.filling.pop(place, (Window(*place, began=time.time()), []))
        seen.filling[place] = (window, rows)  # the last to answer stands last
        if len(seen.filling) > FILLING:
            del seen.filling[next(iter(seen.filling))]
        rows.append(row)
        window.digits += 1
        window.classes[row["digit"]] += 1
        if window.digits >= self.detector.window:
            del seen.filling[place]
            window.ended = time.time()
            own = (one for one in reversed(seen.windows) if one.place == place)
            before = next((one for one in own if one.verdict), None)
            last = before.verdict if before else None
            found = self.detector.judge(rows, window.version, last)
            window.verdict, window.strangers, window.estimated = found
            window.since, window.at_least = window.began, before is None
            if before and not (window.verdict and window.verdict.began):
                window.since, window.at_least = before.since, before.at_least
            seen.windows.append(window)
        return window

    def lose(self, requests: int, reason: str) -> None:
        """Count collected requests that could not be kept."""
        with self.lock:
            if not self.lost:
                print(f"Collected requests are lost; scoring goes on. {reason}", flush=True)
            self.lost += requests
            self.lost_reason = reason

    def labels(self, endpoint: str, lines: list[bytes]) -> None:
        """Compare true labels, a line of JSON each, with the answers; each counts once."""
        with self.lock:
            seen = self.seen(endpoint)
            for line in lines:
                try:
                    label = records.labelled(line)
                    key = (label["request_id"], label["position"])
                    truth, script = label["label"], label["script"]
                    if not self.detector.has(truth):
                        raise ValueError("params.yaml names other classes")
                except (ValueError, KeyError):
                    seen.damaged += 1
                    continue
                answer = seen.answers.get(key)
                if not answer or answer[1] is None:
                    continue  # of before this began, or told again
                digit, window, _ = answer
                answer[1] = None
                right = digit == truth
                window.labelled += 1
                window.right += right
                counts = seen.scripts.setdefault((window.version, script), [0, 0])
                counts[0] += right
                counts[1] += 1
                seen.scripts.move_to_end((window.version, script))
                if len(seen.scripts) > SCRIPTS:
                    seen.scripts.popitem(last=False)

    def state(self, endpoint: str) -> Json:
        """Return what is known of an endpoint, for the page: the page's script says what it shows.

        Seconds are counted since the epoch, shares from 0 to 1, accuracies are [share, low, high].
        """
        now = time.time()
        self.detector.refresh()
        with self.lock:
            seen = self.endpoints.get(endpoint) or Seen()
            requests = [row for row in seen.requests if row[0] > now - MINUTE]
            fresh = {row[1] for row in requests}  # what answered in this minute; or else the last
            places = [place for place in seen.filling if place[0] in fresh]
            places = places or list(seen.filling)[-1:]
            newest = dict(places)  # one of a deployment
            filling = [seen.filling[place][0] for place in sorted(newest.items())]
            windows = [one.shown() for one in seen.windows]
            latest = [*filling, *list(seen.windows)[-max(1, len(filling)) :]]
            counts = [window.classes for window in latest]
            versions = {one.deployment: one.version for one in latest[::-1]}
            scripts: dict[str, Counter[int]] = {}  # of the models that answer
            for (version, script), count in seen.scripts.items():
                if version in versions.values():
                    scripts.setdefault(script, Counter()).update(dict(enumerate(count)))
            known = {
                "digits": seen.digits,
                "lost": self.lost,
                "lost_reason": self.lost_reason,
                "doubled": seen.doubled,
                "damaged": seen.damaged,
                "recent": list(seen.recent)[: -SHOWN - 1 : -1],
                "strangest": nlargest(SHOWN, seen.recent, key=lambda row: row["foreign"]),
                "filling": [window.shown() for window in filling],
            }
        right, labelled = (sum(count[i] for count in scripts.values()) for i in (0, 1))
        named = {
            name: [*(interval(count[0], count[1]) or ()), count[1]]
            for name, count in scripts.items()
        }
        return known | {
            "now": now,
            "window_digits": self.detector.window,
            "minute": last_minute(requests, now),
            "windows": windows,
            "expected": self.detector.expected(latest[-1].version if latest else ""),
            "known_scripts": self.detector.scripts,
            "limit": self.detector.limit,
            "classes": dict(sum(counts, Counter())),
            "versions": versions,
            "accuracy": interval(right, labelled),
            "labelled": labelled,
            "scripts": dict(sorted(named.items())),
        }


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


class Labels:
    """New lines of the labels in the blob store: `labels/ENDPOINT/YYYY/MM/DD/HH.jsonl`."""

    def __init__(self, container: ContainerClient) -> None:
        """Read from the beginning on."""
        self.container = container
        self.lock = threading.Lock()
        self.read: dict[str, int] = {}  # bytes, by blob
        self.looked: dict[str, float] = {}  # by endpoint

    def fresh(self, endpoint: str) -> list[bytes]:
        """Return the lines that came since the last look; none within LOOK_SECONDS of it."""
        lines: list[bytes] = []
        with self.lock:
            now = time.monotonic()
            if now < self.looked.get(endpoint, -LOOK_SECONDS) + LOOK_SECONDS or not endpoint:
                return lines
            self.looked[endpoint] = now
            try:
                for blob in self.container.list_blobs(
                    name_starts_with=f"labels/{endpoint}/", retry_total=0
                ):
                    start = self.read.get(blob.name, 0)
                    if blob.size > start:
                        length = min(blob.size - start, LABEL_BYTES)
                        part = self.container.download_blob(blob.name, start, length, retry_total=0)
                        whole = part.readall().rpartition(b"\n")[0]
                        lines += whole.split(b"\n") if whole else []
                        self.read[blob.name] = start + len(whole) + bool(whole)
            except AzureError:
                pass  # the store is away: what is there waits
        return lines
