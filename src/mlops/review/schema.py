"""The report of a review as data, with a strict parser for untrusted JSON.

`digits review` fills these dataclasses and writes them as report.json; the job that comments on a
pull request reads that file, which the pull request's code may have forged, and renders it. Both
use this module, which imports the standard library and core.errors alone.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from core.errors import DigitsError

SCHEMA = 1
TEXT, ITEMS = 2_000, 2_000  # characters of a text, entries of a list: what is longer is cut
# What stages write and git keeps, beside dvc.lock.
MADE = r"dvc\.lock|data/(?:evaluation|model|monitoring|production)/[a-z_]+\.(?:json|csv)"
Verdict = Literal["better", "worse", "mixed", "noise", "same", "unknown"]


@dataclass(frozen=True)
class Bounds:
    """The gate's bounds for a metric."""

    direction: Literal["higher", "lower"]  # which is better
    limit: float  # no worse than this, whatever it was before
    tolerance: float  # no worse than before by more than this


@dataclass(frozen=True)
class Metric:
    """One metric of one source; None where a snapshot does not have it."""

    source: str
    metric: str
    before: float | None
    after: float | None
    noise: float | None  # a difference up to this may be chance; None: not known
    bounds: Bounds | None  # None: not part of the gate

    @property
    def difference(self) -> float | None:
        """After minus before, None unless both are finite."""
        if self.before is None or self.after is None:
            return None
        difference = round(self.after - self.before, 9)
        return difference if math.isfinite(difference) else None

    @property
    def counts(self) -> bool:
        """Whether the verdict counts it: a metric of the gate, or the accuracy on a test set."""
        return self.bounds is not None or (
            self.metric == "accuracy" and self.source != "production"
        )

    @property
    def verdict(self) -> Verdict:
        """Whether the metric is better or worse, and whether by more than chance."""
        if self.difference is None:
            return "unknown"
        if self.difference == 0:
            return "same"
        if self.noise is None:
            return "unknown"
        if abs(self.difference) <= self.noise:
            return "noise"
        lower = self.metric == "loss" or self.metric.endswith("error")
        if self.bounds:
            lower = self.bounds.direction == "lower"
        return "better" if (self.difference > 0) != lower else "worse"


@dataclass(frozen=True)
class ClassChange:
    """A class whose accuracy changed beyond chance."""

    source: str
    name: str
    before: float
    after: float


@dataclass(frozen=True)
class ParamChange:
    """A value of params.yaml that differs, as JSON; empty where there is none."""

    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Stage:
    """The result of `dvc repro` for a stage, and the inputs that differ from the base."""

    name: str
    what: Literal["", "ran", "restored", "unchanged"]  # empty: not run, or not reached
    seconds: float
    changed: list[str]


@dataclass(frozen=True)
class Gate:
    """Whether the change may be merged, and why not."""

    passed: bool
    reasons: list[str]


@dataclass(frozen=True)
class Report:
    """All that a review found."""

    verdict: Verdict  # over the accuracies and the metrics of the gate
    gate: Gate
    schema: int = SCHEMA
    head: str | None = None  # ids of commits
    dirty: bool = False  # the working tree differs from the head
    base: str | None = None
    against: str = ""  # how the base was found
    notes: list[str] = field(default_factory=list)  # what the change brings in, for the reader
    # What could not be read or is not used, each with a fix.
    problems: list[str] = field(default_factory=list)
    failed: str = ""  # where `dvc repro` failed, else empty
    last_lines: list[str] = field(default_factory=list)  # of what it printed then
    stages: list[Stage] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    classes: list[ClassChange] = field(default_factory=list)
    params: list[ParamChange] = field(default_factory=list)
    # By column, one number per epoch.
    curves_before: dict[str, list[float]] = field(default_factory=dict)
    curves_after: dict[str, list[float]] = field(default_factory=dict)


def dump(report: Report) -> str:
    """Return report.json; texts and lists are cut, and NaN and infinity become null."""
    return json.dumps(_cut(asdict(report)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse(content: bytes) -> Report:
    """Return the report in a file report.json; raise DigitsError for anything else."""
    try:
        report = _read(Report, json.loads(content), "report.json")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DigitsError(f"{' '.join(str(error).split())[:300]}") from None
    if report.schema != SCHEMA:
        raise DigitsError(f"report.json: schema: expected {SCHEMA}, found {report.schema}")
    return report


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key)[:TEXT]: _cut(item) for key, item in list(value.items())[:ITEMS]}
    if isinstance(value, list):
        return [_cut(item) for item in value[:ITEMS]]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value[:TEXT] if isinstance(value, str) else value


def _read(kind: Any, value: Any, where: str) -> Any:
    """Return a JSON value as what `kind` names; raise ValueError when it is anything else."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:  # X | None
        return None if value is None else _read(arguments[0], value, where)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is list and isinstance(value, list) and len(value) <= ITEMS:
        return [_read(arguments[0], item, f"{where}[]") for item in value]
    if origin is dict and isinstance(value, dict) and len(value) <= ITEMS:
        return {
            _read(str, key, where): _read(arguments[1], item, f"{where}.*")
            for key, item in value.items()
        }
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        names, hints = [one.name for one in fields(kind)], get_type_hints(kind)
        if set(value) != set(names):
            raise ValueError(f"{where}: expected the keys {', '.join(names)}")
        return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in names})
    if kind is float and type(value) in (int, float) and abs(value) < 1e300:  # false for NaN
        return float(value)
    if kind is int and type(value) is int and abs(value) < 2**63:
        return value
    if kind is bool and type(value) is bool:
        return value
    if kind is str and isinstance(value, str) and len(value) <= TEXT:
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ValueError(f"{where}: expected {expected}, found {str(value)[:40]!r}")
