"""Records of production: answered requests, one row per image, and their late true labels.

Input: Parquet files of the schemas below, as stage simulate writes them, or lines of a data
collector. Output: Rows, which states for each row whether it is valid, and counts data-quality
issues. Rows may be corrupted, duplicate or in any order. A row is identified by `request_id` and
`position`, the index of the image in its request. Rows with equal identity and image are
duplicates; a client may reuse an id for another image. Memory holds one batch of images, and 31
bytes per row.
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
from core.files import atomic_write
from core.tables import check_regular, limited_memory

REQUESTS = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),  # of the request
        ("request_id", pa.string()),
        ("position", pa.uint16()),
        ("deployment", pa.string()),
        ("model_version", pa.string()),
        ("digit", pa.string()),  # name of the most probable class, from params.yaml's `classes`
        ("confidence", pa.float32()),  # its probability
        ("ood_score", pa.float32()),  # out-of-distribution score, from 0 to 1
        ("image", pa.binary()),  # uint8 size x size, white on black, row by row
    ]
)
LABELS = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),  # at which the label became known
        ("request_id", pa.string()),
        ("position", pa.uint16()),
        ("label", pa.string()),  # name of the true class
        ("script", pa.string()),  # mnist or a key of params.yaml's section `foreign`
    ]
)
ROWS_PER_BATCH = 4096  # 3 MB of images of 28 x 28
ISSUES = ("corrupted", "duplicate", "wrong_clock", "other_model", "late", "out_of_order", "tryout")
TRYOUT = "try-"  # prefix of the request ids of the page of `digits local`
LATE_MS = 3_600_000  # a row is late if its time is this much before that of an earlier row
GAP_PROBABILITY = 0.01  # that a gap is reported in steady traffic
GAP_SECONDS = 30.0  # minimum duration of a gap
SKEW_MS = 300_000  # maximum clock difference of a server, or delay of a row
POSITIONS = 2**16  # number of values of a uint16
HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplier


def read(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file in batches.

    Raises DigitsError when it is missing or corrupted, or has another schema.
    """
    try:
        check_regular(path)
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if not file.schema_arrow.equals(schema):
                raise ValueError(f"expected the columns {', '.join(schema.names)}")
            rows = file.iter_batches(ROWS_PER_BATCH, use_threads=False)
            while True:
                with limited_memory(path):
                    batch = next(rows, None)
                if batch is None:
                    return
                yield batch
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found. Run `dvc repro` first.") from None
    except (OSError, ValueError) as error:  # including Arrow's errors
        why = " ".join(str(error).split())[:300]
        raise DigitsError(f"{path}: is corrupted ({why}). Run `dvc repro -f simulate`.") from None


def write(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a Parquet file in batches, atomically."""
    with atomic_write(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def batches(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield rows as batches of a schema."""
    waiting: list[dict[str, Any]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == ROWS_PER_BATCH:
            yield pa.RecordBatch.from_pylist(waiting, schema)
            waiting = []
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, schema)


class StoredElsewhereError(ValueError):
    """A line without rows: the collector stores large ones elsewhere."""


def parse_requests(line: bytes) -> list[dict[str, Any]]:
    """Return the rows of REQUESTS in a line of a data collector, which may hold many requests.

    Raises ValueError when the line is corrupted, StoredElsewhereError when its data is not a list.
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
                "ood_score": float(row["ood_score"]),
                "image": base64.b64decode(row["image"], validate=True),
            }
            for row in event["data"]
        ]
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def parse_label(line: bytes) -> list[dict[str, Any]]:
    """Return the row of LABELS in a line of JSON; raise ValueError when it is corrupted."""
    try:
        row = json.loads(line)
        found: dict[str, Any] = {name: _text(row[name]) for name in LABELS.names if name in row}
        return [found | {"position": _position(row["position"]), "time": _time(row["time"])}]
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def merge(
    blobs: Iterable[Iterator[tuple[str, bytes]]],
    parse: Callable[[bytes], list[dict[str, Any]]],
    errors: list[str],
    elsewhere: list[str],
) -> Iterator[dict[str, Any]]:
    """Merge the lines (place, content) of several blobs, and yield their rows by time.

    `parse` is `parse_requests` or `parse_label`. The place and error of each line that it cannot
    parse is appended to `errors`, or to `elsewhere` if its rows are stored elsewhere.
    """

    def parsed(lines: Iterator[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
        for place, line in lines:
            try:
                yield from parse(line)
            except ValueError as error:
                places = elsewhere if isinstance(error, StoredElsewhereError) else errors
                places.append(f"{place}: {error}"[:300])

    return heapq.merge(*map(parsed, blobs), key=lambda row: row["time"])


def _text(value: Any) -> str:
    if value is None:
        raise ValueError("expected text, found null")
    text = value if isinstance(value, str) else str(value)
    text.encode()  # a lone surrogate, which JSON can contain, raises a ValueError
    return text


def _position(value: Any) -> int:
    if type(value) is not int or not 0 <= value < POSITIONS:  # JSON's true is no index
        raise ValueError(f"position {value!r}")
    return value


def _time(value: Any) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(f"time {value!r} has no time zone")
    return time.astimezone(datetime.UTC)


def identities(batch: pa.RecordBatch) -> np.ndarray:
    """Return a hash of each row's request id and position, uint64 (n,).

    The probability of a collision among a million rows is one in 30 million.
    """
    ids = batch["request_id"].fill_null("").to_numpy(zero_copy_only=False).astype(object)
    positions = batch["position"].fill_null(0).to_numpy(zero_copy_only=False)
    hashes: np.ndarray = pd.util.hash_array(ids, categorize=False)
    return hashes + HASH_MULTIPLIER * positions.astype(np.uint64)


@dataclass(frozen=True)
class Rows:
    """The rows of a stream without images; all arrays (n,), in the stream's order.

    identity: uint64; time: int64, ms since 1970; label: int16, index of the predicted class;
    version, deployment: int16, indices of `versions` and `deployments`; valid: bool, whether the
    row is counted; other_model: bool, whether it is ignored because another model answered;
    tryout: bool, whether somebody tried the model on the page; issues: the number of rows with each
    of ISSUES.
    """

    identity: np.ndarray
    time: np.ndarray
    label: np.ndarray
    version: np.ndarray
    deployment: np.ndarray
    valid: np.ndarray
    other_model: np.ndarray
    tryout: np.ndarray
    versions: list[str]
    deployments: list[str]
    issues: dict[str, int]

    def ordered(self) -> np.ndarray:
        """Return the indices of the valid rows, sorted by time."""
        chosen = np.flatnonzero(self.valid)
        return chosen[_by_time(self.time[chosen], self.deployment[chosen], self.deployments)]


def _by_time(time: np.ndarray, deployment: np.ndarray, deployments: list[str]) -> np.ndarray:
    """Return the order of rows (n,) by time, then by the name of the deployment.

    The order in which rows of parallel deployments are read has no meaning.
    """
    rank = np.argsort(np.argsort(np.array(deployments, object)))
    return np.lexsort((rank[deployment], time))


class Scan:
    """Reads a stream once, batch by batch; `rows` returns the rows read so far."""

    def __init__(self, classes: tuple[str, ...], image_size: int) -> None:
        self.classes, self.image_size = classes, image_size
        self.columns: dict[str, list[np.ndarray]] = {}
        self.names: dict[str, dict[str, int]] = {"model_version": {}, "deployment": {}}

    def add(self, batch: pa.RecordBatch) -> np.ndarray:
        """Read a batch; return which of its rows are well-formed, bool (n,)."""
        found = self.describe(batch)
        for name, values in found.items():
            self.columns.setdefault(name, []).append(values)
        return found["well_formed"]

    def describe(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return the arrays (n, ...) that are stored of a batch."""
        label = pc.index_in(batch["digit"], pa.array(self.classes))
        size = pc.equal(pc.binary_length(batch["image"]), self.image_size**2)
        well_formed = size.fill_null(False).to_numpy(zero_copy_only=False)
        for name in ("confidence", "ood_score"):
            number = floats(batch[name])
            well_formed &= (number >= 0) & (number <= 1)
        for column in (*batch.columns, label):
            well_formed &= column.is_valid().to_numpy(zero_copy_only=False)
        time = batch["time"].cast(pa.int64()).fill_null(0)
        found = {
            "identity": identities(batch),
            "time": time.to_numpy(zero_copy_only=False),
            "label": label.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int16),
            "well_formed": well_formed,
            "tryout": np.asarray(pc.starts_with(batch["request_id"].fill_null(""), TRYOUT)),
            "image": _fingerprints(batch, well_formed, self.image_size),
        }
        for name, known in self.names.items():
            coded = batch[name].fill_null("").dictionary_encode()
            table = [known.setdefault(text, len(known)) for text in coded.dictionary.to_pylist()]
            indices = coded.indices.to_numpy(zero_copy_only=False)
            found[name] = np.array(table, np.int16)[indices]
        return found

    @property
    def count(self) -> int:
        return sum(map(len, self.columns.get("well_formed", [])))

    def column(self, name: str) -> np.ndarray:
        """Return one of the arrays of `describe`, for all rows so far."""
        parts = self.columns.get(name, [])
        if len(parts) != 1:
            parts[:] = [np.concatenate(parts) if parts else np.zeros(0, np.int16)]
        return parts[0]

    def forget(self, count: int) -> None:
        """Delete the first `count` rows."""
        for name in self.columns:
            self.columns[name] = [self.column(name)[count:].copy()]

    def rows(
        self, known_versions: set[str] | None, now_ms: int | None = None, tryouts: bool = False
    ) -> Rows:
        """Return the rows.

        A row is invalid if it is corrupted, was answered by a model that is not in `known_versions`
        (None: any), has a time after `now_ms`, is a duplicate of an earlier row or, unless
        `tryouts`, is a try-out from the page. Late rows and rows out of order are valid.
        """
        versions = list(self.names["model_version"])
        known = np.array([known_versions is None or name in known_versions for name in versions])
        well_formed, time = self.column("well_formed").astype(bool), self.column("time")
        version = self.column("model_version")
        future = well_formed & (time > now_ms) if now_ms is not None else np.zeros(len(time), bool)
        valid = well_formed & ~future
        other_model = valid.copy()
        other_model[valid] = ~known.astype(bool)[version[valid]]
        tryout = valid & self.column("tryout").astype(bool)
        valid &= ~other_model & (tryouts | ~tryout)
        duplicate = np.zeros(len(time), bool)
        identity = self.column("identity")
        shared = pd.Series(identity[valid]).duplicated(keep=False)
        rows = np.flatnonzero(valid)[shared]
        deployment, deployments = self.column("deployment"), list(self.names["deployment"])
        rows = rows[_by_time(time[rows], deployment[rows], deployments)]
        sent = pd.DataFrame({"identity": identity[rows], "image": self.column("image")[rows]})
        duplicate[rows] = sent.duplicated().to_numpy()
        valid &= ~duplicate
        latest = np.maximum.accumulate(np.where(valid, time, np.iinfo(np.int64).min))
        behind = np.where(valid, latest - time, 0)
        late, early = behind > LATE_MS, (behind > 0) & (behind <= LATE_MS)
        issues = (~well_formed, duplicate, future, other_model, late, early, tryout)
        return Rows(
            identity=identity,
            time=time,
            label=self.column("label"),
            version=version,
            deployment=deployment,
            valid=valid,
            other_model=other_model,
            tryout=tryout,
            versions=versions,
            deployments=deployments,
            issues={name: int(fault.sum()) for name, fault in zip(ISSUES, issues, strict=True)},
        )


def _fingerprints(batch: pa.RecordBatch, well_formed: np.ndarray, image_size: int) -> np.ndarray:
    """Return a hash of each row's image, uint64 (n,), zero for corrupted rows."""
    found = np.zeros(len(batch), np.uint64)
    pixels = well_formed_images(batch, well_formed, image_size)
    flat = pixels.reshape(len(pixels), image_size**2)
    words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view(np.uint64)  # (n, words)
    found[well_formed] = words @ np.full(words.shape[1], HASH_MULTIPLIER).cumprod()
    return found


def well_formed_images(
    batch: pa.RecordBatch, well_formed: np.ndarray, image_size: int
) -> np.ndarray:
    """Return the images of the well-formed rows of a batch, uint8 (m, size, size)."""
    return images(batch if well_formed.all() else batch.filter(pa.array(well_formed)), image_size)


def floats(column: pa.Array) -> np.ndarray:
    """Return a column as float32 (n,), NaN where it has no value."""
    return column.cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False)


def images(batch: pa.RecordBatch, image_size: int) -> np.ndarray:
    """Return the images of well-formed rows, uint8 (n, size, size), without a copy."""
    column = batch["image"]
    ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]
    pixels = np.frombuffer(column.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    return pixels.reshape(len(column), image_size, image_size)


def gaps(times_ms: np.ndarray, window: int, now_ms: int | None = None) -> list[tuple[int, int]]:
    """Return the gaps in sorted times (n,) that are improbable for steady traffic.

    Images with equal times count as one request. In a Poisson process the longest of n gaps exceeds
    m * log(n / GAP_PROBABILITY) with probability GAP_PROBABILITY. The mean gap m is estimated from
    the median of the surrounding `window` gaps. The last gap may end at `now_ms`.
    """
    times_ms = np.unique(times_ms)
    times, between = times_ms.tolist(), np.diff(times_ms)
    found, limit = [], np.inf
    for start in range(0, len(between), window):
        around = between[max(0, min(start, len(between) - window)) :][:window]
        usual = float(np.median(around)) / np.log(2)
        limit = max(usual * np.log(len(times) / GAP_PROBABILITY), GAP_SECONDS * 1000)
        inside = np.flatnonzero(between[start : start + window] > limit)
        found += [(times[i], times[i + 1]) for i in (start + inside).tolist()]
    if now_ms is not None and times and now_ms - times[-1] > limit + SKEW_MS:
        found.append((times[-1], now_ms))
    return found
