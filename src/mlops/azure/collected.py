"""Collected production data in the workspace's blob store: requests, answers and labels.

The data collector writes `modelDataCollector/ENDPOINT/DEPLOYMENT/model_inputs_outputs/YYYY/MM/
DD/HH/*.jsonl`; labels of live traffic come later as `labels/ENDPOINT/YYYY/MM/DD/HH.jsonl`, one JSON
object a line. These paths occur only in this module. digits.production.records parses the lines.
"""

import contextlib
import datetime
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from azure.core.exceptions import AzureError, ResourceExistsError
from azure.storage.blob import BlobProperties, ContainerClient

from core.errors import DigitsError

ROWS = "modelDataCollector/{endpoint}/"
LABELS = "labels/{endpoint}/"
HOURS = {  # where a blob's path names its hour
    ROWS: re.compile(r"/model_inputs_outputs/(\d{4}/\d\d/\d\d/\d\d)/[^/]+\.jsonl$"),
    LABELS: re.compile(r"/(\d{4}/\d\d/\d\d/\d\d)\.jsonl$"),
}
HOUR = "%Y/%m/%d/%H"
BLOCK_BYTES = 4_000_000  # per append or read; the limit of an append is 4 MiB
Line = tuple[str, bytes]  # its place, for messages, and its content


@dataclass(frozen=True)
class Hour:
    """The data of one hour: the lines of each blob, one blob per instance."""

    start: datetime.datetime
    blobs: list[Iterator[Line]]


def hours(
    container: ContainerClient, folder: str, endpoint: str, since: datetime.datetime | None = None
) -> Iterator[Hour]:
    """Yield the hours of ROWS or LABELS, oldest first, from the hour that contains `since`."""
    found: dict[datetime.datetime, list[BlobProperties]] = {}
    for blob in container.list_blobs(name_starts_with=folder.format(endpoint=endpoint)):
        hour = _hour(blob.name, HOURS[folder])
        if hour and (since is None or hour > since - datetime.timedelta(hours=1)):
            found.setdefault(hour, []).append(blob)
    this_hour = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    for hour, blobs in sorted(found.items()):
        over = hour < this_hour
        yield Hour(hour, [_lines(container, blob.name, blob.size, over) for blob in blobs])


class DeletedError(Exception):
    """Collected data that was read has been deleted, for instance with its endpoint."""


class Follower:
    """Reads the lines appended to the blobs of ROWS or LABELS since the last call."""

    def __init__(self, folder: str, endpoint: str) -> None:
        self.prefix, self.pattern = folder.format(endpoint=endpoint), HOURS[folder]
        self.read: dict[str, int] = {}  # bytes, by blob

    def fresh(self, container: ContainerClient, at_most: int) -> Iterator[Hour]:
        """Yield about `at_most` bytes of new complete lines, the oldest hour first.

        The next call yields the rest, or everything if the store did not answer. Raises
        DeletedError when a blob that was read has been deleted.
        """
        try:
            blobs = container.list_blobs(name_starts_with=self.prefix, retry_total=0)
            named = [(_hour(blob.name, self.pattern), blob.name, blob.size) for blob in blobs]
            sizes = {name: size for _, name, size in named}
            if any(sizes.get(name, 0) < count for name, count in self.read.items()):
                raise DeletedError
            for hour, group in groupby(sorted(one for one in named if one[0]), itemgetter(0)):
                found: list[Iterator[Line]] = []
                for _, name, size in group:
                    start = self.read.get(name, 0)
                    length = min(size - start, at_most)
                    if length > 0:
                        part = container.download_blob(name, start, length, retry_total=0)
                        *lines, rest = part.readall().split(b"\n")
                        found.append(iter([(name, line) for line in lines if line.strip()]))
                        self.read[name] = start + length - len(rest)
                        at_most -= length
                yield Hour(hour, found)
        except AzureError:
            pass  # the store does not answer: the next call reads the rest


def append_labels(
    container: ContainerClient, endpoint: str, known: Iterable[dict[str, Any]]
) -> None:
    """Append labels, dicts with the keys of production.LABELS, `time` being a datetime.

    Repeating a call after a failure is harmless: readers drop duplicates.
    """
    blocks: dict[str, list[bytes]] = {}
    for label in known:
        time = label["time"].astimezone(datetime.UTC)
        row = label | {"time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        line = json.dumps(row).encode() + b"\n"
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


def _hour(name: str, pattern: re.Pattern[str]) -> datetime.datetime | None:
    """Return the hour that a blob's path names, None for another path."""
    match = pattern.search(name)
    with contextlib.suppress(ValueError):  # for instance, month 13
        return match and datetime.datetime.strptime(match[1], HOUR).replace(tzinfo=datetime.UTC)
    return None


def _lines(container: ContainerClient, name: str, size: int, over: bool) -> Iterator[Line]:
    """Yield place and line of a blob of `size` bytes, which may grow meanwhile.

    Each part is downloaded separately, since a download fails when its blob changes. An incomplete
    last line is left for the next call, unless the blob's hour is `over`.
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
    """Return `name`, by default `derived`; raise DigitsError for a path."""
    if name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]", name):
        raise DigitsError(f"{name!r} is not an endpoint name. See `digits deploy status`.")
    return name or derived
