"""What score.py hands to the data collector, without the inference server."""

import base64
from typing import Any

import numpy as np
import pandas as pd
import pytest

from digits.serving import score


class Tables:
    """A collector that keeps the tables."""

    def __init__(self) -> None:
        self.tables: list[pd.DataFrame] = []

    def collect(self, table: pd.DataFrame, context: Any) -> None:
        """Keep a table."""
        self.tables.append(table)


@pytest.mark.parametrize(("limit", "rows"), [(2_000_000, [5]), (2500, [2, 2, 1]), (1, [1] * 5)])
def test_a_request_is_collected_in_tables_of_limited_size(
    monkeypatch: pytest.MonkeyPatch, limit: int, rows: list[int]
) -> None:
    monkeypatch.setattr(score, "TABLE_BYTES", limit)
    collection = score.Collection.__new__(score.Collection)  # without the collector's threads
    kept = collection.collector = Tables()
    collection.lost = 0
    images = np.arange(5, dtype=np.uint8).repeat(28 * 28).reshape(5, 28, 28)
    answer = {"model_version": "v1", "predictions": [{"digit": str(n)} for n in range(5)]}
    assert collection.collect("id", images, answer) == 0
    assert [len(table) for table in kept.tables] == rows
    table = pd.concat(kept.tables)
    assert table["request_id"].tolist() == ["id"] * 5
    assert table["position"].tolist() == list(range(5))
    assert table["digit"].tolist() == ["0", "1", "2", "3", "4"]
    assert [base64.b64decode(image)[0] for image in table["image"]] == list(range(5))
