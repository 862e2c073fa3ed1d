"""Requests that production answered, one row an image, and the true labels that come later.

Parquet files of two schemas: stage simulate writes them, and what a data collector keeps is
brought to the first. A row's identity is `request_id` and `position`, the image's place in it;
with the same image too it is the same request, sent again: a client may use an id twice.
What enters may be damaged, doubled or in any order: `Rows` says which rows count, and how many
do not, and why. Memory holds one batch of images, and 40 bytes for each row.
"""

import base64
import datetime
import json
from collections.abc import Iterable, Iterator
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
LABEL_FAULTS = ("labels_damaged", "labels_doubled", "labels_other_version", "labels_unmatched")
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


def collected(line: bytes) -> list[dict[str, Any]]:
    """Return the rows of REQUESTS in one line of a data collector; raise ValueError if damaged."""
    try:
        event = json.loads(line)
        common = {
            "time": _time(event["time"]),
            "request_id": _text(event.get("xrequestid") or event["correlationid"] or None),
            "deployment": _text(event["source"]).rsplit("/", 1)[-1],
        }
        if len(event["data"]) > POSITIONS:
            raise ValueError(f"{len(event['data']):,} images in one request")
        return [
            common
            | {
                "position": position,
                "model_version": _text(row["model_version"]),
                "digit": _text(row["digit"]),
                "confidence": float(row["confidence"]),
                "foreign": float(row["foreign"]),
                "image": base64.b64decode(row["image"], validate=True),
            }
            for position, row in enumerate(event["data"])
        ]
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def labelled(line: bytes) -> dict[str, Any]:
    """Return the row of LABELS in one line of JSON; raise ValueError if it is damaged."""
    try:
        row = json.loads(line)
        found: dict[str, Any] = {name: _text(row[name]) for name in LABELS.names if name in row}
        position = row["position"]
        if type(position) is not int or not 0 <= position < POSITIONS:  # true is no number
            raise ValueError(f"position {position!r}")
        return found | {"position": position, "time": _time(row["time"])}
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def _text(value: Any) -> str:
    if value is None:
        raise ValueError("null is no text")
    text = value if isinstance(value, str) else str(value)
    text.encode()  # half a character, which JSON can name, is a ValueError
    return text


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
    version, deployment: int16, indices of `versions` and `deployments`; confidence, foreign:
    float32; counts: bool, whether the row is to be counted; other: bool, whether it is not because
    another model answered; faults: how many rows have which.
    """

    identity: np.ndarray
    time: np.ndarray
    label: np.ndarray
    version: np.ndarray
    deployment: np.ndarray
    confidence: np.ndarray
    foreign: np.ndarray
    counts: np.ndarray
    other: np.ndarray
    versions: list[str]
    deployments: list[str]
    faults: dict[str, int]


def look(
    stream: Iterable[pa.RecordBatch],
    classes: tuple[str, ...],
    image_size: int,
    known_versions: set[str] | None,
    now_ms: int | None = None,
) -> Rows:
    """Read a stream once and say which of its rows count.

    Rows are not counted when they are damaged, come from a model that is not in `known_versions`
    (None: any), lie after `now_ms` or repeat one before them; late ones and those out of order are.
    """
    columns: dict[str, list[np.ndarray]] = {
        name: []
        for name in ("identity", "time", "label", "confidence", "foreign", "whole", "image")
    }
    names: dict[str, dict[str, int]] = {"model_version": {}, "deployment": {}}
    codes: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in stream:
        label = pc.index_in(batch["digit"], pa.array(classes))
        confidence, foreign = _floats(batch["confidence"]), _floats(batch["foreign"])
        whole = _floats(pc.equal(pc.binary_length(batch["image"]), image_size**2)) == 1
        for number in (confidence, foreign):
            whole &= (number >= 0) & (number <= 1)
        for column in (*batch.columns, label):
            whole &= column.is_valid().to_numpy(zero_copy_only=False)
        columns["identity"].append(identities(batch))
        time = batch["time"].cast(pa.int64()).fill_null(0)
        columns["time"].append(time.to_numpy(zero_copy_only=False))
        columns["label"].append(label.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int16))
        columns["confidence"].append(confidence)
        columns["foreign"].append(foreign)
        columns["whole"].append(whole)
        columns["image"].append(_fingerprints(batch, whole, image_size))
        for name, known in names.items():
            coded = batch[name].fill_null("").dictionary_encode()
            table = [known.setdefault(text, len(known)) for text in coded.dictionary.to_pylist()]
            indices = coded.indices.to_numpy(zero_copy_only=False)
            codes[name].append(np.array(table, np.int16)[indices])
    joined = {name: _join(columns.pop(name)) for name in list(columns)}  # never two of all
    versions = list(names["model_version"])
    version = _join(codes["model_version"]).astype(np.int16)
    return _judge(
        joined,
        version,
        _join(codes["deployment"]).astype(np.int16),
        versions,
        list(names["deployment"]),
        np.array([known_versions is None or name in known_versions for name in versions], bool),
        now_ms,
    )


def _judge(
    joined: dict[str, np.ndarray],
    version: np.ndarray,
    deployment: np.ndarray,
    versions: list[str],
    deployments: list[str],
    known: np.ndarray,
    now_ms: int | None,
) -> Rows:
    whole, time = joined["whole"].astype(bool), joined["time"]
    future = whole & (time > now_ms) if now_ms is not None else np.zeros(len(time), bool)
    counts = whole & ~future
    other = counts.copy()
    other[counts] = ~known[version[counts]]
    counts &= ~other
    doubled = np.zeros(len(time), bool)
    shared = pd.Series(joined["identity"][counts]).duplicated(keep=False)
    rows = np.flatnonzero(counts)[shared]
    sent = pd.DataFrame({name: joined[name][rows] for name in ("identity", "image")})
    doubled[rows] = sent.duplicated().to_numpy()
    counts &= ~doubled
    latest = np.maximum.accumulate(np.where(counts, time, np.iinfo(np.int64).min))
    behind = np.where(counts, latest - time, 0)
    faults = (~whole, doubled, future, other, behind > LATE_MS, (behind > 0) & (behind <= LATE_MS))
    return Rows(
        identity=joined["identity"],
        time=time,
        label=joined["label"],
        version=version,
        deployment=deployment,
        confidence=joined["confidence"],
        foreign=joined["foreign"],
        counts=counts,
        other=other,
        versions=versions,
        deployments=deployments,
        faults={name: int(fault.sum()) for name, fault in zip(FAULTS, faults, strict=True)},
    )


def match(
    labels: Iterable[pa.RecordBatch], rows: Rows, classes: tuple[str, ...]
) -> tuple[np.ndarray, dict[int, str], dict[str, int]]:
    """Return the true class of each row, int16 (n,), -1 where not known; its script; faults.

    Labels of what another model answered are no fault of theirs: they are counted by themselves.
    """
    counted = np.flatnonzero(rows.counts)
    order = counted[np.argsort(rows.identity[counted])]
    sorted_ids, other_ids = rows.identity[order], np.sort(rows.identity[rows.other])
    truth = np.full(len(rows.time), -1, np.int16)
    scripts: dict[int, str] = {}
    faults = dict.fromkeys(LABEL_FAULTS, 0)
    number = {name: index for index, name in enumerate(classes)}
    for batch in labels:
        ids = identities(batch)
        places, ends = (np.searchsorted(sorted_ids, ids, side) for side in ("left", "right"))
        first, last = (np.searchsorted(other_ids, ids, side) for side in ("left", "right"))
        names, written = batch["label"].to_pylist(), batch["script"].to_pylist()
        for place, end, other, name, script in zip(
            places, ends, last > first, names, written, strict=True
        ):
            if name not in number or script is None:
                faults["labels_damaged"] += 1
            elif place == end and other:
                faults["labels_other_version"] += 1
            elif end - place != 1:  # none, or images that share an id: which of them is not known
                faults["labels_unmatched"] += 1
            elif truth[row := int(order[place])] >= 0:
                faults["labels_doubled"] += 1
            else:
                truth[row] = number[name]
                scripts[row] = script
    return truth, scripts, faults


def _fingerprints(batch: pa.RecordBatch, whole: np.ndarray, image_size: int) -> np.ndarray:
    """Return a number for each row's image, uint64 (n,); zero where the row is not whole."""
    found = np.zeros(len(batch), np.uint64)
    pixels = images(batch if whole.all() else batch.filter(pa.array(whole)), image_size)
    flat = pixels.reshape(len(pixels), image_size**2)
    words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view(np.uint64)  # (n, words)
    found[whole] = words @ np.full(words.shape[1], POSITION_STEP).cumprod()
    return found


def _floats(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


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
