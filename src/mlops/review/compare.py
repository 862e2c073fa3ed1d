"""What differs between two sides: metrics against noise, classes, params, stages, data."""

import json
import math
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from mlops.review.snapshot import Side

CLASS_DEVIATIONS = 2.576  # a class is named beyond this: 1 % of classes by chance
INTERVAL = ("_low", "_high")  # of the 95 % interval beside a metric


@dataclass(frozen=True)
class Row:
    """One metric of one source; None where a side does not have it."""

    source: str
    metric: str
    before: float | None
    after: float | None
    noise: float | None  # a difference up to this may be chance; None: not known
    basis: str  # of `noise`: seeds, interval or unknown

    @property
    def difference(self) -> float | None:
        """After minus before, None unless both are finite."""
        if self.before is None or self.after is None:
            return None
        difference = round(self.after - self.before, 9)
        return difference if math.isfinite(difference) else None

    @property
    def verdict(self) -> str:
        """One of same, noise, better, worse, unknown."""
        if self.difference is None:
            return "unknown"
        if self.difference == 0:
            return "same"
        if self.noise is None:
            return "unknown"
        if abs(self.difference) <= self.noise:
            return "noise"
        lower = self.metric == "loss" or self.metric.endswith("error")
        return "better" if (self.difference > 0) != lower else "worse"


def metrics(before: Side, after: Side) -> list[Row]:
    """Return a row for each metric of either side.

    Two runs that differ by chance alone differ by up to t(0.975, n - 1) * sqrt(2) * s in 95 %
    of cases, s the sample deviation of n seeds (data/noise.json): Student's interval for a
    difference of two single draws (Biometrika 6, 1908). Without it the 95 % intervals of
    metrics.json stand in, put together by Newcombe's method 10 (Statistics in Medicine 17,
    1998): the chance in the test set alone, not that of the seed.
    """
    noise = after.noise or before.noise
    seeds = len(noise.get("seeds", []))
    rows = []
    for source in {**before.metrics, **after.metrics}:
        old, new = before.metrics.get(source, {}), after.metrics.get(source, {})
        for metric in {**old, **new}:
            if metric.endswith(INTERVAL):
                continue
            bound, basis = None, "unknown"
            spread = noise.get("metrics", {}).get(source, {}).get(metric)
            if spread:
                bound = float(stdtrit(seeds - 1, 0.975)) * math.sqrt(2) * spread["deviation"]
                basis = "seeds"
            elif all(metric + end in row for row in (old, new) for end in INTERVAL):
                if new[metric] < old[metric]:
                    ends = (old[metric + "_low"], new[metric + "_high"])
                else:
                    ends = (old[metric + "_high"], new[metric + "_low"])
                bound = math.hypot(old[metric] - ends[0], new[metric] - ends[1])
                basis = "interval"
            if bound is not None and not math.isfinite(bound):
                bound, basis = None, "unknown"
            rows.append(Row(source, metric, old.get(metric), new.get(metric), bound, basis))
    return rows


def verdict(rows: list[Row]) -> str:
    """Return one word for the rows that count: better, worse, mixed, noise, same, unknown."""
    found = {row.verdict for row in rows}
    if {"better", "worse"} <= found:
        return "mixed"
    for word in ("worse", "better", "unknown", "noise", "same"):
        if word in found:
            return word
    return "unknown"


def classes(before: Side, after: Side) -> list[tuple[str, str, float, float]]:
    """Return source, class, accuracy before and after where the two differ beyond chance.

    A test of two proportions with pooled variance at 99 %, largest change first.
    """
    named = []
    for key in before.classes.keys() & after.classes.keys():
        (old, old_count), (new, new_count) = before.classes[key], after.classes[key]
        if min(old_count, new_count) < 1 or not math.isfinite(old + new):
            continue
        pooled = (old * old_count + new * new_count) / (old_count + new_count)
        deviation = math.sqrt(max(pooled * (1 - pooled), 0) * (1 / old_count + 1 / new_count))
        if abs(new - old) > CLASS_DEVIATIONS * deviation > 0:
            named.append((*key, old, new))
    return sorted(named, key=lambda row: (-abs(row[3] - row[2]), row[:2]))


def flat(values: Any, name: str = "") -> dict[str, str]:
    """Return nested values by dotted key, each as JSON."""
    if isinstance(values, dict) and values:
        found: dict[str, str] = {}
        for key, value in values.items():
            found |= flat(value, f"{name}.{key}" if name else str(key))
        return found
    return {name: json.dumps(values, ensure_ascii=False, default=str)}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return key, value before, value after of what differs; empty text where there is none."""
    old, new = (flat(values) if values else {} for values in (before, after))
    keys = [*old, *(key for key in new if key not in old)]
    return [(k, old.get(k, ""), new.get(k, "")) for k in keys if old.get(k) != new.get(k)]


def reasons(before: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
    """Return what differs between two entries of dvc.lock for one stage: command, deps, params."""
    if before is None:
        return ["new stage"]
    found = ["the command"] if before.get("cmd") != after.get("cmd") else []
    old, new = before.get("params") or {}, after.get("params") or {}
    for file in {**old, **new}:
        found += [row[0] for row in changes(old.get(file) or {}, new.get(file) or {})]
    old_deps, new_deps = hashes(before, "deps"), hashes(after, "deps")
    return found + [
        path for path in {**old_deps, **new_deps} if old_deps.get(path) != new_deps.get(path)
    ]


def hashes(stage: dict[str, Any], kind: str) -> dict[str, tuple[str, int, int]]:
    """Return MD5, bytes and number of files of a stage's deps or outs by path."""
    return {
        entry["path"]: (str(entry.get("md5", "")), entry.get("size", 0), entry.get("nfiles", 1))
        for entry in stage.get(kind) or []
    }


def data(before: Side, after: Side) -> list[tuple[str, Any, Any]]:
    """Return path, (MD5, bytes, files) before and after of data whose hash differs."""
    old, new = (
        {
            path: row
            for stage in side.stages.values()
            for kind in ("deps", "outs")
            for path, row in hashes(stage, kind).items()
            if path.startswith("data/")
        }
        for side in (before, after)
    )
    return [(p, old.get(p), new.get(p)) for p in {**old, **new} if old.get(p) != new.get(p)]


def counts(before: Side, after: Side) -> list[tuple[str, Any, Any]]:
    """Return source, (rows, classes) before and after of test sets whose size differs."""
    old, new = test_sets(before), test_sets(after)
    sources = {**old, **new} if old else {}
    return [(s, old.get(s), new.get(s)) for s in sources if old.get(s) != new.get(s)]


def test_sets(side: Side) -> dict[str, tuple[int, int]]:
    """Return rows and classes of each source's test set."""
    found: dict[str, tuple[int, int]] = {}
    for (source, _), (_, count) in side.classes.items():
        rows, number = found.get(source, (0, 0))
        found[source] = (rows + count, number + 1)
    return found
