"""What the data collector of deployments sends, kept where Azure's own collector puts it."""

import contextlib
import datetime
import json
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from azure.storage.blob import ContainerClient

BLOCK_BYTES = 4_000_000  # that are appended at once; 4 MiB is the most
WAITING_BYTES = 64_000_000  # collected rows that may wait to be written
DRAIN_SECONDS = 30.0  # that writing what waits may take at the end
ONCE: dict[str, Any] = {"retry_total": 0}  # the SDK's first pause between two tries is 15 s
# Endpoint, deployment, name of the collection, request id, the rows of one request.
OnLost = Callable[[int, str], object]  # a number of requests, the reason


class Collector:
    """Writes collected rows to the blob store, from a thread of its own.

    Rows that cannot be written, or not as fast as they come, are lost and counted: no request
    waits for them. `close` writes what waits.
    """

    def __init__(
        self,
        container: ContainerClient,
        on_lost: OnLost | None = None,
    ) -> None:
        """Write to `container`; without `on_lost` the first loss is printed."""
        self.container, self.on_lost = container, on_lost
        self.lost, self.lost_reason = 0, ""  # requests whose rows were not kept
        self.rows: queue.Queue[tuple[str, bytes] | None] = queue.Queue()  # None: the end
        self.lock = threading.Lock()
        self.waiting = 0  # bytes
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Write what waits; print how much could not be written in time. Nothing comes now."""
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
            self.lost_reason = reason
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
        line = {
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
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self.lock:
            fits = self.waiting + len(text) <= WAITING_BYTES
            self.waiting += len(text) if fits else 0
        if fits:
            self.rows.put((path, text))
        else:
            self.lose(1, "The blob store is slower than requests come.")
        return None

    def work(self) -> None:
        """Write what comes, all rows of one file at once, until the end."""
        item = self.rows.get()
        while item:
            batches: dict[str, bytes] = {}
            with contextlib.suppress(queue.Empty):
                while item:
                    batches[item[0]] = batches.get(item[0], b"") + item[1]
                    item = self.rows.get_nowait()
            for path, rows in batches.items():
                self.write(path, rows)
            item = item and self.rows.get()

    def write(self, path: str, rows: bytes) -> None:
        """Append rows to one file, in blocks that end at a line."""
        blob, size = self.container.get_blob_client(path), len(rows)
        try:
            if not blob.exists(**ONCE):
                blob.create_append_blob(**ONCE)
            while rows:
                end = rows.rfind(b"\n", 0, BLOCK_BYTES) + 1 or rows.index(b"\n") + 1
                blob.append_block(rows[:end], **ONCE)
                rows = rows[end:]
        except Exception as error:  # lost rows are no reason to stop collecting
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            self.lose(rows.count(b"\n"), f"The blob store refuses them: {reason}")
        with self.lock:
            self.waiting -= size
