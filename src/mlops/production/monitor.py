"""`digits monitor`: test collected requests for drift.

Input: requests and labels of a workspace or a folder, and data/monitoring/reference.json of the
model that is deployed. Output, with --out: FOLDER/report.html, and FOLDER/monitoring.json with what
`report.findings` states and `endpoint`, its name or the folder.
"""

import contextlib
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.storage.blob import ContainerClient

from core import params
from core.dataset import MNIST, Digits, read_csv, write_csv
from core.errors import DigitsError
from core.files import write_text
from digits.monitoring import analysis as monitoring
from digits.monitoring import report
from digits.monitoring.analysis import Analysis, Params
from digits.monitoring.drift import Reference
from digits.production import records
from mlops.azure import collected, settings
from mlops.azure.collected import Hour
from mlops.azure.errors import explain_error

REFERENCE = Path("data/monitoring/reference.json")
CLOCK = datetime.timedelta(days=1)  # maximum distance of a row's time from the hour of its blob
Row = dict[str, Any]


@dataclass
class LeftOut:
    """Omitted data: the places of lines, and the number of rows with a wrong clock."""

    damaged: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # whose rows are stored elsewhere
    clock: int = 0


def write_labelled(folder: Path, source: Path, task: params.Task) -> list[str]:
    """Write the digits of `source` that have labels, by script; return a line about each file.

    Digits already in the day's file stay, even if their data was deleted.
    """
    scripts = [MNIST, *params.foreign_scripts(params.load())]
    monitor = monitoring.read(source, task.classes, task.image_size)
    joined = monitor.labels.join(monitor.requests.rows(None, tryouts=True))
    now = datetime.datetime.now(datetime.UTC)  # a label's clock may be ahead
    known = records.read(source / "labels.parquet", records.LABELS)
    times = (min(at, now) for batch in known for at in batch["time"].to_pylist())
    newest = max(times, default=None)
    digits: dict[str, dict[bytes, int]] = {script: {} for script in scripts}
    start = 0
    for batch in records.read(source / "requests.parquet", records.REQUESTS):
        for place in np.flatnonzero(joined.truth[start : start + len(batch)] >= 0).tolist():
            script = joined.scripts[joined.script[start + place]]
            if script in digits:
                label = int(joined.truth[start + place])
                digits[script].setdefault(batch["image"][place].as_py(), label)
        start += len(batch)
    lines = []
    for script, found in digits.items():
        path = folder / f"{script}_{newest:%Y%m%d}.csv" if newest else folder
        for other in sorted(folder.glob(f"{script}_*.csv")):
            held = read_csv(other, task.image_size, len(task.classes), script)
            for image, label in zip(held.images, held.labels.tolist(), strict=True):
                if other == path:
                    found[image.tobytes()] = label
                else:
                    found.pop(image.tobytes(), None)
        if found:
            pixels = np.frombuffer(b"".join(found), np.uint8)
            images = pixels.reshape(-1, task.image_size, task.image_size)
            classes = np.array(list(found.values()), np.uint8)
            write_csv(path, Digits(images, classes, script, False, len(task.classes)))
            lines.append(f"{path}: {len(found):,} digits")
    return lines


def rows(hours: Iterable[Hour], since: datetime.datetime | None, left: LeftOut) -> Iterator[Row]:
    """Yield rows of REQUESTS since a time, hour by hour, in the order of their times.

    Rows with a wrong clock are omitted: their true time is unknown, and they could extend the
    report by years.
    """
    for hour in hours:
        found = records.merge(hour.blobs, records.parse_requests, left.damaged, left.elsewhere)
        for row in found:
            if abs(row["time"] - hour.start) > CLOCK:
                left.clock += 1
            elif since is None or row["time"] >= since:
                yield row


def labels(hours: Iterable[Hour], since: datetime.datetime | None, left: LeftOut) -> Iterator[Row]:
    """Yield rows of LABELS that came since a time; nothing is derived from their clocks."""
    for hour in hours:
        for row in records.merge(hour.blobs, records.parse_label, left.damaged, []):
            if since is None or row["time"] >= since:
                yield row


def fetch(
    container: ContainerClient, endpoint: str, since: datetime.datetime | None, to: Path
) -> LeftOut:
    """Download requests and labels as Parquet; return what was left out."""
    left = LeftOut()
    for name, schema, folder, read in (
        ("requests", records.REQUESTS, collected.ROWS, rows),
        ("labels", records.LABELS, collected.LABELS, labels),
    ):
        found = read(collected.hours(container, folder, endpoint, since), since, left)
        records.write(to / f"{name}.parquet", records.batches(found, schema), schema)
    for place in left.damaged[:5] + left.elsewhere[:5]:
        print(f"not counted: {place}", file=sys.stderr)
    return left


def analyse_files(
    folder: Path,
    reference: Reference,
    own: Params,
    task: params.Task,
    left: LeftOut,
    now_ms: int | None,
) -> Analysis:
    """Return the analysis of a folder's requests.parquet and labels.parquet."""
    monitor = monitoring.read(folder, task.classes, task.image_size)
    analysis = monitor.analyse(reference, own, now_ms)
    analysis.issues["lines_corrupted"] = len(left.damaged)
    analysis.issues["lines_stored_elsewhere"] = len(left.elsewhere)
    analysis.issues["wrong_clock"] += left.clock
    return analysis


@contextlib.contextmanager
def downloaded(
    workspace_name: str, name: str | None, since: datetime.datetime | None
) -> Iterator[tuple[str, Path, LeftOut]]:
    """Yield the name of an endpoint, a folder of what it collected, and what was left out."""
    from mlops.azure.endpoint import Target  # imports the SDK, which --production does not need
    from mlops.azure.workspace import connect, store

    workspace = connect(workspace_name)
    endpoint = collected.endpoint_name(name, Target(workspace, settings.load()).name)
    with tempfile.TemporaryDirectory() as folder:
        yield endpoint, Path(folder), fetch(store(workspace), endpoint, since, Path(folder))


def main(asked: SimpleNamespace) -> None:
    """Analyse the data that a workspace collected, or that of a folder."""
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "monitor")
    reference = Reference.read(asked.reference)
    now_ms = None if asked.production else int(time.time() * 1000)
    source = (
        contextlib.nullcontext((asked.production.as_posix(), asked.production, LeftOut()))
        if asked.production
        else downloaded(asked.workspace, asked.endpoint, asked.since)
    )
    try:
        with source as (endpoint, folder, left):
            analysis = analyse_files(folder, reference, own, task, left, now_ms)
            if asked.labelled:
                for line in write_labelled(asked.labelled, folder, task):
                    print(line, file=sys.stderr if asked.as_json else sys.stdout)
    except (HttpResponseError, ServiceRequestError, ServiceResponseError) as error:
        raise DigitsError(explain_error(error)) from error
    found = report.findings(analysis, own) | {"endpoint": endpoint}
    text = json.dumps(found, indent=2) + "\n"
    if asked.out:
        write_text(asked.out / "monitoring.json", text)
        write_text(asked.out / "report.html", report.page(analysis, own, params.names(values)))
    if clock := analysis.issues["wrong_clock"]:
        print(f"{clock:,} requests omitted: their clock or the local one is wrong", file=sys.stderr)
    if asked.as_json:
        print(text, end="")
        return
    least = "at least " if found["onset_censored"] else ""
    state = f"drift {least}since {found['since']}" if found["drift"] else "no drift"
    state = state if found["requests"] else "not known whether there is drift"
    known = "not known" if found["accuracy"] is None else f"{found['accuracy']:.2%}"
    print(f"{endpoint}: {state}; {found['requests']:,} requests, accuracy by labels {known}")
