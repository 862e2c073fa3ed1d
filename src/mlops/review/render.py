"""The report as Markdown that GitHub shows: tables and Mermaid charts, no image, no HTML.

What stands in a repository (class names, params, paths, output) is hostile: `plain` and `code`
take every text that is not this module's own.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the bot, which installs nothing, imports this module
    from mlops.review.compare import Row
    from mlops.review.report import Review

POINTS, ROWS, TEXT = 40, 30, 120  # of a chart, of a table, characters of a value
SIGNS = {"better": "🟢 better", "worse": "🔴 worse", "noise": "noise", "same": "same"}
VERDICTS = {
    "better": "Better",
    "worse": "Worse",
    "mixed": "Better here, worse there",
    "noise": "Noise: no difference beyond chance",
    "same": "Noise: the metrics are the same",
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
    shown = ("".join(c if c.isprintable() else " " for c in line)[:200] for line in lines)
    return "```text\n" + "\n".join(shown).replace("`", "'") + "\n```"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of cells that are Markdown already; rows beyond ROWS are counted."""
    lines = [head, ["---"] * len(head), *rows[:ROWS]]
    more = f"\n\nand {len(rows) - ROWS} more" if len(rows) > ROWS else ""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + more


def figure(value: float | None, sign: str = "") -> str:
    """Return a metric with 6 decimals at most; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return f"**{value}**".replace("nan", "NaN")
    return f"{value:{sign}.6f}".rstrip("0").rstrip(".") if value else "0"


def named(source: str) -> str:
    """Return a source's name, with it said when its digits are drawn from fonts."""
    script = source.removesuffix("_rendered")
    return plain(script) + (" (rendered)" if script != source else "")


def write(review: Review) -> str:
    """Return the report."""
    reasons, base = review.reasons, review.base
    judged = "❌ gate failed: " + plain(reasons[0], 300) if reasons else "✅ gate passed"
    head = (review.head or "no commit")[:10] + (" with uncommitted changes" if review.dirty else "")
    against = f"{base.commit[:10]} ({plain(base.said)})" if base.commit else plain(base.said, 300)
    parts = [
        f"## {VERDICTS[review.verdict]} · {judged}",
        "\n".join(f"- ❌ {plain(reason, 400)}" for reason in reasons[1:]),
        f"{head} against: {against}",
        "\n".join(f"- ⚠️ {plain(problem, 600)}" for problem in review.problems),
    ]
    if review.run and review.run.failed:
        parts.append(f"### The end of what `dvc repro` printed\n\n{code(review.run.last_lines)}")
    parts += [metrics(review), classes(review), params(review), stages(review)]
    parts += [data(review), curves(review)]
    if review.link:
        link = re.sub(r"[^\w.:/?=&%+-]", "", review.link)
        parts.append(f"DVC's plots, confusion matrices, the sheet of mistakes: {link}#artifacts")
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics(review: Review) -> str:
    """Return the table of metrics, those of the gate first and bold."""
    cells: list[list[str]] = []
    others: list[list[str]] = []
    for row in review.rows:
        rule = review.gate.get(row.source, {}).get(row.metric)
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
    return f"{table(head, cells + others)}\n\n{_rule(review.rows)}"


def _rule(rows: list[Row]) -> str:
    alone = (
        "± comes from the 95 % intervals, the number of digits alone (Newcombe's method 10), so "
        "more than that may be chance."
    )
    bases = {row.basis for row in rows}
    if "seeds" not in bases:
        return f"data/noise.json is absent: {alone}"
    seeds = (
        "± is what two runs differ by through their seeds alone, in 95 % of cases "
        "(data/noise.json; Student's t, two single runs)."
    )
    return f"{seeds} Where that file lacks a metric, {alone}" if "interval" in bases else seeds


def classes(review: Review) -> str:
    """Return the classes whose accuracy changed beyond chance, ten at most."""
    rows = [
        [named(source), plain(name, 40), figure(old), figure(new), figure(new - old, "+")]
        for source, name, old, new in review.classes
    ]
    if not rows:
        return ""
    head = ["Digits", "Class", "Before", "After", "Difference"]
    return f"### Classes beyond chance (99 %, of the test set alone)\n\n{table(head, rows[:10])}"


def params(review: Review) -> str:
    """Return the values of params.yaml that differ."""
    rows = [[plain(cell) or "–" for cell in row] for row in review.params]
    return f"### Params\n\n{table(['Key', 'Before', 'After'], rows)}" if rows else ""


def stages(review: Review) -> str:
    """Return what each stage did and why, and the time that was saved."""
    rows, saved, run = [], 0.0, review.run
    for name, why in review.stages.items():
        what, seconds = (run.stages if run else {}).get(name, ("", 0.0))
        if what in ("restored", "unchanged"):
            saved += max(review.stage_seconds.get(name.partition("@")[0], 0.0) - seconds, 0)
        found = why or (["nothing to restore was found"] if what == "ran" else [])
        told = ", ".join(plain(reason, 80) for reason in found[:5])
        told += f" and {len(why) - 5} more" if len(why) > 5 else ""
        if run:
            rows.append([plain(name), what or "not reached", told, f"{seconds:.1f}"])
        elif why:
            rows.append([plain(name), told])
    if not rows:
        return ""
    head = ["Stage", "What", "Changed against the base", "Seconds"]
    text = f"### Stages\n\n{table(head if run else head[::2], rows)}"
    if saved >= 1:
        text += f"\n\nAbout {saved / 60:.1f} minutes saved, by stage_seconds of params.yaml."
    return text


def data(review: Review) -> str:
    """Return the data that changed: rows and classes of the test sets, hashes, sizes."""
    lines = [
        f"- test set, {named(source)}: {_count(before)} → {_count(after)}"
        for source, before, after in review.counts
    ]
    rows = [[plain(path), _blob(before), _blob(after)] for path, before, after in review.data]
    if rows:
        lines.append("\n" + table(["Path", "Before", "After"], rows))
    inner = "\n".join(lines)
    title = f"Data: {len(rows)} changed"
    return f"<details><summary>{title}</summary>\n\n{inner}\n\n</details>" if lines else ""


def _count(row: tuple[int, int] | None) -> str:
    return f"{row[0]:,} of {row[1]} classes" if row else "none"


def _blob(row: Any) -> str:
    if row is None:
        return "–"
    digest, size, files = row
    return f"{plain(digest[:8])}, {plain(size)} bytes" + (
        "" if files == 1 else f", {plain(files)} files"
    )


def curves(review: Review) -> str:
    """Return training curves as Mermaid charts, the line before and the line after."""
    old, new = review.curves
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


def as_json(review: Review) -> str:
    """Return report.json: what report.py's docstring says of it."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    ran = review.run.stages.items() if review.run else []
    values = {
        "verdict": review.verdict,
        "gate": {"passed": not review.reasons, "reasons": review.reasons},
        "head": review.head,
        "base": review.base.commit,
        "problems": review.problems,
        "failed": review.run.failed if review.run else "",
        "stages": {name: {"what": what, "seconds": round(s, 1)} for name, (what, s) in ran},
        "metrics": [
            vars(row)
            | {"before": finite(row.before), "after": finite(row.after)}
            | {"difference": row.difference, "verdict": row.verdict}
            for row in review.rows
        ],
    }
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
