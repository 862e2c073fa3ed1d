"""Collected rows: none waits on a request, none is lost unseen."""

import json
import threading
from typing import Any

import pytest

from azureml_emulator.collector import Collector

REQUESTS = 200


class Store:
    """A blob store that writes nothing before it is told to."""

    def __init__(self) -> None:
        """Begin with no rows."""
        self.open = threading.Event()
        self.rows: list[bytes] = []
        self.elsewhere: dict[str, bytes] = {}
        self.url = "http://store"
        self.client = self

    def get_blob_client(self, path: str) -> "Store":
        """Return itself, whatever the blob."""
        return self

    def exists(self, **_: Any) -> bool:
        """Say that the blob is there, when the store is open."""
        return self.open.wait()

    def upload_blob(self, path: str, content: bytes, **_: Any) -> None:
        """Keep a blob."""
        self.elsewhere[path] = content

    def append_block(self, rows: bytes, **_: Any) -> None:
        """Keep the lines."""
        self.rows += rows.splitlines()


def test_what_waits_is_written_at_the_end() -> None:
    store = Store()
    collector = Collector(store)  # type: ignore[arg-type]
    for number in range(REQUESTS):
        collector.take("e", "blue", {"ce-x-request-id": str(number)}, b"[%d]" % number)
    assert not store.rows
    store.open.set()
    collector.close()
    assert [n for row in store.rows for n in json.loads(row)["data"]] == [*range(REQUESTS)]


def test_requests_close_in_time_are_one_line_of_at_most_2_mb() -> None:
    store = Store()
    store.open.set()
    collector = Collector(store)  # type: ignore[arg-type]
    row = json.dumps(["x" * 900_000]).encode()
    for number, rows in enumerate((row, b"[1, 2]", row, row, b"[3]")):
        collector.take("e", "blue", {"ce-x-request-id": str(number)}, rows)
    collector.take("e", "green", {}, b"[4]")
    large = json.dumps(["x" * 4_000_000]).encode()
    collector.take("e", "blue", {"trace-id": "t"}, large)
    collector.close()
    lines = [json.loads(row) for row in store.rows]
    merged, *rest = lines
    assert merged["xrequestid"] == "0"  # the others' ids are gone
    assert [len(str(row)) for row in merged["data"]] == [900_000, 1, 1, 900_000, 1]
    assert [len(line.get("data", ())) for line in rest] == [1, 1, 0]
    assert "data" not in lines[-1] and lines[-1]["dataref"].endswith("/local.jsonl/t")
    (elsewhere,) = store.elsewhere.items()
    assert elsewhere[0].endswith("/local.jsonl/t") and elsewhere[1] == large


def test_a_store_that_never_writes_holds_up_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("azureml_emulator.collector.DRAIN_SECONDS", 0.01)
    store = Store()
    collector = Collector(store)  # type: ignore[arg-type]
    collector.take("e", "blue", {}, b"[]")
    collector.close()
    assert "Collected requests are lost." in capsys.readouterr().out
    store.open.set()
