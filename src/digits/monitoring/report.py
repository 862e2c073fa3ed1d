"""What happened in production as one page that works offline: an analysis enters, HTML leaves.

It is for a person who decides: what happened, since when, how bad, what caused it, what to do.
Nothing is fetched; the same analysis gives the same bytes.
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
from digits.monitoring.analysis import Analysis, Params, Window, accuracy
from digits.monitoring.histograms import IMAGE_SIGNALS, SIGNALS

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


def findings(analysis: Analysis, own: Params) -> dict[str, Any]:
    """Return what `digits monitor` and the live page state, as JSON.

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
    causes              signals of the last alarm (histograms.SIGNALS), the loudest first
    remedy              what those call for: retrain, mend (a scanner) or label; null without any
    faults              rows and labels by what was wrong with them
    gaps                [from, to] without requests, ISO 8601; the last until now, if none come
    model_version       of the reference
    """
    since, windows = analysis.since_ms, analysis.windows
    first = analysis.episodes[-1].began if analysis.drift else 0
    lately = analysis.lately()
    known = analysis.accuracy(first)
    return {
        "drift": analysis.drift,
        "since": iso(since) if since is not None else None,
        "at_least": analysis.drift and analysis.at_least,
        "window": own.window,
        "windows": len(windows),
        "requests": sum(window.requests for window in windows),
        "alarms": len(analysis.episodes),
        "accuracy": known[0] if known else None,
        "estimated_accuracy": analysis.estimated(first),
        "strangers": analysis.strangers(lately),
        "lately": sum(window.requests for window in windows[lately:]),
        "causes": analysis.causes(),
        "remedy": analysis.remedy(),
        "faults": analysis.faults,
        "gaps": [[iso(start), iso(end)] for start, end in analysis.gaps],
        "model_version": analysis.reference.model_version,
    }


def figures(analysis: Analysis) -> dict[str, float]:
    """Return the headline figures; those that are not known are left out.

    false_alarms rose before the first labelled request in a script that the reference lacks;
    requests_until_alarm came from it on until the first alarm after it.
    """
    windows = analysis.windows
    found: dict[str, float] = {}
    if known := analysis.accuracy():
        found |= dict(zip(("accuracy", "accuracy_low", "accuracy_high"), known, strict=True))
    if (estimated := analysis.estimated()) is not None:
        found["estimated_accuracy"] = estimated
    labelled = [w for w in windows if w.labelled]
    if labelled:
        missed = sum(w.labelled * abs(w.verdict.accuracy - w.right / w.labelled) for w in labelled)
        found["estimation_error"] = missed / sum(w.labelled for w in labelled)
    found |= {"windows": len(windows), "alarms": len(analysis.episodes)}
    first = analysis.first_foreign_ms
    if first is not None:
        raised = [windows[episode.alarm].last_ms for episode in analysis.episodes]
        found["false_alarms"] = sum(time < first for time in raised)
        if late := [time for time in raised if time >= first]:
            between = [w for w in windows if first <= w.last_ms <= late[0]]
            found["requests_until_alarm"] = sum(w.requests for w in between)
    return {name: round(value, 6) for name, value in found.items()}


def write_windows(path: Path, windows: list[Window]) -> None:
    """Write one row a window, as `dvc plots` reads it."""
    header = ["window", "time", "requests", "accuracy", "accuracy_low", "accuracy_high"]
    header += ["estimated_accuracy", "strangers", "evidence", "drift", *SIGNALS]
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for number, window in enumerate(windows):
            row: list[Any] = [number, iso(window.first_ms), window.requests]
            row += [f"{x:.4f}" for x in accuracy([window]) or ()] or [""] * 3
            row += [f"{window.verdict.accuracy:.4f}", f"{window.verdict.strangers:.4f}"]
            row += [f"{window.verdict.evidence:.3g}", int(window.verdict.drift)]
            writer.writerow([*row, *(f"{window.verdict.p[name]:.2g}" for name in SIGNALS)])


def page(analysis: Analysis, own: Params) -> str:
    """Return the page, by the template beside this file."""
    windows = analysis.windows
    start = windows[0].first_ms if windows else 0
    ends = [window.last_ms for window in windows[-1:]] + [end for _, end in analysis.gaps]
    return TEMPLATES.get_template("report.html.jinja").render(
        analysis=analysis,
        own=own,
        last=analysis.episodes[-1] if analysis.episodes else None,
        start=start,
        end=max([start + 1, *ends]),
        causes=causes(analysis),
        accuracy=accuracy,
        when=when,
        png=png,
    )


def when(time_ms: int) -> str:
    """Return a time to the minute."""
    return iso(time_ms)[:16].replace("T", " ") + " UTC"


def png(image: np.ndarray) -> str:
    """Return an image uint8 (size, size), white on black, as PNG in black on white and base64."""
    content = io.BytesIO()
    Image.fromarray(255 - image).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def causes(analysis: Analysis) -> list[tuple[str, float | None, float | None]]:
    """Return the causes of the last alarm, each with its mean in the reference and since then.

    Only statistics of images have means.
    """
    found: list[tuple[str, float | None, float | None]] = []
    for name in analysis.causes():
        usual = now = None
        if name in IMAGE_SIGNALS:
            last, row = analysis.episodes[-1], IMAGE_SIGNALS.index(name)
            alarmed = [w.summary.image[row] for w in analysis.windows[last.began : last.ended]]
            usual, now = mean(analysis.reference.summary.image[row]), mean(np.sum(alarmed, axis=0))
        found.append((name, usual, now))
    return found


def mean(counts: np.ndarray) -> float:
    """Return the mean of a statistic from its counts (IMAGE_BINS,)."""
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    return float((counts * middles).sum() / max(counts.sum(), 1))
