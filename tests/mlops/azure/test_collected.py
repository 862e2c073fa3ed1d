"""What production kept, read from the real blob emulator: blobs that grow, instances, hours."""

import datetime
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frozen
import pytest
from azure.core.exceptions import ServiceRequestError
from azure.storage.blob import ContainerClient
from conftest import Azurite

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
    server = Azurite(tmp_path_factory.mktemp("azurite"))
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
def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the module read small parts."""
    monkeypatch.setattr(collected, "BLOCK_BYTES", PART)


def line(second: float, start: datetime.datetime = START) -> bytes:
    """Return what the collector writes for a request."""
    row = {"image": "AA==", "model_version": "v1", "digit": "1", "confidence": 1, "ood_score": 0}
    row |= {"request_id": f"{second}", "position": 0}
    time = start + datetime.timedelta(seconds=second)
    event = {"source": "blue", "time": time.isoformat(), "data": [row]}
    return json.dumps(event).encode() + b"\n"


def kept(store: ContainerClient, endpoint: str, hour: str, content: bytes, name: str = "a") -> Any:
    """Put a growing blob where the collector puts it."""
    path = f"modelDataCollector/{endpoint}/blue/model_inputs_outputs/{hour}/{name}.jsonl"
    blob = store.get_blob_client(path)
    blob.create_append_blob()
    blob.append_block(content)
    return blob


def read(
    store: ContainerClient,
    endpoint: str,
    since: datetime.datetime | None = None,
    left: monitor.LeftOut | None = None,
) -> list[dict[str, Any]]:
    """Return the rows that were collected."""
    hours = collected.hours(store, collected.ROWS, endpoint, since)
    return list(monitor.rows(hours, since, left or monitor.LeftOut()))


def ids(store: ContainerClient, endpoint: str, since: datetime.datetime | None = None) -> list[str]:
    """Return the ids of what was collected."""
    return [row["request_id"] for row in read(store, endpoint, since)]


def test_a_blob_that_grows_while_it_is_read_is_read(
    store: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = kept(store, "grows", "2026/01/05/10", b"".join(map(line, range(20))))
    parse = records.parse_requests

    def slow(content: bytes) -> list[dict[str, Any]]:
        blob.append_block(line(99))
        return parse(content)

    monkeypatch.setattr(records, "parse_requests", slow)
    assert ids(store, "grows") == [str(number) for number in range(20)]


def test_instances_are_read_side_by_side(store: ContainerClient) -> None:
    for name in ("a", "b"):
        own = [line(2 * number + (name == "b")) for number in range(20)]
        kept(store, "two", "2026/01/05/10", b"".join(own), name)
    batches = records.batches(read(store, "two"), records.REQUESTS)
    scan = records.Scan(("1",), 1)
    for batch in batches:
        scan.add(batch)
    found = scan.rows(None)
    assert found.valid.sum() == 40
    assert found.issues["out_of_order"] == 0


def test_a_cut_line_waits_until_its_hour_is_over(store: ContainerClient) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    kept(store, "cut", f"{soon:{collected.HOUR}}", line(0, soon) + line(1, soon)[:-1])
    assert ids(store, "cut") == ["0"]
    content = line(0) + line(1)[:-1]
    kept(store, "whole", "2026/01/05/10", content)
    assert ids(store, "whole") == ["0", "1"]
    kept(store, "half", "2026/01/05/10", content[:-9])
    left = monitor.LeftOut()
    assert len(read(store, "half", None, left)) == 1
    assert len(left.damaged) == 1


def test_a_clock_a_day_from_its_hour_is_counted_and_left_out(store: ContainerClient) -> None:
    reset = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    content = line(0) + line(7, reset) + line(-86_400) + line(-86_401) + line(1)
    kept(store, "clock", "2026/01/05/10", content)
    kept(store, "clock", "2026/13/05/10", line(2))  # no hour at all: none that a collector writes
    left = monitor.LeftOut()
    rows = read(store, "clock", None, left)
    assert {row["request_id"] for row in rows} == {"0", "1", "-86400"}
    assert (left.clock, left.damaged) == (2, [])


def test_since_a_time_within_an_hour(store: ContainerClient) -> None:
    kept(store, "since", "2026/01/05/10", b"".join(map(line, range(6))))
    assert ids(store, "since", START + datetime.timedelta(seconds=4)) == ["4", "5"]


def test_a_follower_gives_each_complete_line_once(store: ContainerClient) -> None:
    follower = collected.Follower(collected.ROWS, "follow")

    def fresh(at_most: int = 10_000) -> list[str]:
        found = monitor.rows(follower.fresh(store, at_most), None, monitor.LeftOut())
        return [row["request_id"] for row in found]

    assert fresh() == []
    blob = kept(store, "follow", "2026/01/05/10", line(0) + line(1)[:-9])
    kept(store, "follow", "2026/01/05/11", line(3600) + b"\n")
    assert fresh() == ["0", "3600"]
    blob.append_block(line(1)[-9:] + line(2))
    assert fresh(len(line(1))) == ["1"]  # about so many bytes at once
    assert fresh() == ["2"]
    assert fresh() == []


def test_a_follower_waits_for_a_store_that_is_away() -> None:
    class Away:
        """A container that does not answer."""

        def list_blobs(self, **_: Any) -> Any:
            raise ServiceRequestError("away")

    follower = collected.Follower(collected.ROWS, "e")
    assert list(follower.fresh(Away(), 1000)) == []  # type: ignore[arg-type]


def test_labelled_digits_that_are_no_longer_collected_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(params, "load", frozen.values)
    task = params.task(params.load())
    requests, labels = tmp_path / "requests.parquet", tmp_path / "labels.parquet"
    for numbers in (range(6), range(4, 8)):
        rows, known = [], []
        for number in numbers:
            name = f"try-{number}" if number % 2 else f"id-{number}"  # try-outs are learnt, too
            place = {"time": START, "request_id": name, "position": 0}
            answer = {"deployment": "blue", "model_version": "v1", "digit": "1", "confidence": 1.0}
            rows.append(place | answer | {"ood_score": 0.0, "image": bytes([number]) * 784})
            known.append(place | {"label": str(number), "script": "mnist"})
        for path, content, schema in (
            (requests, rows, records.REQUESTS),
            (labels, known, records.LABELS),
        ):
            records.write(path, records.batches(content, schema), schema)
        monitor.write_labelled(tmp_path / "labelled", tmp_path, task)
    found = read_csv(tmp_path / "labelled" / "mnist_20260105.csv", 28, 10, "mnist")
    assert sorted(found.labels.tolist()) == list(range(8))
    assert (found.images[:, 0, 0] == found.labels).all()
