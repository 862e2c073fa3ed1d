"""`digits monitor`: what production is like now, from what the workspace collected.

Enters: collected requests and labels, from a workspace or (--production) from a folder as stage
simulate writes it, and data/monitoring/reference.json of the model that is
deployed. Leaves, with --out, FOLDER/report.html and FOLDER/monitoring.json:

    drift               whether the alarm is on, in the last window
    since               when the drift of that alarm began, ISO 8601, or null
    at_least            whether it may have begun before: it is there in the first window
    windows, requests   that were judged
    window              requests in a full one
    alarms              that rose, ended ones included
    accuracy            by labels, since `since` if there is drift; null without labels
    estimated_accuracy  without labels, the same; null without requests
    strangers           share of the requests lately that look like nothing known
    lately              how many those are: the last full window and what came after it
    causes              signals of the last alarm (summary.SIGNALS), the loudest first
    remedy              what those call for: retrain, mend (a scanner) or label; null without any
    faults              rows and labels by what was wrong with them
    gaps                [from, to] without requests, ISO 8601; the last until now, if none come
    endpoint, model_version

The exit code is 0 whether or not there is drift. With --labelled, FOLDER/SCRIPT_YYYYMMDD.csv gets
the digits that have labels, each once, the day being that of the newest label; digits that other
files of the script hold already are left out.
"""

import contextlib
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

from core import params
from core.dataset import MNIST, Digits, read_csv, write_csv
from core.errors import DigitsError
from core.files import write_text
from digits.monitoring import analysis as monitoring
from digits.monitoring import report
from digits.monitoring.analysis import Analysis, Params, iso
from digits.monitoring.drift import Reference
from digits.production import records
from mlops.azure.errors import explained
from mlops.deploy import release

if TYPE_CHECKING:  # imported where a workspace is asked, since the SDK takes seconds
    from mlops.azure import collected
    from mlops.azure.workspace import Workspace


def content(analysis: Analysis, own: Params, endpoint: str) -> dict[str, Any]:
    """Return monitoring.json."""
    since, windows = analysis.since_ms, analysis.windows
    first = analysis.episodes[-1].began if analysis.drift else 0
    lately = analysis.lately()
    accuracy = analysis.accuracy(first)
    return {
        "drift": analysis.drift,
        "since": iso(since) if since is not None else None,
        "at_least": analysis.drift and analysis.at_least,
        "window": own.window,
        "windows": len(windows),
        "requests": sum(window.requests for window in windows),
        "alarms": len(analysis.episodes),
        "accuracy": accuracy[0] if accuracy else None,
        "estimated_accuracy": analysis.estimated(first),
        "strangers": analysis.strangers(lately),
        "lately": sum(window.requests for window in windows[lately:]),
        "causes": analysis.causes(),
        "remedy": analysis.remedy(),
        "faults": analysis.faults,
        "gaps": [[iso(start), iso(end)] for start, end in analysis.gaps],
        "endpoint": endpoint,
        "model_version": analysis.reference.model_version,
    }


def write_labelled(folder: Path, requests: Path, labels: Path, task: params.Task) -> list[str]:
    """Write the digits that have labels, by script; return a line about each file.

    What the day's file holds stays there, whether it is still collected or not.
    """
    scripts = [MNIST, *params.foreign_scripts(params.load())]
    rows = records.look(
        records.read(requests, records.REQUESTS), task.classes, task.image_size, None
    )
    known = list(records.read(labels, records.LABELS))
    truth, written, _ = records.match(known, rows, task.classes)
    now = datetime.datetime.now(datetime.UTC)  # a label's clock may be ahead
    times = (min(at, now) for batch in known for at in batch["time"].to_pylist())
    newest = max(times, default=None)
    digits: dict[str, dict[bytes, int]] = {script: {} for script in scripts}
    start = 0
    for batch in records.read(requests, records.REQUESTS):
        for place in np.flatnonzero(truth[start : start + len(batch)] >= 0).tolist():
            script = written[start + place]
            if script in digits:
                digits[script].setdefault(batch["image"][place].as_py(), int(truth[start + place]))
        start += len(batch)
    told = []
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
            told.append(f"{path}: {len(found):,} digits")
    return told


def fetch(
    workspace: "Workspace", endpoint: str, since: datetime.datetime | None, to: Path
) -> "collected.Faults":
    """Download requests and labels as Parquet; return what was left out."""
    from mlops.azure import collected

    faults = collected.Faults()
    rows = collected.rows(workspace, endpoint, since, faults)
    records.write(to / "requests.parquet", rows, records.REQUESTS)
    labels = collected.labels(workspace, endpoint, since, faults)
    records.write(to / "labels.parquet", labels, records.LABELS)
    for place in faults.damaged[:5]:
        print(f"not counted: {place}", file=sys.stderr)
    return faults


def collect(
    asked: SimpleNamespace, settings: release.Params, task: params.Task, to: Path
) -> tuple[str, "collected.Faults"]:
    """Download what a workspace collected; return the endpoint's name and what was left out."""
    from mlops.azure import collected
    from mlops.azure.endpoint import Target
    from mlops.azure.workspace import connect

    try:
        workspace = connect(asked.workspace)
        derived = Target(workspace, settings, task).name
        endpoint = collected.endpoint_name(asked.endpoint, derived)
        return endpoint, fetch(workspace, endpoint, asked.since, to)
    except (HttpResponseError, ServiceRequestError, ServiceResponseError) as error:
        raise DigitsError(explained(error)) from error


def main(asked: SimpleNamespace) -> None:
    """Judge what a workspace collected, or what lies in a folder."""
    settings, task = release.load()
    own = params.section(Params, params.load(), "monitor")
    reference = Reference.read(asked.reference)
    now_ms = None if asked.production else int(time.time() * 1000)
    with contextlib.ExitStack() as stack:
        left_out = None
        if asked.production:
            place, endpoint = asked.production, asked.production.as_posix()
        else:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            endpoint, left_out = collect(asked, settings, task, place)
        requests, labels = place / "requests.parquet", place / "labels.parquet"
        analysis = monitoring.analyse(
            lambda: records.read(requests, records.REQUESTS),
            records.read(labels, records.LABELS),
            reference,
            own,
            task.classes,
            task.image_size,
            now_ms,
        )
        if left_out:
            analysis.faults["lines_damaged"] = len(left_out.damaged)
            analysis.faults["clock"] += left_out.clock
        if asked.labelled:
            for line in write_labelled(asked.labelled, requests, labels, task):
                print(line, file=sys.stderr if asked.as_json else sys.stdout)
    told = content(analysis, own, endpoint)
    text = json.dumps(told, indent=2) + "\n"
    if asked.out:
        write_text(asked.out / "monitoring.json", text)
        write_text(asked.out / "report.html", report.page(analysis, own))
    if asked.as_json:
        print(text, end="")
        return
    least = "at least " if told["at_least"] else ""
    state = f"drift {least}since {told['since']}" if told["drift"] else "no drift"
    known = "not known" if told["accuracy"] is None else f"{told['accuracy']:.2%}"
    print(f"{endpoint}: {state}; {told['requests']:,} requests, accuracy by labels {known}")
