"""Join late true labels to requests, by request id and position.

Input: batches of the schemas LABELS and REQUESTS. Output: the label of each request, and counts of
data-quality issues.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from digits.production import records

ISSUES = ("labels_corrupted", "labels_duplicate", "labels_other_model", "labels_unmatched")


@dataclass(frozen=True)
class Joined:
    """The labels of n requests, in the order of the requests.

    truth: int16 (n,), the index of the true class; script: int16 (n,), an index of `scripts`; both
    are -1 without a label. issues: the number of labels with each of ISSUES.
    """

    truth: np.ndarray
    script: np.ndarray
    scripts: list[str]
    issues: dict[str, int]


class Labels:
    """Reads labels batch by batch; `join` joins those read so far."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.scripts: dict[str, int] = {}
        self.parts = [(np.zeros(0, np.uint64), np.zeros((0, 2), np.int16))]

    def add(self, batch: pa.RecordBatch) -> None:
        """Read a batch of LABELS."""
        truth = pc.index_in(batch["label"], pa.array(self.classes)).fill_null(-1).to_pylist()
        script = [
            -1 if name is None else self.scripts.setdefault(name, len(self.scripts))
            for name in batch["script"].to_pylist()
        ]
        self.parts.append((records.identities(batch), np.column_stack([truth, script])))

    @property
    def count(self) -> int:
        return sum(len(ids) for ids, _ in self.parts)

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the identity of each label's request, uint64 (n,), and class and script (n, 2)."""
        ids, known = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        self.parts = [(ids, known)]
        return ids, known

    def forget(self, count: int) -> None:
        """Delete the first `count` labels."""
        ids, known = self.columns()
        self.parts = [(ids[count:].copy(), known[count:].copy())]

    def join(self, rows: records.Rows) -> Joined:
        """Return the labels of rows.

        Labels of requests to another model are counted separately; labels of excluded try-outs are
        ignored. Labels of images that share an id are unmatched, because the id is ambiguous.
        """
        ids, known = self.columns()
        tried = np.isin(ids, rows.identity[rows.tryout & ~rows.valid])
        ids, known = ids[~tried], known[~tried]
        counted = np.flatnonzero(rows.valid)
        order = counted[np.argsort(rows.identity[counted])]
        asked = rows.identity[order]
        first, last = (np.searchsorted(asked, ids, side) for side in ("left", "right"))
        corrupted = (known < 0).any(axis=1)
        other_model = ~corrupted & (first == last) & np.isin(ids, rows.identity[rows.other_model])
        matched = np.flatnonzero(~corrupted & ~other_model & (last - first == 1))
        row = order[first[matched]]
        repeated = pd.Series(row).duplicated().to_numpy()
        joined = np.full((len(rows.time), 2), -1, np.int16)
        joined[row[~repeated]] = known[matched[~repeated]]
        found = (corrupted.sum(), repeated.sum(), other_model.sum())
        unmatched = len(ids) - len(matched) - corrupted.sum() - other_model.sum()
        issues = dict(zip(ISSUES, map(int, (*found, unmatched)), strict=True))
        return Joined(joined[:, 0], joined[:, 1], list(self.scripts), issues)
