"""Requests of a production that is made up: what was asked, what was answered, and late labels."""

from typing import Any

import numpy as np
import pyarrow as pa

from digits.production import records

START = 1_767_571_200_000  # 2026-01-05
SECOND = 1000


def answered(count: int, rng: np.random.Generator, foreign: float = 0.0) -> dict[str, Any]:
    """Return columns of requests, a second each; a share of them foreign and read by chance."""
    is_ood = rng.random(count) < foreign
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 10:18, 10:18] = 255
    images[:, 0, 0] = rng.integers(0, 3, count)
    truth = rng.integers(0, 10, count)
    guessed = rng.integers(0, 10, count)
    return {
        "time": START + SECOND * np.arange(count),
        "digit": np.where(is_ood, guessed, truth).astype(str),
        "truth": truth.astype(str),
        "script": np.where(is_ood, "devanagari", "mnist"),
        "confidence": np.where(is_ood, rng.beta(5, 2, count), 1 - rng.beta(0.3, 60, count)),
        "ood_score": np.where(is_ood, rng.beta(6, 3, count), rng.beta(2, 20, count)),
        "image": np.array([*(image.tobytes() for image in images), None], object)[:-1],
    }


def batches(columns: dict[str, Any], version: str = "v1") -> list[pa.RecordBatch]:
    """Return requests as batches of 700."""
    count = len(columns["time"])
    table = pa.table(
        {
            "time": pa.array(columns["time"], pa.timestamp("ms", tz="UTC")),
            "request_id": [f"id-{number}" for number in range(count)],
            "position": pa.array(np.zeros(count, np.uint16)),
            "deployment": ["blue"] * count,
            "model_version": [version] * count,
            "digit": columns["digit"],
            "confidence": pa.array(columns["confidence"], pa.float32()),
            "ood_score": pa.array(columns["ood_score"], pa.float32()),
            "image": pa.array(list(columns["image"]), pa.binary()),
        },
        schema=records.REQUESTS,
    )
    return table.to_batches(700)


def labels(columns: dict[str, Any], which: np.ndarray) -> list[pa.RecordBatch]:
    """Return labels of some of the requests, an hour late."""
    rows = [
        {
            "time": int(columns["time"][number]) + 3_600_000,
            "request_id": f"id-{number}",
            "position": 0,
            "label": str(columns["truth"][number]),
            "script": str(columns["script"][number]),
        }
        for number in which.tolist()
    ]
    return list(records.batches(rows, records.LABELS))
