"""Report an analysis of production as JSON, as a table of windows and as a self-contained page.

Input: an Analysis. Output: the values of `digits monitor --json`, summary metrics, windows.csv, and
the HTML page, which states whether there is drift, since when, its contributing signals and the
recommended action. The page loads no other files; equal analyses give equal bytes.
"""

import base64
import csv
import datetime
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from core.files import atomic_write
from core.params import Names
from digits.monitoring.analysis import Analysis, Params, Window, accuracy
from digits.monitoring.histograms import SIGNALS, signal_bins

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def iso(time_ms: int) -> str:
    """Return a time as ISO 8601 in UTC, to the second."""
    time = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def findings(analysis: Analysis, config: Params) -> dict[str, Any]:
    """Return the values that `digits monitor` and the live page show, for JSON.

    drift               whether the alarm is active in the last window
    since               onset of that alarm, ISO 8601, or null
    onset_censored      whether the onset may lie before the first window
    windows, requests   number of those analysed
    window              requests per complete window
    alarms              number of alarms, including cleared ones
    accuracy            by labels, since the onset if there is drift; null without labels
    estimated_accuracy  the same, estimated without labels; null without requests
    ood_share           estimated share of out-of-distribution requests among the recent ones
    recent_requests     number of these: the last complete window and later ones
    contributing_signals  of the last alarm (histograms.SIGNALS), by decreasing evidence
    action              recommended for the last alarm: retrain, fix_input or label; or null
    issues              numbers of rows and labels with each data-quality issue
    gaps                [start, end] of times without requests, ISO 8601; the last may end now
    model_version       of the reference
    """
    since, windows = analysis.since_ms, analysis.windows
    first = analysis.alarms[-1].onset if analysis.drift else 0
    recent = analysis.recent()
    known = accuracy(windows[first:])
    return {
        "drift": analysis.drift,
        "since": iso(since) if since is not None else None,
        "onset_censored": analysis.drift and analysis.onset_censored,
        "window": config.window,
        "windows": len(windows),
        "requests": sum(window.requests for window in windows),
        "alarms": len(analysis.alarms),
        "accuracy": known[0] if known else None,
        "estimated_accuracy": analysis.mean("accuracy", first),
        "ood_share": analysis.mean("ood_share", recent),
        "recent_requests": sum(window.requests for window in windows[recent:]),
        "contributing_signals": analysis.contributing_signals(),
        "action": analysis.action(),
        "issues": analysis.issues,
        "gaps": [[iso(start), iso(end)] for start, end in analysis.gaps],
        "model_version": analysis.reference.model_version,
    }


def summary_metrics(analysis: Analysis) -> dict[str, float]:
    """Return the summary metrics; unknown ones are omitted.

    false_alarms: alarms raised before the first labelled request in an unknown script;
    requests_until_alarm: requests from that request to the first alarm after it.
    """
    windows = analysis.windows
    found: dict[str, float] = {}
    if known := accuracy(windows):
        found |= dict(zip(("accuracy", "accuracy_low", "accuracy_high"), known, strict=True))
    if (estimated := analysis.mean("accuracy")) is not None:
        found["estimated_accuracy"] = estimated
    labelled = [w for w in windows if w.labelled]
    if labelled:
        missed = sum(w.labelled * abs(w.result.accuracy - w.correct / w.labelled) for w in labelled)
        found["estimation_error"] = missed / sum(w.labelled for w in labelled)
    found |= {"windows": len(windows), "alarms": len(analysis.alarms)}
    first = analysis.first_foreign_ms
    if first is not None:
        raised = [windows[alarm.raised].last_ms for alarm in analysis.alarms]
        found["false_alarms"] = sum(time < first for time in raised)
        if late := [time for time in raised if time >= first]:
            between = [w for w in windows if first <= w.last_ms <= late[0]]
            found["requests_until_alarm"] = sum(w.requests for w in between)
    return {name: round(value, 6) for name, value in found.items()}


def write_windows(path: Path, windows: list[Window]) -> None:
    """Write one row per window; `dvc plots` reads this file."""
    header = ["window", "time", "requests", "accuracy", "accuracy_low", "accuracy_high"]
    header += ["estimated_accuracy", "ood_share", "evidence", "drift", *SIGNALS]
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for number, window in enumerate(windows):
            row: list[Any] = [number, iso(window.first_ms), window.requests]
            row += [f"{x:.4f}" for x in accuracy([window]) or ()] or [""] * 3
            row += [f"{window.result.accuracy:.4f}", f"{window.result.ood_share:.4f}"]
            row += [f"{window.result.evidence:.3g}", int(window.result.drift)]
            writer.writerow([*row, *(f"{window.result.p[name]:.2g}" for name in SIGNALS)])


def page(analysis: Analysis, config: Params, task: Names) -> str:
    """Return the HTML page, rendered from report.html.jinja."""
    windows = analysis.windows
    start = windows[0].first_ms if windows else 0
    ends = [window.last_ms for window in windows[-1:]] + [end for _, end in analysis.gaps]
    return TEMPLATES.get_template("report.html.jinja").render(
        analysis=analysis,
        config=config,
        task=task,
        last=analysis.alarms[-1] if analysis.alarms else None,
        start=start,
        end=max([start + 1, *ends]),
        causes=signal_shares(analysis),
        accuracy=accuracy,
        when=when,
        log=np.log,
        png=png,
    )


def when(time_ms: int) -> str:
    """Return a time to the minute."""
    return iso(time_ms)[:16].replace("T", " ") + " UTC"


def png(image: np.ndarray) -> str:
    """Return an image uint8 (size, size), white on black, as base64 of a PNG, black on white."""
    content = io.BytesIO()
    Image.fromarray(255 - image).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def signal_shares(analysis: Analysis) -> list[tuple[str, list[float], list[float]]]:
    """Return the contributing signals with the shares of their bins, in reference and alarm."""
    last = analysis.alarms[-1] if analysis.alarms else None
    alarmed = analysis.windows[last.onset : last.cleared] if last else []
    counts = np.sum([window.histograms.counts for window in alarmed], axis=0)
    found: list[tuple[str, list[float], list[float]]] = []
    for name in analysis.contributing_signals():
        shown = "ood_score" if name == "ood_confidence" else name  # the joint one has 960 bins
        pair = [signal_bins(c, shown) for c in (analysis.reference.histograms.counts, counts)]
        reference, alarm = ((part / part.sum()).tolist() for part in pair)
        found.append((name, reference, alarm))
    return found
