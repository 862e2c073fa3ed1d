"""True labels, which come late: the join of labels to the requests that they belong to."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from digits.production import records

FAULTS = ("labels_damaged", "labels_doubled", "labels_other_version", "labels_unmatched")


@dataclass(frozen=True)
class Joined:
    """The labels of requests, (n,) in the order of these.

    truth: int16, the true class as an index of classes; script: int16, an index of `scripts`;
    both -1 where no label is known; faults: how many labels have which.
    """

    truth: np.ndarray
    script: np.ndarray
    scripts: list[str]
    faults: dict[str, int]


class Labels:
    """Reads labels batch by batch; `join` looks for the requests of those read so far."""

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
        """Return what each label belongs to, uint64 (n,), and its class and script, (n, 2)."""
        ids, known = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        self.parts = [(ids, known)]
        return ids, known

    def forget(self, count: int) -> None:
        """Forget the first labels."""
        ids, known = self.columns()
        self.parts = [(ids[count:].copy(), known[count:].copy())]

    def join(self, rows: records.Rows) -> Joined:
        """Return the labels of rows.

        Labels of what another model answered are no fault of theirs: they are counted by
        themselves. Of images that share an id nobody knows which one a label belongs to.
        """
        ids, known = self.columns()
        counted = np.flatnonzero(rows.counts)
        order = counted[np.argsort(rows.identity[counted])]
        asked = rows.identity[order]
        first, last = (np.searchsorted(asked, ids, side) for side in ("left", "right"))
        damaged = (known < 0).any(axis=1)
        other = ~damaged & (first == last) & np.isin(ids, rows.identity[rows.other])
        matched = np.flatnonzero(~damaged & ~other & (last - first == 1))
        row = order[first[matched]]
        again = pd.Series(row).duplicated().to_numpy()
        joined = np.full((len(rows.time), 2), -1, np.int16)
        joined[row[~again]] = known[matched[~again]]
        found = (damaged.sum(), again.sum(), other.sum())
        unmatched = len(ids) - len(matched) - damaged.sum() - other.sum()
        faults = dict(zip(FAULTS, map(int, (*found, unmatched)), strict=True))
        return Joined(joined[:, 0], joined[:, 1], list(self.scripts), faults)


def join(labels: Iterable[pa.RecordBatch], rows: records.Rows, classes: tuple[str, ...]) -> Joined:
    """Return the labels of rows, from all batches of LABELS."""
    found = Labels(classes)
    for batch in labels:
        found.add(batch)
    return found.join(rows)
