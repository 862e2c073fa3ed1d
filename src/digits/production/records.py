"""Requests that production answered, one row an image, and the true labels that come later.

Parquet files of two schemas: stage simulate writes them, and what a data collector keeps is
brought to the first. A row's identity is `request_id` and `position`, the image's place in it;
with the same image too it is the same request, sent again: a client may use an id twice.
What enters may be damaged, doubled or in any order: `Rows` says which rows count, and how many
do not, and why. Memory holds one batch of images, and 31 bytes for each row.
"""

import base64
import datetime
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import DigitsError
from core.files import replacing

REQUESTS = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),  # when the request came
        ("request_id", pa.string()),
        ("position", pa.uint16()),
        ("deployment", pa.string()),
        ("model_version", pa.string()),
        ("digit", pa.string()),  # the most probable class by its name, as params.yaml's `classes`
        ("confidence", pa.float32()),  # its probability
        ("foreign", pa.float32()),  # how little it looks like the known digits, from 0 to 1
        ("image", pa.binary()),  # uint8 size x size, white on black, row by row
    ]
)
LABELS = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),  # when the label became known
        ("request_id", pa.string()),
        ("position", pa.uint16()),
        ("label", pa.string()),  # the true class by its name
        ("script", pa.string()),  # what it is written in: mnist or a key of params.yaml's `foreign`
    ]
)
ROWS_A_BATCH = 4096  # 3 MB of images of 28 x 28
FAULTS = ("damaged", "doubled", "clock", "other_version", "late", "out_of_order")
LATE_MS = 3_600_000  # behind a row that came before it: later than a request can take
GAP_CHANCE = 0.01  # that steady traffic has one gap as long as what is told
GAP_SECONDS = 30.0  # shorter ones are not told
SKEW_MS = 300_000  # that a server's clock may be ahead of this one, or a row may take to get here
POSITIONS = 2**16  # what a uint16 can tell apart
POSITION_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplier


def read(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file in batches; raise DigitsError when it is absent, damaged or another."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if not file.schema_arrow.equals(schema):
                raise ValueError(f"its columns are not {', '.join(schema.names)}")
            yield from file.iter_batches(ROWS_A_BATCH, use_threads=False)
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found; run `dvc repro` first") from None
    except (OSError, ValueError) as error:  # Arrow's errors are among them
        raise DigitsError(f"{path}: is damaged ({error}); run `dvc repro -f simulate`") from None


def write(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a Parquet file in batches; it is whole or absent."""
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def batches(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield rows as batches of a schema."""
    waiting: list[dict[str, Any]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == ROWS_A_BATCH:
            yield pa.RecordBatch.from_pylist(waiting, schema)
            waiting = []
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, schema)


class StoredElsewhereError(ValueError):
    """A line without rows: the collector stores large ones elsewhere."""


def collected(line: bytes) -> list[dict[str, Any]]:
    """Return the rows of REQUESTS in one line of a data collector, which may hold many requests.

    Raises ValueError if the line is damaged, StoredElsewhereError if its data is no list.
    """
    try:
        event = json.loads(line)
        common = {
            "time": _time(event["time"]),
            "deployment": _text(event["source"]).rsplit("/", 1)[-1],
        }
        if not isinstance(event.get("data"), list):
            raise StoredElsewhereError("its rows are stored elsewhere")
        return [
            common
            | {
                "request_id": _text(row["request_id"] or None),
                "position": _position(row["position"]),
                "model_version": _text(row["model_version"]),
                "digit": _text(row["digit"]),
                "confidence": float(row["confidence"]),
                "foreign": float(row["foreign"]),
                "image": base64.b64decode(row["image"], validate=True),
            }
            for row in event["data"]
        ]
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def labelled(line: bytes) -> list[dict[str, Any]]:
    """Return the row of LABELS in one line of JSON; raise ValueError if it is damaged."""
    try:
        row = json.loads(line)
        found: dict[str, Any] = {name: _text(row[name]) for name in LABELS.names if name in row}
        return [found | {"position": _position(row["position"]), "time": _time(row["time"])}]
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def merge(
    blobs: Iterable[Iterator[tuple[str, bytes]]],
    parse: Callable[[bytes], list[dict[str, Any]]],
    damaged: list[str],
    elsewhere: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of lines (place, content), each blob's in its order, by their times.

    `parse` is `collected` or `labelled`; `damaged` gets the places of lines that it cannot read,
    `elsewhere` those of lines whose rows are stored elsewhere.
    """

    def parsed(lines: Iterator[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
        for place, line in lines:
            try:
                yield from parse(line)
            except ValueError as error:
                places = elsewhere if isinstance(error, StoredElsewhereError) else damaged
                places.append(f"{place}: {error}"[:300])

    return heapq.merge(*map(parsed, blobs), key=lambda row: row["time"])


def _text(value: Any) -> str:
    if value is None:
        raise ValueError("null is no text")
    text = value if isinstance(value, str) else str(value)
    text.encode()  # half a character, which JSON can name, is a ValueError
    return text


def _position(value: Any) -> int:
    if type(value) is not int or not 0 <= value < POSITIONS:  # true is no number
        raise ValueError(f"position {value!r}")
    return value


def _time(value: Any) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(f"time {value!r} has no zone")
    return time.astimezone(datetime.UTC)


def identities(batch: pa.RecordBatch) -> np.ndarray:
    """Return a number for each row's request id and position, uint64 (n,).

    64 bits of a hash: among a million rows two share one with a chance of one in 30 million.
    """
    ids = batch["request_id"].fill_null("").to_numpy(zero_copy_only=False).astype(object)
    positions = batch["position"].fill_null(0).to_numpy(zero_copy_only=False)
    hashes: np.ndarray = pd.util.hash_array(ids, categorize=False)
    return hashes + POSITION_STEP * positions.astype(np.uint64)


@dataclass(frozen=True)
class Rows:
    """What is known of each row of a stream without its image, all (n,) in the stream's order.

    identity: uint64; time: int64, ms since 1970; label: int16, the answer as an index of classes;
    version, deployment: int16, indices of `versions` and `deployments`; counts: bool, whether the
    row is to be counted; other: bool, whether it is not because another model answered; faults:
    how many rows have which.
    """

    identity: np.ndarray
    time: np.ndarray
    label: np.ndarray
    version: np.ndarray
    deployment: np.ndarray
    counts: np.ndarray
    other: np.ndarray
    versions: list[str]
    deployments: list[str]
    faults: dict[str, int]

    def ordered(self) -> np.ndarray:
        """Return the indices of the rows that count in the order of their times."""
        chosen = np.flatnonzero(self.counts)
        return chosen[_by_time(self.time[chosen], self.deployment[chosen], self.deployments)]


def _by_time(time: np.ndarray, deployment: np.ndarray, deployments: list[str]) -> np.ndarray:
    """Return the order of rows (n,) by time, at one time by the name of the deployment.

    Deployments answer side by side: in which order their rows are read means nothing.
    """
    rank = np.argsort(np.argsort(np.array(deployments, object)))
    return np.lexsort((rank[deployment], time))


class Scan:
    """Reads a stream once, batch by batch; `rows` states which of the rows read so far count."""

    def __init__(self, classes: tuple[str, ...], image_size: int) -> None:
        self.classes, self.image_size = classes, image_size
        self.columns: dict[str, list[np.ndarray]] = {}
        self.names: dict[str, dict[str, int]] = {"model_version": {}, "deployment": {}}

    def add(self, batch: pa.RecordBatch) -> np.ndarray:
        """Read a batch; return which of its rows are valid, bool (n,)."""
        found = self.describe(batch)
        for name, values in found.items():
            self.columns.setdefault(name, []).append(values)
        return found["valid"]

    def describe(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return what is kept of a batch, arrays (n, ...)."""
        label = pc.index_in(batch["digit"], pa.array(self.classes))
        size = pc.equal(pc.binary_length(batch["image"]), self.image_size**2)
        valid = size.fill_null(False).to_numpy(zero_copy_only=False)
        for name in ("confidence", "foreign"):
            number = floats(batch[name])
            valid &= (number >= 0) & (number <= 1)
        for column in (*batch.columns, label):
            valid &= column.is_valid().to_numpy(zero_copy_only=False)
        time = batch["time"].cast(pa.int64()).fill_null(0)
        found = {
            "identity": identities(batch),
            "time": time.to_numpy(zero_copy_only=False),
            "label": label.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int16),
            "valid": valid,
            "image": _fingerprints(batch, valid, self.image_size),
        }
        for name, known in self.names.items():
            coded = batch[name].fill_null("").dictionary_encode()
            table = [known.setdefault(text, len(known)) for text in coded.dictionary.to_pylist()]
            indices = coded.indices.to_numpy(zero_copy_only=False)
            found[name] = np.array(table, np.int16)[indices]
        return found

    @property
    def count(self) -> int:
        return sum(map(len, self.columns.get("valid", [])))

    def column(self, name: str) -> np.ndarray:
        """Return one of the arrays that `describe` names, of all rows so far."""
        parts = self.columns.get(name, [])
        if len(parts) != 1:
            parts[:] = [np.concatenate(parts) if parts else np.zeros(0, np.int16)]
        return parts[0]

    def forget(self, count: int) -> None:
        """Forget the first rows."""
        for name in self.columns:
            self.columns[name] = [self.column(name)[count:].copy()]

    def rows(self, known_versions: set[str] | None, now_ms: int | None = None) -> Rows:
        """Return which rows count.

        Rows are not counted when they are damaged, come from a model that is not in
        `known_versions` (None: any), lie after `now_ms` or repeat one of an earlier time; late
        ones and those out of order are.
        """
        versions = list(self.names["model_version"])
        known = np.array([known_versions is None or name in known_versions for name in versions])
        valid, time = self.column("valid").astype(bool), self.column("time")
        version = self.column("model_version")
        future = valid & (time > now_ms) if now_ms is not None else np.zeros(len(time), bool)
        counts = valid & ~future
        other = counts.copy()
        other[counts] = ~known.astype(bool)[version[counts]]
        counts &= ~other
        doubled = np.zeros(len(time), bool)
        identity = self.column("identity")
        shared = pd.Series(identity[counts]).duplicated(keep=False)
        rows = np.flatnonzero(counts)[shared]
        deployment, deployments = self.column("deployment"), list(self.names["deployment"])
        rows = rows[_by_time(time[rows], deployment[rows], deployments)]
        sent = pd.DataFrame({"identity": identity[rows], "image": self.column("image")[rows]})
        doubled[rows] = sent.duplicated().to_numpy()
        counts &= ~doubled
        latest = np.maximum.accumulate(np.where(counts, time, np.iinfo(np.int64).min))
        behind = np.where(counts, latest - time, 0)
        late, early = behind > LATE_MS, (behind > 0) & (behind <= LATE_MS)
        faults = (~valid, doubled, future, other, late, early)
        return Rows(
            identity=identity,
            time=time,
            label=self.column("label"),
            version=version,
            deployment=deployment,
            counts=counts,
            other=other,
            versions=versions,
            deployments=deployments,
            faults={name: int(fault.sum()) for name, fault in zip(FAULTS, faults, strict=True)},
        )


def look(
    stream: Iterable[pa.RecordBatch],
    classes: tuple[str, ...],
    image_size: int,
    known_versions: set[str] | None,
    now_ms: int | None = None,
) -> Rows:
    """Read a stream once and return which of its rows count; see `Scan.rows`."""
    scan = Scan(classes, image_size)
    for batch in stream:
        scan.add(batch)
    return scan.rows(known_versions, now_ms)


def _fingerprints(batch: pa.RecordBatch, valid: np.ndarray, image_size: int) -> np.ndarray:
    """Return a number for each row's image, uint64 (n,); zero where the row is damaged."""
    found = np.zeros(len(batch), np.uint64)
    pixels = valid_images(batch, valid, image_size)
    flat = pixels.reshape(len(pixels), image_size**2)
    words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view(np.uint64)  # (n, words)
    found[valid] = words @ np.full(words.shape[1], POSITION_STEP).cumprod()
    return found


def valid_images(batch: pa.RecordBatch, valid: np.ndarray, image_size: int) -> np.ndarray:
    """Return the images of the valid rows of a batch, uint8 (valid, size, size)."""
    return images(batch if valid.all() else batch.filter(pa.array(valid)), image_size)


def floats(column: pa.Array) -> np.ndarray:
    """Return a column as float32 (n,), NaN where it has no value."""
    return column.cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False)


def images(batch: pa.RecordBatch, image_size: int) -> np.ndarray:
    """Return the images of whole rows, uint8 (n, size, size), without a copy."""
    column = batch["image"]
    ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]
    pixels = np.frombuffer(column.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    return pixels.reshape(len(column), image_size, image_size)


def gaps(times_ms: np.ndarray, window: int, now_ms: int | None = None) -> list[tuple[int, int]]:
    """Return the gaps in sorted times (n,) that traffic as steady as around them would not have.

    Images of one time count as one request. For requests at random moments the longest of n gaps
    exceeds m * log(n / GAP_CHANCE) with the chance GAP_CHANCE, m being the mean gap; it is taken
    from the median of `window` around. The last gap is that until now, if now is known.
    """
    times_ms = np.unique(times_ms)
    times, between = times_ms.tolist(), np.diff(times_ms)
    found, limit = [], np.inf
    for start in range(0, len(between), window):
        around = between[max(0, min(start, len(between) - window)) :][:window]
        usual = float(np.median(around)) / np.log(2)
        limit = max(usual * np.log(len(times) / GAP_CHANCE), GAP_SECONDS * 1000)
        inside = np.flatnonzero(between[start : start + window] > limit)
        found += [(times[i], times[i + 1]) for i in (start + inside).tolist()]
    if now_ms is not None and times and now_ms - times[-1] > limit + SKEW_MS:
        found.append((times[-1], now_ms))
    return found
