"""What production kept in the workspace's blob store: requests with their answers, and labels.

The data collector writes `modelDataCollector/ENDPOINT/DEPLOYMENT/model_inputs_outputs/YYYY/MM/
DD/HH/*.jsonl`; labels of live traffic come later as `labels/ENDPOINT/YYYY/MM/DD/HH.jsonl`, one
JSON object a line with the keys of production.LABELS. Here, and nowhere else, these paths stand.
"""

import contextlib
import datetime
import heapq
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobProperties, ContainerClient

from core.errors import DigitsError
from digits.production import records
from mlops.azure.workspace import Workspace, empty, store

ROWS = "modelDataCollector/{endpoint}/"
ROWS_PATH = re.compile(r"/model_inputs_outputs/(\d{4}/\d\d/\d\d/\d\d)/[^/]+\.jsonl$")
LABELS = "labels/{endpoint}/"
LABELS_PATH = re.compile(r"/(\d{4}/\d\d/\d\d/\d\d)\.jsonl$")
HOUR = "%Y/%m/%d/%H"
BLOCK_BYTES = 4_000_000  # that are appended or read at once; 4 MiB is the most to append
CLOCK = datetime.timedelta(days=1)  # that a row's time may be away from the hour it is kept in
Row = dict[str, Any]


@dataclass
class Faults:
    """What was wrong with what was read: the places of damaged lines, and rows with a wrong clock.

    Such a row would stretch the story by years: it is left out, as its true time is not known.
    """

    damaged: list[str] = field(default_factory=list)
    clock: int = 0


def rows(
    workspace: Workspace,
    endpoint: str,
    since: datetime.datetime | None = None,
    faults: Faults | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of production.REQUESTS that were collected since a time, in its order.

    `faults` gets what is left out.
    """
    prefix = ROWS.format(endpoint=endpoint)
    found = _read(store(workspace), prefix, since, faults or Faults(), records.collected)
    return records.batches(found, records.REQUESTS)


def labels(
    workspace: Workspace,
    endpoint: str,
    since: datetime.datetime | None = None,
    faults: Faults | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of production.LABELS that came since a time; as `rows`."""
    prefix = LABELS.format(endpoint=endpoint)

    def parse(line: bytes) -> list[Row]:
        return [records.labelled(line)]

    found = _read(store(workspace), prefix, since, faults or Faults(), parse)
    return records.batches(found, records.LABELS)


def append_labels(workspace: Workspace, endpoint: str, known: Iterable[dict[str, Any]]) -> None:
    """Append labels, dicts with the keys of production.LABELS, `time` being a datetime.

    Whoever appends one again after a failure does no harm: readers drop doubles.
    """
    container = store(workspace)
    blocks: dict[str, list[bytes]] = {}
    for label in known:
        time = label["time"].astimezone(datetime.UTC)
        row = label | {"time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        line = json.dumps({name: row[name] for name in records.LABELS.names}).encode() + b"\n"
        path = f"{LABELS.format(endpoint=endpoint)}{time.strftime(HOUR)}.jsonl"
        parts = blocks.setdefault(path, [b""])
        if len(parts[-1]) + len(line) > BLOCK_BYTES:
            parts.append(b"")
        parts[-1] += line
    for path, parts in blocks.items():
        blob = container.get_blob_client(path)
        if not blob.exists():
            with contextlib.suppress(ResourceExistsError):
                blob.create_append_blob()
        for part in parts:
            blob.append_block(part)


def forget(workspace: Workspace, endpoint: str) -> None:
    """Delete all that was kept of an endpoint."""
    for folder in (ROWS, LABELS):
        empty(store(workspace), folder.format(endpoint=endpoint))


def _read(
    container: ContainerClient,
    prefix: str,
    since: datetime.datetime | None,
    faults: Faults,
    parse: Callable[[bytes], list[Row]],
) -> Iterator[Row]:
    """Yield rows, the oldest hour first; the blobs of an hour, one an instance, by their times.

    A label's clock may be wrong: nothing is told by it.
    """
    pattern = ROWS_PATH if prefix.startswith(ROWS.split("{")[0]) else LABELS_PATH
    hours: dict[datetime.datetime, list[BlobProperties]] = {}
    for blob in container.list_blobs(name_starts_with=prefix):
        hour = _hour(blob.name, pattern)
        if hour and (since is None or hour > since - datetime.timedelta(hours=1)):
            hours.setdefault(hour, []).append(blob)

    def parsed(blob: BlobProperties, hour: datetime.datetime) -> Iterator[Row]:
        for place, line in _lines(container, blob.name, blob.size, hour < this_hour):
            try:
                found = parse(line)
            except ValueError as error:
                faults.damaged.append(f"{place}: {error}"[:300])
                continue
            for row in found:
                if pattern is ROWS_PATH and abs(row["time"] - hour) > CLOCK:
                    faults.clock += 1
                else:
                    yield row

    this_hour = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    for hour, blobs in sorted(hours.items()):
        streams = [parsed(blob, hour) for blob in blobs]
        for row in heapq.merge(*streams, key=lambda row: row["time"]):
            if since is None or row["time"] >= since:
                yield row


def _hour(name: str, pattern: re.Pattern[str]) -> datetime.datetime | None:
    """Return the hour that a blob's path names, None for another path."""
    match = pattern.search(name)
    with contextlib.suppress(ValueError):  # a month 13
        return match and datetime.datetime.strptime(match[1], HOUR).replace(tzinfo=datetime.UTC)
    return None


def _lines(
    container: ContainerClient, name: str, size: int, over: bool
) -> Iterator[tuple[str, bytes]]:
    """Yield place and line of a blob of `size` bytes, which may grow meanwhile.

    Each part is a download of its own, since one download refuses a blob that has changed. A last
    line that is still being written waits, unless the blob's hour is `over`.
    """
    rest = b""
    for start in range(0, size, BLOCK_BYTES):
        length = min(BLOCK_BYTES, size - start)
        *whole, rest = (rest + container.download_blob(name, start, length).readall()).split(b"\n")
        if over and start + length == size:
            whole.append(rest)
        for line in whole:
            if line.strip():
                yield f"{name}, before byte {start + length:,}", line


def endpoint_name(name: str | None, derived: str) -> str:
    """Return the endpoint asked for, or the one derived from the workspace; refuse a path."""
    if name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]", name):
        raise DigitsError(f"{name!r} is no endpoint's name; see `digits deploy status`")
    return name or derived
