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
from typing import Any

import pyarrow as pa
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobProperties, ContainerClient

from digits import production
from digits.azure.workspace import Workspace, empty, store
from digits.errors import DigitsError

ROWS = "modelDataCollector/{endpoint}/"
ROWS_PATH = re.compile(r"/model_inputs_outputs/(\d{4}/\d\d/\d\d/\d\d)/[^/]+\.jsonl$")
LABELS = "labels/{endpoint}/"
LABELS_PATH = re.compile(r"/(\d{4}/\d\d/\d\d/\d\d)\.jsonl$")
HOUR = "%Y/%m/%d/%H"
BLOCK_BYTES = 4_000_000  # that are appended or read at once; 4 MiB is the most to append
Row = dict[str, Any]


def rows(
    workspace: Workspace,
    endpoint: str,
    since: datetime.datetime | None = None,
    damaged: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of production.REQUESTS that were collected since a time, in its order.

    `damaged` gets the place of each line that cannot be read.
    """
    prefix = ROWS.format(endpoint=endpoint)
    found = _read(store(workspace), prefix, since, damaged, production.collected)
    return production.batches(found, production.REQUESTS)


def labels(
    workspace: Workspace,
    endpoint: str,
    since: datetime.datetime | None = None,
    damaged: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of production.LABELS that came since a time; as `rows`."""
    prefix = LABELS.format(endpoint=endpoint)
    found = _read(
        store(workspace), prefix, since, damaged, lambda line: [production.labelled(line)]
    )
    return production.batches(found, production.LABELS)


def append_labels(workspace: Workspace, endpoint: str, known: Iterable[dict[str, Any]]) -> None:
    """Append labels, dicts with the keys of production.LABELS, `time` being a datetime.

    Whoever appends one again after a failure does no harm: readers drop doubles.
    """
    container = store(workspace)
    blocks: dict[str, list[bytes]] = {}
    for label in known:
        time = label["time"].astimezone(datetime.UTC)
        row = label | {"time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        line = json.dumps({name: row[name] for name in production.LABELS.names}).encode() + b"\n"
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
    damaged: list[str] | None,
    parse: Callable[[bytes], list[Row]],
) -> Iterator[Row]:
    """Yield rows, the oldest hour first; the blobs of an hour, one an instance, by their times."""
    pattern = ROWS_PATH if prefix.startswith(ROWS.split("{")[0]) else LABELS_PATH
    first = since.astimezone(datetime.UTC).strftime(HOUR) if since else ""
    hours: dict[str, list[BlobProperties]] = {}
    for blob in container.list_blobs(name_starts_with=prefix):
        match = pattern.search(blob.name)
        if match and match[1] >= first:
            hours.setdefault(match[1], []).append(blob)

    def parsed(blob: BlobProperties, over: bool) -> Iterator[Row]:
        for place, line in _lines(container, blob.name, blob.size, over):
            try:
                yield from parse(line)
            except ValueError as error:
                if damaged is not None:
                    damaged.append(f"{place}: {error}"[:300])

    now = datetime.datetime.now(datetime.UTC).strftime(HOUR)
    for hour, blobs in sorted(hours.items()):
        streams = [parsed(blob, hour < now) for blob in blobs]
        for row in heapq.merge(*streams, key=lambda row: row["time"]):
            if since is None or row["time"] >= since:
                yield row


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
