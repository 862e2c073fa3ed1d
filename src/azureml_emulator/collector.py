"""Store the rows of deployments' data collectors in the same place as Azure's collector."""

import contextlib
import datetime
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from azureml_emulator.storage import CONTAINER, BlobStore

MERGED_BYTES = 2_000_000  # of rows in one line
PAYLOAD_BYTES = 4_000_000  # of rows of one request; larger ones are stored elsewhere
MERGE_SECONDS = 0.1  # rows within this time after the first are merged with it
WAITING_BYTES = 64_000_000  # collected rows that may wait to be written
DRAIN_SECONDS = 30.0  # maximum time to write waiting rows at the end
ONCE: dict[str, Any] = {"retry_total": 0}  # the SDK's first pause between two tries is 15 s
OnLost = Callable[[int, str], object]  # a number of requests, the reason


@dataclass
class Collected:
    """One line of a file, with the rows of one request or of several merged ones.

    Azure's collector merges requests that come at about the same time into one line with the
    first one's id, and stores a payload above 4 MB elsewhere: learn.microsoft.com/azure/
    machine-learning/how-to-collect-production-data, "Data collector batching" and "Store large
    payloads".
    """

    path: str
    line: dict[str, Any]
    size: int  # bytes
    payload: bytes  # what is stored elsewhere
    requests: int = 1

    def merge(self, other: "Collected") -> bool:
        """Take another's rows if they fit into this line; return whether they do."""
        lists = isinstance(self.line.get("data"), list) and isinstance(other.line.get("data"), list)
        fits = self.path == other.path and self.size + other.size <= MERGED_BYTES
        if lists and fits:
            self.line["data"] += other.line["data"]
            self.size += other.size
            self.requests += other.requests
        return lists and fits


class Collector:
    """Writes collected rows to the blob store, in a separate thread.

    Rows that cannot be written, or not fast enough, are lost and counted: requests never wait for
    them. `close` writes the waiting rows.
    """

    def __init__(self, store: BlobStore, on_lost: OnLost | None = None) -> None:
        """Write to the workspace's container; without `on_lost` the first loss is printed."""
        self.store, self.on_lost = store, on_lost
        self.lost = 0  # requests whose rows were not kept
        self.rows: queue.Queue[Collected | None] = queue.Queue()  # None: the end
        self.lock = threading.Lock()
        self.waiting = 0  # bytes
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Write the waiting rows; print how much is lost. No more rows may arrive."""
        self.rows.put(None)
        self.thread.join(DRAIN_SECONDS)
        if self.thread.is_alive():
            reason = f"{self.waiting:,} bytes were not written within {DRAIN_SECONDS:g} s."
            print(f"Collected requests are lost. {reason}", flush=True)

    def lose(self, requests: int, reason: str) -> None:
        """Count requests whose rows could not be kept."""
        with self.lock:
            first = not self.lost
            self.lost += requests
        if self.on_lost:
            self.on_lost(requests, reason)
        elif first:
            print(f"Collected requests are lost; scoring goes on. {reason}", flush=True)

    def take(self, endpoint: str, deployment: str, headers: Mapping[str, str], rows: bytes) -> None:
        """Keep the rows of one request: a line with the envelope that Azure's collector writes."""
        now = datetime.datetime.now(datetime.UTC)
        event = headers.get("ce-type", "azureml.inference.unnamed")
        request = headers.get("ce-x-request-id", "")
        try:
            data = json.loads(rows)
        except ValueError as error:
            return self.lose(1, f"{deployment} sent no JSON to collect ({error}).")
        line: dict[str, Any] = {
            "specversion": "1.0",
            "id": headers.get("trace-id", ""),
            "source": f"/onlineEndpoints/{endpoint}/deployments/{deployment}",
            "type": event,
            "datacontenttype": headers.get("Content-Type", ""),
            "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "data": data,
            "correlationid": request,
            "xrequestid": request,
            "modelversion": headers.get("ce-model-version", "default"),
            "collectdatatype": headers.get("ce-collect-data-type", ""),
            "agent": headers.get("ce-agent", ""),
            "contentrange": f"bytes 0-{len(rows) - 1}/{len(rows)}",
        }
        name = event.removeprefix("azureml.inference.")
        path = f"modelDataCollector/{endpoint}/{deployment}/{name}/{now:%Y/%m/%d/%H}/local.jsonl"
        payload = b""
        if len(rows) > PAYLOAD_BYTES:
            del line["data"]
            line["dataref"] = f"{self.store.url}/{CONTAINER}/{path}/{line['id']}"
            payload = rows
        with self.lock:
            fits = self.waiting + len(rows) <= WAITING_BYTES
            self.waiting += len(rows) if fits else 0
        if fits:
            self.rows.put(Collected(path, line, len(rows), payload))
        else:
            self.lose(1, "The blob store is slower than the requests.")
        return None

    def work(self) -> None:
        """Write rows until the end; merge those that come at about the same time."""
        item = self.rows.get()
        while item:
            merged: list[Collected] = []
            end = time.monotonic() + MERGE_SECONDS
            with contextlib.suppress(queue.Empty):
                while item:
                    if not any(line.merge(item) for line in merged):
                        merged.append(item)
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    item = self.rows.get(timeout=left)
            for line in merged:
                self.write(line)
            item = item and self.rows.get()

    def write(self, item: "Collected") -> None:
        """Append one line to its file."""
        text = json.dumps(item.line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        try:
            client = self.store.client
            blob = client.get_blob_client(item.path)
            if not blob.exists(**ONCE):
                blob.create_append_blob(**ONCE)
            blob.append_block(text, **ONCE)
            if item.payload:
                client.upload_blob(f"{item.path}/{item.line['id']}", item.payload, **ONCE)
        except Exception as error:  # lost rows are no reason to stop collecting
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            self.lose(item.requests, f"The blob store refuses them: {reason}")
        with self.lock:
            self.waiting -= item.size
