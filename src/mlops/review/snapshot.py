"""The tracked results at a git revision or in the working tree.

Input is untrusted: a missing or malformed file is recorded in `problems`, never raised, and the
other files are still compared.
"""

import csv
import functools
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ruamel.yaml import YAML

METRICS, CLASSES = "data/evaluation/metrics.json", "data/evaluation/per_class.csv"
PRODUCTION, WINDOWS = "data/monitoring/metrics.json", "data/monitoring/windows.csv"
CURVES, LINEAGE = "data/model/curves.csv", "data/model/lineage.json"
NOISE = "data/noise.json"
TABLES = {METRICS, CLASSES, PRODUCTION, WINDOWS, CURVES}
MARKERS = re.compile(r"^(<{7}|>{7}) ", re.M)  # of a merge that git could not finish


@dataclass
class Snapshot:
    """The compared data; what could not be read is empty, with the reason in `problems`."""

    params: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)  # of dvc.lock
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # source, metric
    classes: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)  # column, epoch
    noise: dict[str, Any] = field(default_factory=dict)
    network: str = ""  # hash of the layers' configuration, where the lineage has it
    problems: list[str] = field(default_factory=list)


def read(file: Callable[[str], bytes | None], where: str) -> Snapshot:
    """Return a snapshot; `file` gives a file's bytes by its path, `where` names the place."""
    found = Snapshot()

    def parsed(path: str, parse: Callable[[str], Any], needed: bool = True) -> Any:
        content = file(path)
        if content is None:
            if needed:
                found.problems.append(f"{path} is missing {where}")
            return {}
        try:
            return parse(content.decode("utf-8"))
        except Exception as error:  # whatever hostile input makes a parser raise
            reason = " ".join(str(error).split())[:300]
            found.problems.append(f"{path} cannot be read {where}: {reason}")
            return {}

    found.params = parsed("params.yaml", mapping)
    found.stages = parsed("dvc.lock", lambda text: stages(mapping(text)))
    for path in parsed("dvc.yaml", metric_files, needed=False) or [METRICS]:
        found.metrics |= parsed(path, functools.partial(metrics, PurePath(path).stem))
    found.classes = parsed(CLASSES, classes, needed=False)
    found.curves = parsed(CURVES, curves, needed=False)
    found.noise = parsed(NOISE, noise, needed=False)
    lineage = parsed(LINEAGE, json.loads, needed=False)
    found.network = str(lineage.get("network", "")) if isinstance(lineage, dict) else ""
    return found


def mapping(text: str) -> dict[str, Any]:
    """Return YAML's mapping; raise ValueError for conflict markers and for anything else."""
    if MARKERS.search(text):
        raise ValueError("it has the conflict markers of an unfinished merge")
    values = YAML(typ="safe").load(text)
    if not isinstance(values, dict):
        raise ValueError("it is not a mapping of keys to values")
    return values


def stages(lock: dict[str, Any]) -> dict[str, Any]:
    """Return dvc.lock's stages; raise ValueError unless it has some, and all are mappings."""
    found = lock.get("stages")
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise ValueError("it has no stages")
    for row in found.values():
        for entry in [*row.get("deps", []), *row.get("outs", [])]:
            if not isinstance(entry["path"], str):
                raise ValueError("a path is not text")
        params = row.get("params") or {}
        if not all(isinstance(values, dict | type(None)) for values in params.values()):
            raise ValueError("params are not a mapping")
    return found


def metric_files(text: str) -> list[str]:
    """Return the JSON files that the stages of dvc.yaml declare as metrics, in their order."""
    stages = mapping(text)["stages"].values()
    entries = [entry for stage in stages for entry in stage.get("do", stage).get("metrics", [])]
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    return [path for path in paths if path.endswith(".json")]


def metrics(name: str, text: str) -> dict[str, dict[str, float]]:
    """Return a file's numbers by source and metric, without a source by `name`; NaN stays NaN."""
    values = json.loads(text)
    if not any(isinstance(row, dict) for row in values.values()):
        values = {name: values}
    return {
        source: {metric: number(value) for metric, value in row.items()}
        for source, row in values.items()
        if isinstance(row, dict) or _refuse(source, row)
    }


def noise(text: str) -> dict[str, Any]:
    """Return data/noise.json; raise KeyError or ValueError when it lacks what is used."""
    values = json.loads(text)
    for row in values["metrics"].values():
        for figures in row.values():
            if not 0 <= number(figures["deviation"]) < 1e9:
                _refuse("a deviation", figures["deviation"])
    trained = values.get("trained", {})
    if len(values["seeds"]) < 2 or not isinstance(trained.get("data", {}), dict):
        raise ValueError("it has fewer than two seeds, or does not state what was trained")
    return values


def number(value: Any) -> float:
    """Return a number as float; raise ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse("a value", value)
    return float(value)


def _refuse(name: str, value: Any) -> bool:
    raise ValueError(f"{name} is {str(value)[:40]!r}")


def classes(text: str) -> dict[tuple[str, str], tuple[float, int]]:
    """Return accuracy and count by source and class."""
    rows = csv.DictReader(io.StringIO(text))
    return {(r["source"], r["class"]): (float(r["accuracy"]), int(r["count"])) for r in rows}


def curves(text: str) -> dict[str, list[float]]:
    """Return the columns of the training curves, one number per epoch."""
    rows = list(csv.DictReader(io.StringIO(text)))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
