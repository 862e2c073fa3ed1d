"""What happened in production as one page that works offline: an analysis enters, HTML leaves.

It is for a person who decides: what happened, since when, how bad, what caused it, what to do.
Nothing is fetched; the same analysis gives the same bytes.
"""

import base64
import csv
import datetime
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.files import replacing
from digits.monitoring.analysis import Analysis, Params, Window, accuracy
from digits.monitoring.histograms import IMAGE_BINS, IMAGE_SIGNALS, SIGNALS

SHOWN_GAPS, SHOWN_WINDOWS = 50, 1000  # the last of many
WIDTH, HEIGHT, MARGIN, LEFT = 860, 190, 24, 50  # of a chart, in pixels
NAMES = {
    "looks": "digits that look like nothing the model has learnt, or leave it unsure",
    "brightness": "the brightest pixel of each image",
    "ink": "the amount of ink",
    "width": "the width of the digits",
    "height": "the height of the digits",
    "row": "the digits' place, up or down",
    "column": "the digits' place, left or right",
    "classes": "the mix of answers",
}
FAULTS = {
    "damaged": "damaged, not counted",
    "doubled": "sent more than once, counted once",
    "clock": "with a wrong clock (in the future, or a day from when they came), not counted",
    "other_version": "answered by another model, not judged",
    "late": "an hour late or more, counted",
    "out_of_order": "out of order, counted",
    "lines_damaged": "lines that could not be read, not counted",
    "labels_damaged": "labels that could not be read",
    "labels_doubled": "labels that came more than once, counted once",
    "labels_other_version": "labels of what another model answered, not judged",
    "labels_unmatched": "labels of requests that are not here, or share an id",
}
LABEL = (
    "Label some of the digits below. If they are a script that you want to read, let the model "
    "learn it: `digits monitor --labelled data/labelled`, then `digits retrain`, and review what "
    "that changes. If not, find out who sends them."
)
SCANNER = (
    "Look at what takes the pictures first: scanner, lamp, cropping. A model that learns spoilt "
    "digits hides what is broken. What still looks strange afterwards may be a script to learn."
)
TODO = {"retrain": LABEL, "label": LABEL, "mend": SCANNER}
STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --line: #dfe3e8; --ink: #14181f;
  --quiet: #586273; --known: #2563c9; --estimate: #b45309; --good: #17784a; --alarm: #c4281c; }
@media (prefers-color-scheme: dark) { :root { --page: #10141a; --card: #181d25; --line: #303846;
  --ink: #eceff4; --quiet: #a3aebf; --known: #7db0ff; --estimate: #eda13a; --good: #56c891;
  --alarm: #ff8a7d; } }
body { margin: 0 auto; padding: 24px; max-width: 920px; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 4px 20px 16px; margin: 16px 0; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 12px 0 6px; }
.state { font-weight: 600; color: var(--good); } .state.on { color: var(--alarm); }
.facts { display: flex; flex-wrap: wrap; gap: 8px 36px; margin: 12px 0; }
.facts dt { color: var(--quiet); font-size: 14px; } .facts dd { margin: 0; font-size: 24px; }
figure { margin: 0; display: inline-block; } figcaption, .quiet { color: var(--quiet);
  font-size: 13px; }
.digits { display: flex; flex-wrap: wrap; gap: 12px; } .digits figure { width: 104px; }
.digits img { width: 56px; height: 56px; image-rendering: pixelated; border-radius: 4px; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--quiet); }
.grid { stroke: var(--line); } .known { stroke: var(--known); fill: var(--known); }
.estimate { stroke: var(--estimate); fill: none; stroke-width: 2; }
.alarm { fill: var(--alarm); opacity: 0.12; } .gap { fill: var(--quiet); opacity: 0.25; }
table { border-collapse: collapse; font-size: 14px; } td, th { padding: 2px 14px 2px 0;
  text-align: right; } td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; } code { font-size: 14px; }
"""


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
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for number, window in enumerate(windows):
            row: list[Any] = [number, iso(window.first_ms), window.requests]
            row += [f"{x:.4f}" for x in accuracy([window]) or ()] or [""] * 3
            row += [f"{window.verdict.accuracy:.4f}", f"{window.verdict.strangers:.4f}"]
            row += [f"{window.verdict.evidence:.3g}", int(window.verdict.drift)]
            writer.writerow([*row, *(f"{window.verdict.p[name]:.2g}" for name in SIGNALS)])


def page(analysis: Analysis, own: Params) -> str:
    """Return the page."""
    parts = [headline(analysis), charts(analysis), examples(analysis), kept(analysis, own)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>What happened in production</title>\n<style>{STYLE}</style></head><body>\n"
        "<h1>What happened in production</h1>\n" + "\n".join(filter(None, parts)) + "\n"
        "</body></html>\n"
    )


def when(time_ms: int) -> str:
    """Return a time to the minute."""
    return iso(time_ms)[:16].replace("T", " ") + " UTC"


def share(value: float | None) -> str:
    """Return a share in per cent, or that it is not known."""
    return "not known yet" if value is None else f"{value:.1%}"


def headline(analysis: Analysis) -> str:
    """Return state, figures, and the answers to what, since when, how bad and what to do."""
    windows = analysis.windows
    if not windows:
        return "<section><h2>Nothing was asked</h2><p>There are no requests to judge.</p></section>"
    said = f"{sum(w.requests for w in windows):,} requests, {when(windows[0].first_ms)} to "
    said += when(windows[-1].last_ms)
    last = analysis.episodes[-1] if analysis.episodes else None
    began = last.began if last else 0
    state = "No drift: production looks as the model knows it"
    if last:
        since = when(windows[last.began].first_ms)
        least = "at least " if analysis.at_least else ""
        state = f"Drift {least}since {since}"
        if last.ended is not None:
            until = when(windows[last.ended].first_ms)
            state = f"No drift now; it drifted {least}from {since} to {until}"
    known = analysis.accuracy(began) if last else analysis.accuracy()
    facts = [("accuracy by labels" + (" since then" if last else ""), interval(known))]
    if last and began:
        facts.append(("before", interval(accuracy(windows[:began]))))
    lately = analysis.lately()
    of = f"in the last {sum(w.requests for w in windows[lately:]):,} requests"
    facts.append((f"estimated without labels, {of}", share(analysis.estimated(lately))))
    facts.append((f"strange digits, {of}", share(analysis.strangers(lately))))
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)
    state_class = "state on" if analysis.drift else "state"
    story = causes(analysis) if last else ""
    return (
        f'<p class="{state_class}">{escape(state)}</p><p class="quiet">{escape(said)}</p>'
        f'<section><dl class="facts">{cells}</dl>{story}</section>'
    )


def interval(found: tuple[float, float, float] | None) -> str:
    """Return a share with its 95 % interval."""
    return f"{found[0]:.1%} ({found[1]:.1%} to {found[2]:.1%})" if found else "no labels yet"


def causes(analysis: Analysis) -> str:
    """Return what caused the last alarm, and what to do about it."""
    last, windows = analysis.episodes[-1], analysis.windows
    alarmed = windows[last.began : last.ended]
    total = sum((window.summary.image for window in alarmed), np.zeros((6, IMAGE_BINS)))
    lines = []
    for name in analysis.causes():
        text = NAMES[name]
        if name in IMAGE_SIGNALS:
            row = IMAGE_SIGNALS.index(name)
            usual, now = (mean(counts[row]) for counts in (analysis.reference.summary.image, total))
            text += f": {now:.0%} on average instead of {usual:.0%}, or spread more widely"
        lines.append(f"<li>{escape(text)}</li>")
    asked = sum(w.requests for w in windows[last.began : last.alarm + 1])
    todo = TODO[analysis.remedy() or "label"]
    return (
        f"<h2>What caused it</h2><ul>{''.join(lines)}</ul>"
        f"<p>The alarm rose {asked:,} requests after the drift began, without any label.</p>"
        f"<h2>What to do</h2><p>{marked(todo)}</p>"
    )


def marked(text: str) -> str:
    """Return text as HTML, with code between backquotes."""
    pieces = [escape(piece) for piece in text.split("`")]
    return "".join(f"<code>{p}</code>" if number % 2 else p for number, p in enumerate(pieces))


def mean(counts: np.ndarray) -> float:
    """Return the mean of a statistic from its counts (IMAGE_BINS,)."""
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    return float((counts * middles).sum() / max(counts.sum(), 1))


def charts(analysis: Analysis) -> str:
    """Return accuracy and strange digits over time."""
    windows = analysis.windows
    if not windows:
        return ""
    start, ends = windows[0].first_ms, [windows[-1].last_ms, *(gap[1] for gap in analysis.gaps)]
    end = max(start + 1, *ends)

    def x(time_ms: float) -> float:
        return LEFT + (time_ms - start) / (end - start) * (WIDTH - LEFT - MARGIN)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - value * (HEIGHT - 2 * MARGIN)

    def middle(window: Window) -> float:
        return x((window.first_ms + window.last_ms) / 2)

    frame = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - MARGIN}" y1="{y(v):.0f}" y2="{y(v):.0f}"/>'
        f'<text x="{LEFT - 8}" y="{y(v) + 4:.0f}" text-anchor="end">{v:.0%}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    for episode in analysis.episodes:
        left = x(windows[episode.began].first_ms)
        right = x(windows[(episode.ended or len(windows)) - 1].last_ms)
        frame.append(band("alarm", left, right))
    frame += [band("gap", x(first), x(last)) for first, last in analysis.gaps]
    for time, anchor in ((start, "start"), (end, "end")):
        frame.append(
            f'<text x="{x(time):.0f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{when(time)}</text>'
        )

    def line(values: list[float]) -> str:
        points = " ".join(
            f"{middle(window):.1f},{y(value):.1f}"
            for window, value in zip(windows, values, strict=True)
        )
        return f'<polyline class="estimate" points="{points}"/>'

    labelled = []
    for window in windows:
        if found := accuracy([window]):
            at = f"{middle(window):.1f}"
            labelled.append(
                f'<line class="known" x1="{at}" x2="{at}" y1="{y(found[1]):.1f}" '
                f'y2="{y(found[2]):.1f}"/><circle class="known" cx="{at}" '
                f'cy="{y(found[0]):.1f}" r="2.5"/>'
            )
    accuracies = [*frame, line([window.verdict.accuracy for window in windows]), *labelled]
    strangers = [*frame, line([window.verdict.strangers for window in windows])]
    return (
        "<section><h2>Accuracy</h2>"
        f"{svg(accuracies, 'Accuracy of each window: by labels, and estimated without')}"
        '<p class="quiet">Points: by labels that have come, with 95 % intervals. Line: estimated '
        "without labels. Red: from the beginning of the drift to the alarm's end. Grey: no "
        "requests came.</p>"
        f"<h2>Strange digits</h2>{svg(strangers, 'Share of strange digits in each window')}"
        '<p class="quiet">The share of requests that look like nothing the model knows, '
        "estimated.</p></section>"
    )


def band(kind: str, left: float, right: float) -> str:
    """Return a rectangle over the height of a chart."""
    width = max(right - left, 1)
    return (
        f'<rect class="{kind}" x="{left:.1f}" width="{width:.1f}" y="{MARGIN}" '
        f'height="{HEIGHT - 2 * MARGIN}"/>'
    )


def svg(parts: list[str], label: str) -> str:
    """Return a chart; the table of windows says the same in numbers."""
    view = f"0 0 {WIDTH} {HEIGHT}"
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def examples(analysis: Analysis) -> str:
    """Return the strangest digits of the last alarm."""
    if not analysis.examples:
        return ""
    cells = []
    for example in analysis.examples:
        content = io.BytesIO()
        Image.fromarray(255 - example.image).save(content, "PNG")
        data = base64.b64encode(content.getvalue()).decode()
        told = f"read as {example.answer}" + (f", is {example.truth}" if example.truth else "")
        cells.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="a digit {escape(told)}">'
            f"<figcaption>{escape(told)}</figcaption></figure>"
        )
    return (
        "<section><h2>Digits that caused it</h2>"
        f'<div class="digits">{"".join(cells)}</div></section>'
    )


def kept(analysis: Analysis, own: Params) -> str:
    """Return what was wrong with the rows, the gaps and a table of windows: the last of many."""
    lines = [
        f"<li>{count:,} {escape(FAULTS.get(name, name))}</li>"
        for name, count in analysis.faults.items()
        if count
    ]
    gaps, windows = analysis.gaps[-SHOWN_GAPS:], analysis.windows[-SHOWN_WINDOWS:]
    lines += [f"<li>no requests from {when(a)} to {when(b)}</li>" for a, b in gaps]
    if len(gaps) < len(analysis.gaps):
        lines.append(f"<li>the last {len(gaps)} of {len(analysis.gaps):,} gaps</li>")
    title = "All windows"
    if len(windows) < len(analysis.windows):
        title = f"The last {len(windows):,} of {len(analysis.windows):,} windows"
    rows = "".join(
        f"<tr><td>{when(w.first_ms)}</td><td>{w.requests}</td>"
        f"<td>{share(w.right / w.labelled) if w.labelled else ''}</td><td>{w.labelled}</td>"
        f"<td>{share(w.verdict.accuracy)}</td><td>{share(w.verdict.strangers)}</td>"
        f"<td>{w.verdict.p_value:.2g}</td><td>{'yes' if w.verdict.drift else ''}</td></tr>"
        for w in windows
    )
    alarm = own.alarm
    head = ["from", "requests", "right", "labelled", "estimated", "strange", "p-value", "drift"]
    return (
        f"<section><h2>What the requests were like</h2><ul>{''.join(lines) or '<li>whole</li>'}"
        f"</ul><p>Model {escape(analysis.reference.model_version)}; windows of {own.window} "
        f"requests, judged against {len(analysis.reference.summary):,} digits that it knows. "
        f"Without drift, the alarm rises about once in {alarm.windows_between_false_alarms:,} "
        f"windows at most.</p><details><summary>{title}</summary>"
        f'<div class="wide"><table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{rows}'
        "</table></div></details></section>"
    )
