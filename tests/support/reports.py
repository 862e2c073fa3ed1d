"""Reports as `digits review` writes them."""

import dataclasses
from typing import Any

from mlops.review import schema
from mlops.review.schema import (
    Bounds,
    ClassChange,
    Gate,
    Metric,
    ParamChange,
    Report,
    Stage,
)


def report(**changes: Any) -> Report:
    """Return a report that has something of everything."""
    bounds = Bounds("higher", 0.99, 0.003)
    whole = Report(
        schema=schema.SCHEMA,
        verdict="better",
        gate=Gate(True, []),
        head="1" * 40,
        dirty=False,
        base="2" * 40,
        against="merge base with origin/main",
        notes=["devanagari_20261124: 40 labelled digits of production"],
        problems=["data/noise.json is changed here"],
        failed="",
        last_lines=[],
        stages=[
            Stage("train", "ran", 80.0, ["epochs"]),
            Stage("mnist", "restored", 1.0, []),
        ],
        metrics=[
            Metric("mnist", "accuracy", 0.995, 0.9965, 0.0004, bounds),
            Metric("japanese_rendered", "accuracy", None, 0.5, None, None),
        ],
        classes=[ClassChange("mnist", "7", 0.98, 0.99)],
        params=[ParamChange("epochs", "10", "20")],
        curves_before={"validation_loss": [0.3, 0.2]},
        curves_after={"validation_loss": [0.3, 0.2, 0.1]},
    )
    return dataclasses.replace(whole, **changes)
