"""The gate: section `review` of params.yaml, its limits for metrics, and the check against them."""

import math
from typing import Annotated

from pydantic import Field
from ruamel.yaml import YAML

from core import params
from core.params import strict
from mlops.review.schema import Bounds, Metric

NotNegative = Annotated[float, Field(ge=0)]


@strict
class Rule(Bounds):
    """The bounds of one metric, as params.yaml has them."""

    tolerance: NotNegative


@strict
class Retrain:
    """The retraining that is proposed when production drifts."""

    propose: bool  # by monitor.yml, as a pull request
    # What the experiment changes in params.yaml, in addition to using the labelled digits.
    set: dict[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")], bool | int | float | str]


@strict
class Params:
    """Section `review` of params.yaml."""

    retrain: Retrain
    gate: dict[str, dict[str, Rule]]  # by source and metric


def load() -> Params:
    """Return the section of params.yaml; raises DigitsError as params.py does."""
    return params.section(Params, params.load(), "review")


def judge(rows: list[Metric], gate: dict[str, dict[str, Rule]]) -> list[str]:
    """Return why the gate fails, nothing when it passes; a metric that is missing or NaN fails.

    Without a value before, only the limit is checked.
    """
    found = {(row.source, row.metric): row for row in rows}
    reasons = []
    for source, metrics in gate.items():
        for metric, rule in metrics.items():
            name, row = f"{source} {metric}", found.get((source, metric))
            if row is None or row.after is None:
                reasons.append(f"{name} is missing")
            elif not math.isfinite(row.after):
                reasons.append(f"{name} is {row.after}")
            else:
                sign = 1 if rule.direction == "higher" else -1
                if sign * row.after < sign * rule.limit:
                    side = "below" if sign > 0 else "above"
                    reasons.append(f"{name} {row.after:g} is {side} its limit {rule.limit:g}")
                if row.difference is not None:
                    loss = round(-sign * row.difference, 9)
                    if loss > rule.tolerance:
                        reasons.append(
                            f"{name} is worse by {loss:g}, its tolerance is {rule.tolerance:g}"
                        )
    return reasons


def annotations(reasons: list[str]) -> list[str]:
    """Return GitHub's annotations of why the gate fails, each on its line of params.yaml."""
    try:
        gate = YAML().load(params.PATH)["review"]["gate"]
        lines = {
            f"{one} {key} ": row.lc.key(key)[0] + 1 for one, row in gate.items() for key in row
        }
    except Exception:  # whatever a hostile file raises
        return []
    start = f"::error file={params.PATH},line="
    return [f"{start}{lines[n]}::{why}" for why in reasons for n in lines if why.startswith(n)]
