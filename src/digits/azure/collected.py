"""What production kept in the workspace's blob store: requests with their answers, and labels.

The data collector writes `modelDataCollector/ENDPOINT/DEPLOYMENT/model_inputs_outputs/YYYY/MM/
DD/HH/*.jsonl`; labels of live traffic come later as `labels/ENDPOINT/YYYY/MM/DD/HH.jsonl`, one
JSON object a line with the keys of production.LABELS. Here, and nowhere else, these paths stand.
"""

import contextlib
import datetime
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import ContainerClient

from digits import production
from digits.azure.workspace import Workspace, empty, store
from digits.errors import DigitsError

ROWS = "modelDataCollector/{endpoint}/"
ROWS_PATH = re.compile(r"/model_inputs_outputs/(\d{4}/\d\d/\d\d/\d\d)/[^/]+\.jsonl$")
LABELS = "labels/{endpoint}/"
LABELS_PATH = re.compile(r"/(\d{4}/\d\d/\d\d/\d\d)\.jsonl$")
HOUR = "%Y/%m/%d/%H"
BLOCK_BYTES = 4_000_000  # that are appended at once; 4 MiB is the most


def rows(
    workspace: Workspace,
    endpoint: str,
    since: datetime.datetime | None = None,
    damaged: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of production.REQUESTS that were collected since an hour, hour by hour.

    `damaged` gets the place of each line that cannot be read.
    """

    def found() -> Iterator[dict[str, Any]]:
        for place, line in _lines(store(workspace), ROWS.format(endpoint=endpoint), since):
            try:
                yield from production.collected(line)
            except ValueError as error:
                _note(damaged, f"{place}: {error}")

    return production.batches(found(), production.REQUESTS)


def labels(
    workspace: Workspace,
    endpoint: str,
    since: datetime.datetime | None = None,
    damaged: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of production.LABELS that came since an hour; as `rows`."""

    def found() -> Iterator[dict[str, Any]]:
        for place, line in _lines(store(workspace), LABELS.format(endpoint=endpoint), since):
            try:
                yield production.labelled(line)
            except ValueError as error:
                _note(damaged, f"{place}: {error}")

    return production.batches(found(), production.LABELS)


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


def _lines(
    container: ContainerClient, prefix: str, since: datetime.datetime | None
) -> Iterator[tuple[str, bytes]]:
    """Yield blob and line, the oldest hour first; a last line that is still being written waits."""
    pattern = ROWS_PATH if prefix.startswith(ROWS.split("{")[0]) else LABELS_PATH
    first = since.astimezone(datetime.UTC).strftime(HOUR) if since else ""
    found = []
    for name in container.list_blob_names(name_starts_with=prefix):
        match = pattern.search(name)
        if match and match[1] >= first:
            found.append((match[1], name))
    for _, name in sorted(found):
        rest = b""
        for number, chunk in enumerate(container.download_blob(name).chunks()):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                if line.strip():
                    yield f"{name}, part {number + 1}", line


def _note(damaged: list[str] | None, what: str) -> None:
    if damaged is not None:
        damaged.append(what[:300])


def endpoint_name(name: str | None, derived: str) -> str:
    """Return the endpoint asked for, or the one derived from the workspace; refuse a path."""
    if name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]", name):
        raise DigitsError(f"{name!r} is no endpoint's name; see `digits deploy status`")
    return name or derived
