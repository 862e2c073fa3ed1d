"""What production kept, read from the real blob emulator: blobs that grow, instances, hours."""

import datetime
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient
from conftest import Azurite, free_port

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.azure import collected
    from mlops.production import monitor
from core import params
from core.dataset import read_csv
from digits.production import records

START = datetime.datetime(2026, 1, 5, 10, tzinfo=datetime.UTC)
PART = 2000  # bytes of a download


@pytest.fixture(scope="module", name="store")
def a_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerClient]:
    """A container whose client takes small parts, as it takes large ones of large blobs."""
    server = Azurite(free_port(), tmp_path_factory.mktemp("azurite"))
    server.start()
    try:
        with ContainerClient.from_connection_string(
            server.connection_string,
            "main",
            max_single_get_size=PART,
            max_chunk_get_size=PART,
        ) as container:
            yield container
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def in_small_parts(store: ContainerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the module read that container."""
    monkeypatch.setattr(collected, "BLOCK_BYTES", PART)
    monkeypatch.setattr(collected, "store", lambda workspace: store)


def line(second: float, start: datetime.datetime = START) -> bytes:
    """Return what the collector writes for a request."""
    row = {"image": "AA==", "model_version": "v1", "digit": "1", "confidence": 1, "foreign": 0}
    time = start + datetime.timedelta(seconds=second)
    event = {"source": "blue", "time": time.isoformat(), "data": [row], "xrequestid": f"{second}"}
    return json.dumps(event).encode() + b"\n"


def kept(store: ContainerClient, endpoint: str, hour: str, content: bytes, name: str = "a") -> Any:
    """Put a growing blob where the collector puts it."""
    path = f"modelDataCollector/{endpoint}/blue/model_inputs_outputs/{hour}/{name}.jsonl"
    blob = store.get_blob_client(path)
    blob.create_append_blob()
    blob.append_block(content)
    return blob


def ids(endpoint: str, since: datetime.datetime | None = None) -> list[str]:
    """Return the ids of what was collected."""
    rows: Any = collected.rows(None, endpoint, since)  # type: ignore[arg-type]
    return [name for batch in rows for name in batch["request_id"].to_pylist()]


def test_a_blob_that_grows_while_it_is_read_is_read(
    store: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = kept(store, "grows", "2026/01/05/10", b"".join(map(line, range(20))))
    parse = records.collected

    def slow(content: bytes) -> list[dict[str, Any]]:
        blob.append_block(line(99))
        return parse(content)

    monkeypatch.setattr(records, "collected", slow)
    assert ids("grows") == [str(number) for number in range(20)]


def test_instances_are_read_side_by_side(store: ContainerClient) -> None:
    for name in ("a", "b"):
        own = [line(2 * number + (name == "b")) for number in range(20)]
        kept(store, "two", "2026/01/05/10", b"".join(own), name)
    rows: Any = collected.rows(None, "two")  # type: ignore[arg-type]
    found = records.look(rows, ("1",), 1, None)
    assert found.counts.sum() == 40
    assert found.faults["out_of_order"] == 0


def test_a_cut_line_waits_until_its_hour_is_over(store: ContainerClient) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    kept(store, "cut", f"{soon:{collected.HOUR}}", line(0, soon) + line(1, soon)[:-1])
    assert ids("cut") == ["0"]
    content = line(0) + line(1)[:-1]
    kept(store, "whole", "2026/01/05/10", content)
    assert ids("whole") == ["0", "1"]
    kept(store, "half", "2026/01/05/10", content[:-9])
    faults = collected.Faults()
    assert len(list(collected.rows(None, "half", None, faults))) == 1  # type: ignore[arg-type]
    assert len(faults.damaged) == 1


def test_a_clock_a_day_from_its_hour_is_counted_and_left_out(store: ContainerClient) -> None:
    reset = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    content = line(0) + line(7, reset) + line(-86_400) + line(-86_401) + line(1)
    kept(store, "clock", "2026/01/05/10", content)
    kept(store, "clock", "2026/13/05/10", line(2))  # no hour at all: none that a collector writes
    faults = collected.Faults()
    rows: Any = collected.rows(None, "clock", None, faults)  # type: ignore[arg-type]
    assert {name for batch in rows for name in batch["request_id"].to_pylist()} == {
        *("0", "1", "-86400")
    }
    assert (faults.clock, faults.damaged) == (2, [])


def test_since_a_time_within_an_hour(store: ContainerClient) -> None:
    kept(store, "since", "2026/01/05/10", b"".join(map(line, range(6))))
    assert ids("since", START + datetime.timedelta(seconds=4)) == ["4", "5"]


def test_labelled_digits_that_are_no_longer_collected_stay(tmp_path: Path) -> None:
    task = params.task(params.load())
    requests, labels = tmp_path / "requests.parquet", tmp_path / "labels.parquet"
    for numbers in (range(6), range(4, 8)):
        rows, known = [], []
        for number in numbers:
            place = {"time": START, "request_id": f"id-{number}", "position": 0}
            answer = {"deployment": "blue", "model_version": "v1", "digit": "1", "confidence": 1.0}
            rows.append(place | answer | {"foreign": 0.0, "image": bytes([number]) * 784})
            known.append(place | {"label": str(number), "script": "mnist"})
        for path, content, schema in (
            (requests, rows, records.REQUESTS),
            (labels, known, records.LABELS),
        ):
            records.write(path, records.batches(content, schema), schema)
        monitor.write_labelled(tmp_path / "labelled", requests, labels, task)
    found = read_csv(tmp_path / "labelled" / "mnist_20260105.csv", 28, 10, "mnist")
    assert sorted(found.labels.tolist()) == list(range(8))
    assert (found.images[:, 0, 0] == found.labels).all()
