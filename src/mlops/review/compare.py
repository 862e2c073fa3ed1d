"""What differs between two snapshots: metrics beyond chance, classes, params, stages, data."""

import json
import math
from typing import Any

from scipy.special import stdtrit

from mlops.review.schema import Bounds, ClassChange, Metric, ParamChange, Verdict
from mlops.review.snapshot import Snapshot

CLASS_DEVIATIONS = 2.576  # a class beyond this is listed: 1 % of classes by chance
INTERVAL = ("_low", "_high")  # of the 95 % interval beside a metric
TEST_SET, TRAINING_SET = "data/prepared/test.npz", "data/prepared/training.npz"


def metrics(
    before: Snapshot, after: Snapshot, noise: dict[str, Any], gate: dict[str, dict[str, Any]]
) -> list[Metric]:
    """Return a row for each metric of either snapshot, without "before" if the test sets differ.

    Two runs that differ by chance alone differ by up to t(0.975, n - 1) * sqrt(2) * s in 95 %
    of cases, s the sample deviation of n seeds (`noise`, of data/noise.json): Student's interval
    for a difference of two single draws (Biometrika 6, 1908). Without it the 95 % intervals of
    metrics.json are combined by Newcombe's method 10 (Statistics in Medicine 17, 1998): the
    variance due to the test set, without that due to the seed.
    """
    seeds = len(noise.get("seeds", []))
    comparable, rows = not other_test_set(before, after), []
    for source in {**before.metrics, **after.metrics}:
        old, new = before.metrics.get(source, {}), after.metrics.get(source, {})
        for metric in {**old, **new}:
            if metric.endswith(INTERVAL):
                continue
            bound = None
            spread = noise.get("metrics", {}).get(source, {}).get(metric)
            if spread:
                bound = float(stdtrit(seeds - 1, 0.975)) * math.sqrt(2) * spread["deviation"]
            elif all(metric + end in row for row in (old, new) for end in INTERVAL):
                if new[metric] < old[metric]:
                    ends = (old[metric + "_low"], new[metric + "_high"])
                else:
                    ends = (old[metric + "_high"], new[metric + "_low"])
                bound = math.hypot(old[metric] - ends[0], new[metric] - ends[1])
            if bound is not None and not math.isfinite(bound):
                bound = None
            rule: Bounds | None = gate.get(source, {}).get(metric)
            earlier, chance = (old.get(metric), bound) if comparable else (None, None)
            rows.append(Metric(source, metric, earlier, new.get(metric), chance, rule))
    return rows


def verdict(rows: list[Metric]) -> Verdict:
    """Return the verdict over all rows; those outside the gate count only if better or worse."""
    found = {
        row.verdict
        for row in rows
        if row.bounds or (row.counts and row.verdict in ("better", "worse"))
    }
    if {"better", "worse"} <= found:
        return "mixed"
    order: tuple[Verdict, ...] = ("worse", "better", "unknown", "noise", "same")
    return next((word for word in order if word in found), "unknown")


def measured_with(noise: dict[str, Any], snapshot: Snapshot) -> list[str]:
    """Return the inputs of the seed variance that differ from this snapshot's.

    The data are compared by their MD5 in dvc.lock, the network by the hash of its layers'
    configuration in the lineage, where both have it. Nothing is compared by source files.
    """
    trained = noise.get("trained", {})
    data = trained.get("data") or {}
    hashed = outs(snapshot)
    pairs = {
        "epochs": (trained.get("epochs"), snapshot.params.get("epochs")),
        "classes": (trained.get("classes"), snapshot.params.get("classes")),
        "training data": (data.get("training.npz"), hashed.get(TRAINING_SET)),
        "test data": (data.get("test.npz"), hashed.get(TEST_SET)),
    }
    if trained.get("network") and snapshot.network:
        pairs["network"] = (trained["network"], snapshot.network)
    return [name for name, (measured, here) in pairs.items() if measured != here]


def outs(snapshot: Snapshot) -> dict[str, str]:
    """Return the MD5 of all outputs by path."""
    rows = (hashes(stage, "outs").items() for stage in snapshot.stages.values())
    return {path: md5 for row in rows for path, md5 in row}


def other_test_set(before: Snapshot, after: Snapshot) -> bool:
    """Return whether both snapshots have a test set, with different hashes."""
    old, new = (outs(side).get(TEST_SET) for side in (before, after))
    return bool(old and new and old != new)


def classes(before: Snapshot, after: Snapshot) -> list[ClassChange]:
    """Return the classes whose accuracy differs beyond chance, the largest change first.

    A test of two proportions with pooled variance at 99 %.
    """
    named = []
    for key in before.classes.keys() & after.classes.keys():
        (old, old_count), (new, new_count) = before.classes[key], after.classes[key]
        if min(old_count, new_count) < 1 or not math.isfinite(old + new):
            continue
        pooled = (old * old_count + new * new_count) / (old_count + new_count)
        deviation = math.sqrt(max(pooled * (1 - pooled), 0) * (1 / old_count + 1 / new_count))
        if abs(new - old) > CLASS_DEVIATIONS * deviation > 0:
            named.append(ClassChange(*key, old, new))
    return sorted(named, key=lambda row: (-abs(row.after - row.before), row.source, row.name))


def flat(values: Any, name: str = "") -> dict[str, str]:
    """Return nested values by dotted key, each as JSON."""
    if isinstance(values, dict) and values:
        found: dict[str, str] = {}
        for key, value in values.items():
            found |= flat(value, f"{name}.{key}" if name else str(key))
        return found
    return {name: json.dumps(values, ensure_ascii=False, default=str)}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[ParamChange]:
    """Return the keys whose value differs; the text is empty where there is no value."""
    old, new = (flat(values) if values else {} for values in (before, after))
    keys = [*old, *(key for key in new if key not in old)]
    return [
        ParamChange(k, old.get(k, ""), new.get(k, "")) for k in keys if old.get(k) != new.get(k)
    ]


def inputs(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    """Return what differs between two entries of dvc.lock for a stage: command, deps, params."""
    if before is None or after is None:
        return ["new stage" if before is None else "stage removed"]
    found = ["the command"] if before.get("cmd") != after.get("cmd") else []
    old, new = before.get("params") or {}, after.get("params") or {}
    for file in {**old, **new}:
        found += [row.key for row in changes(old.get(file) or {}, new.get(file) or {})]
    old_deps, new_deps = hashes(before, "deps"), hashes(after, "deps")
    return found + [
        path for path in {**old_deps, **new_deps} if old_deps.get(path) != new_deps.get(path)
    ]


def irreproducible(claimed: Snapshot, made: Snapshot) -> list[str]:
    """Return the stages whose outputs differ from those in dvc.lock for the same inputs."""
    return [
        name
        for name, stage in made.stages.items()
        if name in claimed.stages
        and not inputs(claimed.stages[name], stage)
        and hashes(claimed.stages[name], "outs") != hashes(stage, "outs")
    ]


def hashes(stage: dict[str, Any], kind: str) -> dict[str, str]:
    """Return the MD5 of a stage's deps or outs by path."""
    return {entry["path"]: str(entry.get("md5", "")) for entry in stage.get(kind) or []}
