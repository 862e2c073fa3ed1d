"""Stage monitor: what the simulated production was like, and whether anybody would have known.

Enters: data/production (requests, labels, and the reference: the validation pool scored the same
way) and that pool, which says what is written in which script. Leaves metrics.json (headline
figures), windows.csv (one row a window), reference.json (what windows are judged by; `digits
monitor` reads it) and report.html.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from core import params
from core.dataset import Digits, read_pool
from core.errors import DigitsError
from core.files import write_text
from digits.monitoring import analysis as monitoring
from digits.monitoring import drift, report
from digits.monitoring.analysis import Params
from digits.monitoring.histograms import BinnedRequests, Summary
from digits.production import records


def fit(path: Path, pool: list[Digits], classes: tuple[str, ...]) -> drift.Reference:
    """Return the reference fitted to the validation pool, scored in its order.

    Raises DigitsError when there are other rows, or several models.
    """
    requests = BinnedRequests(classes, pool[0].images.shape[1])
    for batch in records.read(path, records.REQUESTS):
        requests.add(batch)
    rows = requests.rows(None)
    versions = rows.versions
    if len(versions) != 1 or len(rows.counts) != sum(map(len, pool)) or not rows.counts.all():
        raise DigitsError(f"{path}: is not of the validation pool; run `dvc repro -f simulate`")
    scripts: dict[str, Summary] = {}
    start = 0
    for digits in pool:
        part = requests.bins()[start : start + len(digits)]
        found = Summary(np.bincount(part.ravel(), minlength=requests.width))  # part may be empty
        if known := scripts.get(digits.script):  # rendered digits of a script, and written ones
            found += known
        scripts[digits.script] = found
        start += len(digits)
    enough = {name: found for name, found in scripts.items() if len(found) >= drift.FEWEST}
    return drift.Reference.fit(enough, versions[0])


def main(arguments: list[str]) -> None:
    """Fit the reference, judge the windows, write what was found."""
    parser = argparse.ArgumentParser(prog="monitor", description=__doc__)
    parser.add_argument("--production", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "monitor")
    pool = read_pool(paths.validation, len(task.classes), task.image_size)
    reference = fit(paths.production / "reference.parquet", pool, task.classes)
    analysis = monitoring.analyse(
        lambda: records.read(paths.production / "requests.parquet", records.REQUESTS),
        records.read(paths.production / "labels.parquet", records.LABELS),
        reference,
        own,
        task.classes,
        task.image_size,
    )
    reference.write(paths.out / "reference.json")
    report.write_windows(paths.out / "windows.csv", analysis.windows)
    write_text(paths.out / "report.html", report.page(analysis, own))
    figures = {"production": report.figures(analysis)}
    write_text(paths.out / "metrics.json", json.dumps(figures, indent=2) + "\n")
