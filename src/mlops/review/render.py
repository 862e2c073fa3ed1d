"""The report as Markdown that GitHub shows: tables and Mermaid charts, no image, no HTML.

Every text of a report may be hostile (class names, params, paths, output): `plain` and `code`
escape all text from outside this module. Standard library only, as in schema.py.
"""

import math
import re
from typing import Any

from mlops.review.schema import Metric, Report

POINTS, ROWS, BULLETS = 40, 30, 10  # of a chart, of a table, of a list
NOTICES, INPUTS, SHOWN = 3, 3, 7  # of the first screen: notices, params, rows in all
TEXT = 120  # characters of a value
VERDICTS = {
    "better": "Better",
    "worse": "Worse",
    "mixed": "Mixed",
    "noise": "No significant difference",
    "same": "No difference",
    "unknown": "Nothing to compare with",
}
RATES = ("accuracy", "auroc", "error", "share", "rate")  # ends of metrics that are shown in %
MERGE_BY_HAND = """\
git checkout --ours dvc.lock 'data/*.json' 'data/*.csv'
dvc checkout --force --allow-missing
dvc repro
git add dvc.lock data"""
COLOURS = ("darkorange", "royalblue")
CURVES = {"Validation accuracy": "validation_accuracy", "Validation loss": "validation_loss"}


def plain(value: Any, limit: int = TEXT) -> str:
    """Escape text for Markdown, HTML and GitHub's mentions."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = text if len(text) <= limit else text[:limit] + "…"
    for sign, harmless in (("<", "‹"), (">", "›"), ("|", "¦"), ("`", "'"), ("\\", "⧵")):
        text = text.replace(sign, harmless)
    text = re.sub(r"([*~$])", r"\\\1", text).replace("&", "＆")
    return re.sub(r"(@|:(?=//)|#(?=\d)|GH-(?=\d)|www(?=\.)|\])", "\\1\u200b", text, flags=re.I)


def code(lines: list[str]) -> str:
    """Return lines as a code block with a fence that they cannot close."""
    shown = ("".join(c if c.isprintable() else " " for c in line)[:200] for line in lines[-ROWS:])
    return "```text\n" + "\n".join(shown).replace("`", "'") + "\n```"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown cells; only the number of rows beyond ROWS is shown."""
    lines = [head, ["---"] * len(head), *rows[:ROWS]]
    more = f"\n\nand {len(rows) - ROWS} more" if len(rows) > ROWS else ""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + more


def figure(value: float | None, sign: str = "") -> str:
    """Return a metric with 6 decimals at most; a dash for none and NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e9:
        return f"{value:{sign}.3g}"
    return f"{value:{sign}.6f}".rstrip("0").rstrip(".") if value else "0"


def named(source: str) -> str:
    """Return a source's name; a suffix marks digits that are rendered from fonts."""
    script = source.removesuffix("_rendered")
    return plain(script) + (" (rendered)" if script != source else "")


def rate(row: Metric) -> bool:
    """Return whether a metric is a share of one, which is shown in percent."""
    values = [value for value in (row.before, row.after) if value is not None]
    return row.metric.endswith(RATES) and all(-1 <= value <= 1 for value in values)


def value(row: Metric, number: float | None) -> str:
    """Return a metric's value, shares of one in percent."""
    if number is None or not math.isfinite(number) or not rate(row):
        return figure(number)
    return f"{100 * number:.2f} %"


def change(row: Metric) -> str:
    """Return the change of a metric, in percentage points for a share, and its significance."""
    text = figure(row.difference, "+")
    if row.difference and rate(row):
        text = f"{100 * row.difference:+.2f} points"
    sign = {"better": " 🟢", "worse": " 🔴", "noise": ", not significant"}.get(row.verdict, "")
    return text.replace("-", "−") + sign


def name_of(row: Metric) -> str:
    """Return source and metric in words."""
    return f"{named(row.source)} {plain(row.metric.replace('_', ' '))}"


def headline(report: Report) -> str:
    """Return the verdict with the figures behind it, and the gate, in one line."""
    rows = [row for row in report.metrics if row.counts and row.verdict in ("better", "worse")]
    rows.sort(key=lambda row: -abs(row.difference or 0))
    # The largest improvement and the largest deterioration.
    shown = list({row.verdict: row for row in reversed(rows)}.values())
    shown.sort(key=lambda row: -abs(row.difference or 0))
    texts = [f"{name_of(row)} {change(row)[:-2]}" for row in shown]
    words = VERDICTS[report.verdict] + (f": {', '.join(texts)}" if texts else "")
    judged = "✅ gate passed"
    if not report.gate.passed:
        reasons = report.gate.reasons
        judged = "❌ gate failed" + "".join(f": {plain(reason, 300)}" for reason in reasons[:1])
    return f"{words} · {judged}"


def write(
    report: Report,
    notices: tuple[list[str], list[str]] = ([], []),
    facts: str = "",
    production: dict[tuple[str, str], float] | None = None,
) -> str:
    """Return the report: verdict and gate, notices, a few rows, and all details, folded.

    `notices` are Markdown from the caller, before and after the report's own, and `facts` is
    another paragraph; `production` are the metrics of what is deployed, for a third column.
    """
    first, last = notices
    own = report.problems[: max(NOTICES - len(first) - len(last), 0)]
    parts = [
        f"## {headline(report)}",
        bullets("❌ ", report.gate.reasons[1:], 400),
        "\n".join(f"- {text}" for text in (*first, *(f"⚠️ {plain(t, 600)}" for t in own), *last)),
        bullets("", report.notes, 200),
        summary(report, production or {}),
        facts,
        folded(report, report.problems[len(own) :]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(report: Report, production: dict[tuple[str, str], float]) -> str:
    """Return the rows that are read first: changed params, then the metrics that count."""
    end = [""] if production else []
    rows = [
        [*(plain(cell, 40) or "–" for cell in (row.key, row.before, row.after)), "", *end]
        for row in report.params[:INPUTS]
    ]
    # Those of the gate first, then the others by how much they change.
    metrics = sorted(
        (row for row in report.metrics if row.counts),
        key=lambda row: (row.bounds is None, -abs(row.difference or 0)),
    )
    for row in metrics[: SHOWN - len(rows)]:
        name = f"**{name_of(row)}**" if row.bounds else name_of(row)
        line = [name, value(row, row.before), value(row, row.after), change(row)]
        served = [value(row, production.get((row.source, row.metric)))] if production else []
        rows.append(line + served)
    head = ["", "Before", "After", "Difference", *(["Production"] if production else [])]
    return table(head, rows) if rows else ""


def folded(report: Report, problems: list[str]) -> str:
    """Return all details, folded."""
    head = plain((report.head or "")[:10]) or "no commit"
    head += " with uncommitted changes" if report.dirty else ""
    against = plain(report.against, 300)
    if report.base:
        against = f"{plain(report.base[:10])} ({against})"
    parts = [f"Compared: {head} against: {against}", bullets("⚠️ ", problems, 600)]
    if report.failed:
        parts.append(f"### The end of what `dvc repro` printed\n\n{code(report.last_lines)}")
    parts += [metrics(report), classes(report), params(report), stages(report)]
    parts.append(curves(report))
    inner = "\n\n".join(part for part in parts if part)
    return f"<details><summary>Everything that was found</summary>\n\n{inner}\n\n</details>"


def bullets(sign: str, texts: list[str], limit: int) -> str:
    """Return a list of texts; only the number of those beyond BULLETS is shown."""
    lines = [f"- {sign}{plain(text, limit)}" for text in texts[:BULLETS]]
    if len(texts) > BULLETS:
        lines.append(f"- {sign}and {len(texts) - BULLETS} more")
    return "\n".join(lines)


def metrics(report: Report) -> str:
    """Return the table of all metrics, those of the gate first and bold."""
    rows = []
    for row in sorted(report.metrics, key=lambda row: row.bounds is None):
        rule, name = row.bounds, name_of(row)
        noise = f" (±{figure(row.noise)})" if row.noise is not None and row.difference else ""
        words = VERDICTS[row.verdict].lower() + noise
        if row.verdict == "unknown" and row.difference is not None:
            words = "not known"  # there is no measure of chance
        limit = f"{'≥' if rule.direction == 'higher' else '≤'} {figure(rule.limit)}" if rule else ""
        rows.append(
            [
                f"**{name}**" if rule else name,
                *(figure(row.before), figure(row.after), figure(row.difference, "+")),
                *(words, limit, f"{figure(rule.tolerance)} worse" if rule else ""),
            ]
        )
    head = ["Metric", "Before", "After", "Difference", "Beyond chance", "Limit", "Tolerance"]
    text = "± is the range of random differences in 95 % of cases, between seeds (data/noise.json) "
    text += "or else between test sets (Newcombe's method 10)."
    return f"### Metrics\n\n{table(head, rows)}\n\n{text}" if rows else ""


def classes(report: Report) -> str:
    """Return the classes whose accuracy changed beyond chance, the largest change first."""
    texts = [
        f"{row.source} {row.name}: {figure(row.before)} → {figure(row.after)}"
        for row in report.classes
    ]
    title = "### Classes that changed beyond chance (99 %, without seed variance)"
    return f"{title}\n\n{bullets('', texts, TEXT)}" if texts else ""


def params(report: Report) -> str:
    """Return the values of params.yaml that differ."""
    rows = [
        [plain(cell) or "–" for cell in (row.key, row.before, row.after)] for row in report.params
    ]
    return f"### Params\n\n{table(['Key', 'Before', 'After'], rows)}" if rows else ""


def stages(report: Report) -> str:
    """Return what each stage did and why."""
    rows = []
    for stage in report.stages:
        text = ", ".join(plain(reason, 80) for reason in stage.changed[:5])
        text += f" and {len(stage.changed) - 5} more" if len(stage.changed) > 5 else ""
        if stage.what or text:
            seconds = figure(round(stage.seconds, 1))
            rows.append([plain(stage.name), stage.what or "not run", text, seconds])
    head = ["Stage", "What", "Changed against the base", "Seconds"]
    return f"### Stages\n\n{table(head, rows)}" if rows else ""


def curves(report: Report) -> str:
    """Return training curves as Mermaid charts, the line before and the line after."""
    old, new = report.curves_before, report.curves_after
    charts = [chart(title, old.get(key, []), new.get(key, [])) for title, key in CURVES.items()]
    inner = "\n\n".join(text for text in charts if text)
    return f"### Training curves\n\n{inner}" if inner else ""


def chart(title: str, before: list[float], after: list[float]) -> str:
    """Return a chart of one column, empty when there is nothing to draw.

    Epochs are names on the axis, not a range: Mermaid stretches each line over a range, so two
    trainings of different length would not be aligned by epoch.
    """
    lines = [line for line in (before, after if after != before else []) if line]
    values = [value for line in lines for value in line]
    if not values or not all(math.isfinite(value) and abs(value) < 1e9 for value in values):
        return ""
    names = [name for name, line in (("before", before), ("after", after)) if line]
    if len(lines) < len(names):  # both are the same
        names = ["before and after"]
    longest = max(map(len, lines))
    if longest == 1:
        found = zip(names, lines, strict=True)
        return f"{title} after one epoch: {', '.join(f'{n} {line[0]:.5f}' for n, line in found)}"
    step = -(-longest // POINTS)
    places = range(step - 1, longest, step)
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 0.01
    points = [[f"{line[at]:.5f}" for at in places if at < len(line)] for line in lines]
    # Mermaid draws no line through one point.
    drawn = [f"{'bar' if len(row) == 1 else 'line'} [{', '.join(row)}]" for row in points]
    # xychart has no legend: the colours are set, and named in the title.
    legend = ", ".join(f"{c}: {name}" for c, name in zip(COLOURS, names, strict=False))
    text = [
        f"```mermaid\n%%{{init: {{'themeVariables': {{'xyChart': "
        f"{{'plotColorPalette': '{', '.join(COLOURS)}'}}}}}}}}%%\nxychart-beta",
        f'title "{title} ({legend})"',
        f'x-axis "epoch" [{", ".join(str(at + 1) for at in places)}]',
        f'y-axis "{title.lower()}" {low - margin:.5f} --> {high + margin:.5f}',
        *drawn,
    ]
    return "\n    ".join(text) + "\n```"
