"""Stage monitor: test the simulated production for drift.

Input: data/production (requests, late labels, and the scored validation split) and the validation
split, which gives the script of each digit. Output: metrics.json (summary), windows.csv (one row
per window), reference.json (what windows are compared with; `digits monitor` reads it) and
report.html.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from core import params
from core.dataset import Digits, read_split
from core.errors import DigitsError
from core.files import write_text
from digits.monitoring import analysis as monitoring
from digits.monitoring import drift, report
from digits.monitoring.analysis import Params
from digits.monitoring.histograms import BinnedRequests, Histograms
from digits.production import records


def fit(path: Path, split: list[Digits], classes: tuple[str, ...]) -> drift.Reference:
    """Return the reference fitted to the scored validation split.

    Raises DigitsError unless the rows are exactly those of the split, scored by a single model.
    """
    requests = BinnedRequests(classes, split[0].images.shape[1])
    for batch in records.read(path, records.REQUESTS):
        requests.add(batch)
    rows = requests.rows(None)
    versions = rows.versions
    if len(versions) != 1 or len(rows.valid) != sum(map(len, split)) or not rows.valid.all():
        raise DigitsError(
            f"{path}: does not match the validation split. Run `dvc repro -f simulate`."
        )
    scripts: dict[str, Histograms] = {}
    start = 0
    for digits in split:
        part = requests.bins()[start : start + len(digits)]
        found = Histograms(np.bincount(part.ravel(), minlength=requests.width))  # part may be empty
        if known := scripts.get(digits.script):  # a script may have rendered and handwritten digits
            found += known
        scripts[digits.script] = found
        start += len(digits)
    enough = {name: found for name, found in scripts.items() if len(found) >= drift.MIN_DIGITS}
    return drift.Reference.fit(enough, versions[0])


def main(arguments: list[str]) -> None:
    """Fit the reference, analyse the windows, write the results."""
    parser = argparse.ArgumentParser(prog="monitor", description=__doc__)
    for name in ("--production", "--validation", "--out"):
        parser.add_argument(name, type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "monitor")
    split = read_split(paths.validation, len(task.classes), task.image_size)
    reference = fit(paths.production / "reference.parquet", split, task.classes)
    monitor = monitoring.read(paths.production, task.classes, task.image_size)
    analysis = monitor.analyse(reference, config)
    reference.write(paths.out / "reference.json")
    report.write_windows(paths.out / "windows.csv", analysis.windows)
    write_text(paths.out / "report.html", report.page(analysis, config, params.names(values)))
    metrics = {"production": report.summary_metrics(analysis)}
    write_text(paths.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
