"""The report as Markdown that GitHub shows: tables and Mermaid charts, no image, no HTML.

Every text of a report may be hostile (class names, params, paths, output): `plain` and `code` take
all that is not this module's own. Standard library only, as in schema.py.
"""

import math
import re
from typing import Any

from mlops.review.schema import Blob, Metric, Report, TestSet

POINTS, ROWS, BULLETS = 40, 30, 10  # of a chart, of a table, of a list
TEXT = 120  # characters of a value
SIGNS = {"better": "🟢 better", "worse": "🔴 worse", "noise": "noise", "same": "same"}
VERDICTS = {
    "better": "Better",
    "worse": "Worse",
    "mixed": "Mixed",
    "noise": "No significant difference",
    "same": "No difference",
    "unknown": "No verdict",
}
CURVES = {"Validation accuracy": "validation_accuracy", "Validation loss": "validation_loss"}


def plain(value: Any, limit: int = TEXT) -> str:
    """Return text that Markdown, HTML and GitHub's mentions take for nothing but text."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = text if len(text) <= limit else text[:limit] + "…"
    for sign, harmless in (("<", "‹"), (">", "›"), ("|", "¦"), ("`", "'"), ("\\", "⧵")):
        text = text.replace(sign, harmless)
    text = re.sub(r"([*~$])", r"\\\1", text).replace("&", "＆")
    return re.sub(r"(@|:(?=//)|#(?=\d)|GH-(?=\d)|www(?=\.)|\])", "\\1\u200b", text, flags=re.I)


def code(lines: list[str]) -> str:
    """Return lines as a block of code that they cannot end."""
    shown = ("".join(c if c.isprintable() else " " for c in line)[:200] for line in lines[-ROWS:])
    return "```text\n" + "\n".join(shown).replace("`", "'") + "\n```"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of cells that are Markdown already; rows beyond ROWS are counted."""
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


def write(report: Report, facts: str = "") -> str:
    """Return the report; `facts` is Markdown of one's own that comes after the verdict."""
    reasons = report.gate.reasons
    judged = "✅ gate passed"
    if not report.gate.passed:
        judged = "❌ gate failed" + "".join(f": {plain(reason, 300)}" for reason in reasons[:1])
    head = plain((report.head or "")[:10]) or "no commit"
    head += " with uncommitted changes" if report.dirty else ""
    against = plain(report.against, 300)
    if report.base:
        against = f"{plain(report.base[:10])} ({against})"
    parts = [
        f"## {VERDICTS[report.verdict]} · {judged}",
        facts,
        bullets("", report.notes, 200),
        bullets("❌ ", reasons[1:], 400),
        f"Compared: {head} against: {against}",
        bullets("⚠️ ", report.problems, 600),
    ]
    if report.failed:
        parts.append(f"### The end of what `dvc repro` printed\n\n{code(report.last_lines)}")
    parts += [metrics(report), classes(report), params(report), stages(report)]
    parts += [data(report), curves(report)]
    if report.link:
        link = re.sub(r"[^\w.:/?=&%+-]", "", report.link)
        parts.append(f"DVC's plots, confusion matrices, the sheet of mistakes: {link}#artifacts")
    return "\n\n".join(part for part in parts if part) + "\n"


def bullets(sign: str, texts: list[str], limit: int) -> str:
    """Return a list of texts; those beyond BULLETS are counted."""
    lines = [f"- {sign}{plain(text, limit)}" for text in texts[:BULLETS]]
    if len(texts) > BULLETS:
        lines.append(f"- {sign}and {len(texts) - BULLETS} more")
    return "\n".join(lines)


def metrics(report: Report) -> str:
    """Return the table of metrics, those of the gate first and bold."""
    cells: list[list[str]] = []
    others: list[list[str]] = []
    for row in report.metrics:
        rule = row.bounds
        name = f"{named(row.source)} {plain(row.metric.replace('_', ' '))}"
        known = row.noise is not None and row.difference
        noise = f" (±{figure(row.noise)})" if known else ""
        line = [
            f"**{name}**" if rule else name,
            *(figure(row.before), figure(row.after), figure(row.difference, "+")),
            SIGNS.get(row.verdict, "not known") + noise,
            f"{'≥' if rule.direction == 'higher' else '≤'} {figure(rule.floor)}" if rule else "",
            f"{figure(rule.tolerance)} worse" if rule else "",
        ]
        (cells if rule else others).append(line)
    if not cells + others:
        return ""
    head = ["Metric", "Before", "After", "Difference", "Beyond noise?", "Floor", "Tolerance"]
    return f"{table(head, cells + others)}\n\n{_rule(report.metrics)}"


def _rule(rows: list[Metric]) -> str:
    alone = (
        "± comes from the 95 % intervals, the number of digits alone (Newcombe's method 10), so "
        "more than that may be chance."
    )
    bases = {row.basis for row in rows}
    if "seeds" not in bases:
        return f"Without data/noise.json {alone}" if "interval" in bases else ""
    seeds = (
        "± is what two runs differ by through their seeds alone, in 95 % of cases "
        "(data/noise.json; Student's t, two single runs)."
    )
    return f"{seeds} Where that file lacks a metric, {alone}" if "interval" in bases else seeds


def classes(report: Report) -> str:
    """Return the classes whose accuracy changed beyond chance, ten at most."""
    rows = [
        [
            *(named(row.source), plain(row.name, 40)),
            *(figure(row.before), figure(row.after), figure(row.after - row.before, "+")),
        ]
        for row in report.classes
    ]
    if not rows:
        return ""
    head = ["Digits", "Class", "Before", "After", "Difference"]
    return f"### Classes beyond chance (99 %, of the test set alone)\n\n{table(head, rows[:10])}"


def params(report: Report) -> str:
    """Return the values of params.yaml that differ."""
    rows = [
        [plain(cell) or "–" for cell in (row.key, row.before, row.after)] for row in report.params
    ]
    return f"### Params\n\n{table(['Key', 'Before', 'After'], rows)}" if rows else ""


def stages(report: Report) -> str:
    """Return what each stage did and why, and the time that was saved."""
    rows, saved = [], 0.0
    ran = any(stage.what for stage in report.stages) or bool(report.failed)
    for stage in report.stages:
        if stage.what in ("restored", "unchanged"):
            saved += max(stage.usual_seconds - stage.seconds, 0)
        why = stage.changed
        found = why or (["nothing to restore was found"] if stage.what == "ran" else [])
        text = ", ".join(plain(reason, 80) for reason in found[:5])
        text += f" and {len(why) - 5} more" if len(why) > 5 else ""
        if ran:
            seconds = figure(round(stage.seconds, 1))
            rows.append([plain(stage.name), stage.what or "not reached", text, seconds])
        elif why:
            rows.append([plain(stage.name), text])
    if not rows:
        return ""
    head = ["Stage", "What", "Changed against the base", "Seconds"]
    text = f"### Stages\n\n{table(head if ran else head[::2], rows)}"
    if saved >= 1:
        minutes = figure(round(saved / 60, 1))
        text += f"\n\nAbout {minutes} minutes saved, by stage_seconds of params.yaml."
    return text


def data(report: Report) -> str:
    """Return the data that changed: rows and classes of the test sets, hashes, sizes."""
    lines = [
        f"- test set, {named(row.source)}: {_count(row.before)} → {_count(row.after)}"
        for row in report.test_sets[:ROWS]
    ]
    rows = [[plain(row.path), _blob(row.before), _blob(row.after)] for row in report.data]
    if rows:
        lines.append("\n" + table(["Path", "Before", "After"], rows))
    inner = "\n".join(lines)
    title = f"Data: {len(rows)} changed"
    return f"<details><summary>{title}</summary>\n\n{inner}\n\n</details>" if lines else ""


def _count(row: TestSet | None) -> str:
    return f"{row.rows:,} of {row.classes} classes" if row else "none"


def _blob(row: Blob | None) -> str:
    if row is None:
        return "–"
    files = "" if row.files == 1 else f", {row.files} files"
    return f"{plain(row.md5[:8])}, {row.size} bytes{files}"


def curves(report: Report) -> str:
    """Return training curves as Mermaid charts, the line before and the line after."""
    old, new = report.curves_before, report.curves_after
    charts = [chart(title, old.get(key, []), new.get(key, [])) for title, key in CURVES.items()]
    inner = "\n\n".join(text for text in charts if text)
    title = "Training curves"
    return f"<details><summary>{title}</summary>\n\n{inner}\n\n</details>" if inner else ""


def chart(title: str, before: list[float], after: list[float]) -> str:
    """Return a chart of one column, empty when there is nothing to draw.

    Epochs are names on the axis, not a range: Mermaid stretches each line over a range, so two
    trainings of different length would not stand under the same epoch.
    """
    lines = [line for line in (before, after if after != before else []) if line]
    values = [value for line in lines for value in line]
    if not values or not all(math.isfinite(value) and abs(value) < 1e9 for value in values):
        return ""
    longest = max(map(len, lines))
    step = -(-longest // POINTS)
    places = range(step - 1, longest, step)
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 0.01
    if len(lines) == 2:
        order = "first line before, second after"
    else:
        order = "before and after" if before and after else "before" if before else "after"
    drawn = [
        "line [" + ", ".join(f"{line[at]:.5f}" for at in places if at < len(line)) + "]"
        for line in lines
    ]
    text = [
        "```mermaid\nxychart-beta",
        f'title "{title}, {order}"',
        f'x-axis "epoch" [{", ".join(str(at + 1) for at in places)}]',
        f'y-axis "{title.lower()}" {low - margin:.5f} --> {high + margin:.5f}',
        *drawn,
    ]
    return "\n    ".join(text) + "\n```"
