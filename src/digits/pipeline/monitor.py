"""Stage monitor: what the simulated production was like, and whether anybody would have known.

Enters: data/production (requests, labels, and the reference: validation digits scored the same
way). Leaves metrics.json (headline figures), windows.csv (one row a window), reference.json (what
windows are judged by; `digits monitor` reads it) and report.html.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from digits import drift, monitoring, params, production, story
from digits.errors import DigitsError
from digits.files import write_text
from digits.monitoring import Params
from digits.summary import CLASSES_START, Summary


def fit(path: Path, classes: tuple[str, ...], image_size: int) -> drift.Reference:
    """Return the reference fitted to requests of one model; raise DigitsError if there are more."""
    batches = list(production.read(path, production.REQUESTS))
    versions = {name for batch in batches for name in batch["model_version"].to_pylist()}
    if len(versions) != 1:
        raise DigitsError(f"{path}: has {len(versions)} models; run `dvc repro -f simulate`")
    summary = Summary(np.zeros(CLASSES_START + len(classes), np.int64))
    rows = production.look(batches, classes, image_size, versions)
    start = 0
    for batch in batches:
        part = slice(start, start + len(batch))
        images = production.images(batch, image_size)
        columns = (rows.label[part], rows.confidence[part], rows.foreign[part])
        summary += Summary.of(images, *columns, len(classes))
        start += len(batch)
    return drift.Reference.fit(summary, versions.pop())


def main(arguments: list[str]) -> None:
    """Fit the reference, judge the windows, write what was found."""
    parser = argparse.ArgumentParser(prog="monitor", description=__doc__)
    parser.add_argument("--production", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "monitor")
    reference = fit(paths.production / "reference.parquet", task.classes, task.image_size)
    analysis = monitoring.analyse(
        lambda: production.read(paths.production / "requests.parquet", production.REQUESTS),
        production.read(paths.production / "labels.parquet", production.LABELS),
        reference,
        own,
        task.classes,
        task.image_size,
    )
    reference.write(paths.out / "reference.json")
    monitoring.write_windows(paths.out / "windows.csv", analysis.windows)
    write_text(paths.out / "report.html", story.page(analysis, own))
    figures = {"production": monitoring.figures(analysis)}
    write_text(paths.out / "metrics.json", json.dumps(figures, indent=2) + "\n")
