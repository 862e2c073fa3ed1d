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

    def get_blob_client(self, path: str) -> "Store":
        """Return itself, whatever the blob."""
        return self

    def exists(self, **_: Any) -> bool:
        """Say that the blob is there, when the store is open."""
        return self.open.wait()

    def append_block(self, rows: bytes, **_: Any) -> None:
        """Keep the lines."""
        self.rows += rows.splitlines()


def test_what_waits_is_written_at_the_end() -> None:
    store = Store()
    collector = Collector(store)  # type: ignore[arg-type]
    for number in range(REQUESTS):
        collector.take("e", "blue", {"ce-x-request-id": str(number)}, b"[]")
    assert not store.rows
    store.open.set()
    collector.close()
    assert [json.loads(row)["xrequestid"] for row in store.rows] == [*map(str, range(REQUESTS))]


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
