"""All that a review tells: the working tree against a base, judged.

Enters: what is in git at the base, what is in the working tree; with --repro after `dvc repro`.
Leaves, with --out, FOLDER/report.md, FOLDER/plots (DVC's page) and FOLDER/report.json:

    verdict    better, worse, mixed, noise, same or unknown: over the metrics of the gate
    gate       passed (bool), reasons (texts, empty when it passed)
    head, base ids of commits, null where there is none
    problems   texts: what could not be read, what is stale, each with what to do
    failed     the stage at which `dvc repro` failed, else empty
    stages     by name: what (ran, restored, unchanged) and seconds; empty without --repro
    metrics    rows: source, metric, before, after, difference, noise, basis, verdict;
               null where a number is missing, NaN or infinite
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import params
from core.errors import DigitsError
from mlops import dvc, git
from mlops.git import Base
from mlops.review import compare, gate
from mlops.review.compare import Row
from mlops.review.gate import Params, Rule
from mlops.review.snapshot import CLASSES, CURVES, METRICS, PRODUCTION, WINDOWS, Side, read

KEPT = (
    "dvc.lock",
    "data/evaluation",
    "data/model",
    "data/monitoring",
)  # what a run writes and git keeps


@dataclass(frozen=True)
class Review:
    """All that the report tells."""

    head: str | None
    dirty: bool  # the working tree differs from the head
    base: Base
    rows: list[Row]
    classes: list[tuple[str, str, float, float]]  # source, class, accuracy before and after
    params: list[tuple[str, str, str]]  # key, value before, value after
    stages: dict[str, list[str]]  # what changed of each stage of dvc.lock, against the base
    counts: list[tuple[str, Any, Any]]  # source, (rows, classes) of its test set before and after
    data: list[tuple[str, Any, Any]]  # path, (MD5, bytes, files) before and after
    curves: tuple[dict[str, list[float]], dict[str, list[float]]]  # column, epochs; before, after
    verdict: str
    gate: dict[str, dict[str, Rule]]
    reasons: list[str]  # why the gate failed
    stage_seconds: dict[str, float]
    problems: list[str]
    run: dvc.Run | None
    link: str


def tree(path: str) -> bytes | None:
    """Return a file's bytes in the working tree, None when it is not there."""
    file = Path(path)
    return file.read_bytes() if file.is_file() else None


def review(revision: str | None, repro: bool, link: str) -> Review:
    """Compare, after `dvc repro` if `repro`; raise DigitsError outside the repository's root."""
    git.require_root()
    base = git.find_base(revision)
    dirty = bool(git.changed(".", ":!review"))
    after = read(tree, "in the working tree")
    problems: list[str] = []
    reasons: list[str] = []
    run = None
    if git.unmerged() or any("conflict markers" in problem for problem in after.problems):
        reasons.append(
            "a merge is unfinished: mend params.yaml if it is in conflict, then run 'digits relock'"
        )
    elif repro:
        run = dvc.repro()
        after = read(tree, "in the working tree")
        stale = git.changed(*KEPT)
        if run.failed:
            reasons.append(f"'dvc repro' failed at {run.failed}")
        elif stale:
            problems.append(
                f"what is committed is not what the pipeline makes ({', '.join(stale[:6])}): run "
                "'dvc repro', 'git add dvc.lock data', 'git commit'"
            )
    else:
        outs = {path for row in after.stages.values() for path in compare.hashes(row, "outs")}
        told, missing = dvc.status(outs - {METRICS, CLASSES, CURVES, PRODUCTION, WINDOWS})
        reasons += told
        problems += missing
    at = base.commit
    before = read(lambda path: git.show(at, path), f"at {at[:10]}") if at else Side()
    if base.broken:
        reasons.append(base.said)
    rules: dict[str, dict[str, Rule]] = {}
    stage_seconds: dict[str, float] = {}
    try:
        settings = params.section(Params, after.params, "review")
        rules, stage_seconds = settings.gate, settings.stage_seconds
    except DigitsError as error:
        why = next((p for p in after.problems if p.startswith("params")), str(error))
        reasons.insert(0, why)  # whatever else failed, this is why
    both = bool(before.params and after.params)
    if both and before.params.get("review") != after.params.get("review"):
        problems.append("this change moves the gate itself: section review of params.yaml")
    measured = (after.noise or before.noise).get("trained", {})
    if measured and after.params and measured.get("train") != after.params.get("train"):
        problems.append("data/noise.json is of another training: 'make noise' measures it anew")
    rows = compare.metrics(before, after)
    reasons += gate.judge(rows, rules)
    gated = [row for row in rows if row.metric in rules.get(row.source, {})]
    return Review(
        head=git.commit("HEAD"),
        dirty=dirty,
        base=base,
        rows=rows,
        classes=compare.classes(before, after),
        params=compare.changes(before.params, after.params) if both else [],
        stages={
            name: compare.reasons(before.stages.get(name), stage) if before.stages else []
            for name, stage in after.stages.items()
        },
        counts=compare.counts(before, after),
        data=compare.data(before, after) if before.stages else [],
        curves=(before.curves, after.curves),
        verdict=compare.verdict(gated),
        gate=rules,
        reasons=reasons,
        stage_seconds=stage_seconds,
        problems=[p for p in problems + after.problems + before.problems if p not in reasons],
        run=run,
        link=link,
    )
