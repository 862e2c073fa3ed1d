"""Records of production: corrupted, duplicate and late rows are counted and never fatal."""

import base64
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from core.errors import DigitsError
from digits.production import records

CLASSES = tuple("0123456789")
START = datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC)


def row(number: int, **changes: Any) -> dict[str, Any]:
    """Return one whole row of REQUESTS."""
    return {
        "time": START + datetime.timedelta(seconds=number),
        "request_id": f"id-{number}",
        "position": 0,
        "deployment": "blue",
        "model_version": "v1",
        "digit": "3",
        "confidence": 0.99,
        "ood_score": 0.1,
        "image": bytes([number % 256]) * 784,
    } | changes


def look(*rows: dict[str, Any], now_ms: int | None = None) -> records.Rows:
    """Return what is known of rows, in batches of two."""
    batches = [
        pa.RecordBatch.from_pylist(list(rows[start : start + 2]), records.REQUESTS)
        for start in range(0, len(rows), 2)
    ]
    scan = records.Scan(CLASSES, 28)
    for batch in batches:
        scan.add(batch)
    return scan.rows({"v1"}, now_ms)


@pytest.mark.parametrize(
    "change",
    [
        {"image": b"short"},
        {"image": None},
        {"digit": "x"},
        {"digit": None},
        {"confidence": float("nan")},
        {"confidence": 1.5},
        {"ood_score": -0.1},
        {"ood_score": None},
        {"time": None},
        {"request_id": None},
    ],
    ids=str,
)
def test_a_damaged_row_is_counted_as_such(change: dict[str, Any]) -> None:
    found = look(row(0), row(1, **change), row(2))
    assert found.issues == dict.fromkeys(records.ISSUES, 0) | {"corrupted": 1}
    assert found.valid.tolist() == [True, False, True]


def test_a_retry_counts_once_and_a_second_image_is_no_retry() -> None:
    found = look(row(0), row(1), row(0), row(0, position=1), row(1, digit="4"))
    assert found.issues["duplicate"] == 2
    assert found.valid.tolist() == [True, True, False, True, False]


def test_another_image_under_the_same_id_is_a_request_of_its_own() -> None:
    found = look(row(0), row(0, image=bytes([7]) * 784), row(0))
    assert found.valid.tolist() == [True, True, False]
    assert found.issues["duplicate"] == 1


def test_a_damaged_row_does_not_hide_its_retry() -> None:
    found = look(row(0, image=b""), row(0))
    assert found.valid.tolist() == [False, True]
    assert found.issues["duplicate"] == 0


def test_a_clock_in_the_future_is_counted() -> None:
    now = int(START.timestamp() * 1000) + 1000
    found = look(row(0), row(1), row(500), now_ms=now)
    assert found.issues["wrong_clock"] == 1
    assert found.valid.tolist() == [True, True, False]


def test_another_model_is_counted_not_judged() -> None:
    found = look(row(0), row(1, model_version="v2"), row(2, model_version=""))
    assert found.issues["other_model"] == 2
    assert found.valid.tolist() == [True, False, False]


def test_late_rows_and_those_out_of_order_count() -> None:
    found = look(row(7200), row(7199), row(3), row(7201))
    assert found.issues["out_of_order"] == 1
    assert found.issues["late"] == 1
    assert found.valid.all()


def test_no_rows_at_all() -> None:
    found = look()
    assert not len(found.valid)
    assert not any(found.issues.values())


def line(**changes: Any) -> dict[str, Any]:
    """Return what Azure's collector writes for requests of two images and of one, merged."""
    answer = {
        "request_id": "abc",
        "model_version": "v1",
        "digit": "7",
        "confidence": 0.9,
        "ood_score": 0.2,
    }
    images = [base64.b64encode(bytes([n]) * 784).decode() for n in (1, 2, 3)]
    data = [answer | {"position": n, "image": image} for n, image in enumerate(images)]
    data[2] |= {"request_id": "def", "position": 0}
    return {
        "specversion": "1.0",
        "source": "/subscriptions/s/onlineEndpoints/digits/deployments/blue",
        "time": "2026-01-05T10:00:00Z",
        "data": data,
        "correlationid": "abc",
        "xrequestid": "abc",
    } | changes


def test_a_line_of_the_collector_becomes_rows() -> None:
    first, second, third = records.parse_requests(json.dumps(line()).encode())
    assert (first["request_id"], first["position"], second["position"]) == ("abc", 0, 1)
    assert (third["request_id"], third["position"]) == ("def", 0)
    assert first["deployment"] == "blue"
    assert first["time"] == datetime.datetime(2026, 1, 5, 10, tzinfo=datetime.UTC)
    assert second["image"] == bytes([2]) * 784
    batch = pa.RecordBatch.from_pylist([first, second], records.REQUESTS)
    assert (records.images(batch.slice(1), 28) == 2).all()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        *(
            json.dumps(line(**change)).encode()
            for change in (
                {"time": "yesterday"},
                {"time": "2026-01-05T10:00:00"},
                {"time": 5},
                {"data": [line()["data"][0] | {"position": 65_536}]},
                {"data": [line()["data"][0] | {"position": True}]},
                {"data": [line()["data"][0] | {"request_id": "\ud800"}]},
                {"data": [line()["data"][0] | {"request_id": None}]},
                {"data": [line()["data"][0] | {"request_id": ""}]},
                {"data": [line()["data"][0] | {"model_version": None}]},
                {"data": [{"image": "AA=="}]},
                {"data": [{"image": "%%", "model_version": "", "digit": "1"}]},
            )
        ),
    ],
    ids=lambda content: content[:30],
)
def test_a_damaged_line_raises_value_error_alone(damaged: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        records.parse_requests(damaged)
    assert caught.type is not records.StoredElsewhereError


def test_lines_whose_rows_are_stored_elsewhere_are_counted_apart() -> None:
    whole = line()
    del whole["data"]
    lines = [line(), whole | {"dataref": "https://store/rows"}, line(data=3), line(data=[{}])]
    damaged: list[str] = []
    elsewhere: list[str] = []
    blob = iter([(f"line {n}", json.dumps(one).encode()) for n, one in enumerate(lines)])
    assert len(list(records.merge([blob], records.parse_requests, damaged, elsewhere))) == 3
    assert [place[:6] for place in elsewhere] == ["line 1", "line 2"]
    assert [place[:6] for place in damaged] == ["line 3"]


@pytest.mark.parametrize(
    "change",
    [
        {"position": -1},
        {"position": "0"},
        {"position": True},
        {"label": "\udc00"},
        {"request_id": None},
        {"time": ""},
    ],
)
def test_a_damaged_label_raises_value_error_alone(change: dict[str, Any]) -> None:
    whole = {"time": "2026-01-05T10:00:00.500Z", "request_id": "abc", "position": 1}
    whole |= {"label": "7", "script": "mnist"}
    (row,) = records.parse_label(json.dumps(whole).encode())
    assert row["label"] == "7"
    with pytest.raises(ValueError):
        records.parse_label(json.dumps(whole | change).encode())


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    rows = [row(number) for number in range(5)]
    records.write(path, records.batches(rows, records.REQUESTS), records.REQUESTS)
    (batch,) = records.read(path, records.REQUESTS)
    assert batch.to_pylist()[4]["request_id"] == "id-4"
    assert np.array_equal(records.images(batch, 28)[:, 0, 0], np.arange(5))


def test_files_that_are_no_use_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    with pytest.raises(DigitsError, match=r"not found\. Run `dvc repro`"):
        list(records.read(path, records.REQUESTS))
    path.write_bytes(b"no parquet")
    with pytest.raises(DigitsError, match="is corrupted"):
        list(records.read(path, records.REQUESTS))
    records.write(path, records.batches([], records.LABELS), records.LABELS)
    with pytest.raises(DigitsError, match="expected the columns time, request_id"):
        list(records.read(path, records.REQUESTS))
