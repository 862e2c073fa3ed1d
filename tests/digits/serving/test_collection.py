"""What score.py hands to the data collector, without the inference server."""

import base64
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from digits.serving import score


class Tables:
    """A collector that keeps the tables."""

    def __init__(self) -> None:
        self.tables: list[pd.DataFrame] = []
        self.ids: list[str] = []

    def collect(self, table: pd.DataFrame, context: Any) -> None:
        """Keep a table and its id."""
        self.tables.append(table)
        self.ids.append(context.get_id())


@pytest.fixture
def collection(monkeypatch: pytest.MonkeyPatch) -> Iterator[score.Collection]:
    """A collection whose thread has ended, with a collector that keeps the tables."""
    monkeypatch.setattr(score, "Collector", lambda **_: Tables())
    monkeypatch.setattr("atexit.register", lambda _: None)
    made = score.Collection()
    made.end()
    yield made
    logging.getLogger("mdc.worker").removeHandler(made)


def answer(count: int) -> dict[str, Any]:
    return {"model_version": "v1", "predictions": [{"digit": str(n % 10)} for n in range(count)]}


def some_images(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).repeat(28 * 28).reshape(count, 28, 28)


@pytest.mark.parametrize(
    ("limits", "rows"),
    [((2_000_000, 250), [5]), ((2500, 250), [2, 2, 1]), ((1, 250), [1] * 5), ((9999, 3), [3, 2])],
)
def test_requests_are_collected_in_tables_of_limited_size(
    collection: score.Collection,
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    rows: list[int],
) -> None:
    monkeypatch.setattr(score, "TABLE_BYTES", limits[0])
    monkeypatch.setattr(score, "TABLE_ROWS", limits[1])
    images = some_images(5)
    assert collection.collect("first", images[:2], answer(2)) == 0
    assert collection.collect("second", images[2:], answer(3)) == 0
    collection.send()
    tables = collection.collector.tables
    assert [len(table) for table in tables] == rows
    table = pd.concat(tables)
    assert table["request_id"].tolist() == ["first"] * 2 + ["second"] * 3
    assert table["position"].tolist() == [0, 1, 0, 1, 2]
    assert table["digit"].tolist() == ["0", "1", "0", "1", "2"]
    assert [base64.b64decode(image)[0] for image in table["image"]] == list(range(5))


def test_a_table_of_white_images_has_the_same_limit(collection: score.Collection) -> None:
    images = np.full((250, 84, 84), 255, np.uint8)  # Base64: slashes
    assert collection.collect("first", images, answer(250)) == 0
    collection.send()
    texts = [table.to_json(orient="records") for table in collection.collector.tables]
    assert max(map(len, texts)) <= score.TABLE_BYTES < sum(map(len, texts))


def test_what_a_slow_collector_leaves_waiting_is_limited_and_counted(
    collection: score.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "WAITING_IMAGES", 4)
    lost = [collection.collect(str(n), some_images(2), answer(2)) for n in range(4)]
    assert lost == [0, 0, 1, 2]


def test_a_table_that_is_not_sent_counts_as_its_requests(collection: score.Collection) -> None:
    for n in range(3):
        collection.collect(str(n), some_images(2), answer(2))
    collection.send()
    (identity,) = collection.collector.ids
    # the arguments of the message of azureml.ai.monitoring's worker.py
    logging.getLogger("mdc.worker").error(
        "worker thread %d: send payload %s@%s failed - %s", 0, "name", identity, "no"
    )
    assert collection.lost == 3


def test_a_library_that_fails_loses_the_requests_and_stops_nothing(
    collection: score.Collection,
) -> None:
    collection.collector = None
    collection.collect("one", some_images(1), answer(1))
    collection.send()
    assert collection.lost == 1
