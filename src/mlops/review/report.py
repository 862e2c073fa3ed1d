"""Review: compare the working tree with a base, by the base's rules.

Input: git's files at the base, and the working tree; with --repro, `dvc repro` runs first. Output:
a `schema.Report`, which `digits review --out FOLDER` writes as FOLDER/report.json.

The verdict must hold against an author who changes data but no code. So the rules (section `review`
of params.yaml) and the seed variance come from the base as it is today, `dvc repro` starts from the
dvc.lock of the base, and recomputes what the author claims in dvc.lock or a table.
"""

import io
from pathlib import Path

from ruamel.yaml import YAML

from core import params
from core.errors import DigitsError
from core.files import write_text
from mlops import dvc, git
from mlops.git import Base
from mlops.review import compare, schema
from mlops.review.gate import Params, judge
from mlops.review.schema import Report, Stage
from mlops.review.snapshot import NOISE, TABLES, Snapshot, mapping, read, stages

LOCK, TRAIN = "dvc.lock", "train"
# What a run writes and git keeps.
KEPT = (LOCK, "data/evaluation", "data/model", "data/monitoring")
NO_COMPARISON = (
    "not comparable: the test set changed, so only the fixed limits are judged and no metric is "
    "compared with the base"
)
NOT_CACHED = (
    ", whose data is in no cache: push it ('dvc push --remote main'), then re-run this; "
    "without a remote 'dvc remove' that file and commit the data"
)


def tree(path: str) -> bytes | None:
    """Return a file's bytes in the working tree, None when it is not there."""
    file = Path(path)
    return file.read_bytes() if file.is_file() else None


def at(commit: str | None) -> Snapshot:
    """Return the snapshot of a commit, an empty one for none."""
    return read(lambda path: git.show(commit, path), f"at {commit[:10]}") if commit else Snapshot()


def reproduce(base: str | None, restore: str, kept: str = "") -> tuple[dvc.Run, str]:
    """Run `dvc repro` from the base's dvc.lock, so that no entry by the author is trusted.

    With `restore`, the lock's files are checked out first, from a remote or DVC's cache; the
    returned text lists missing ones. Without a base the lock stays as it is. When a stage fails,
    the lock is put back. The author's entry of the stage `kept` stays, and its outputs come from
    the remote review, too.
    """
    own = tree(LOCK)
    done = False
    try:
        if base:
            theirs = git.show(base, LOCK)
            Path(LOCK).unlink(missing_ok=True)
            if theirs is not None:
                text = theirs.decode("utf-8", errors="replace")
                write_text(Path(LOCK), with_entry(text, own or b"", kept) if kept else text)
        missing = dvc.restore("review", kept) if kept and restore not in ("", "cache") else ""
        if restore:
            lacking = dvc.restore("" if restore == "cache" else restore)
            missing = "; ".join(filter(None, (missing, lacking)))
        run = dvc.repro()
        done = not run.failed
    finally:
        if not done and own is not None:
            write_text(Path(LOCK), own.decode("utf-8", errors="replace"))
    return run, missing


def with_entry(lock: str, other: bytes, stage: str) -> str:
    """Return a dvc.lock with a stage's entry from `other`; raise DigitsError without one."""
    try:
        entry = stages(mapping(other.decode("utf-8")))[stage]
    except Exception as error:  # whatever hostile input makes a parser raise
        raise DigitsError(f"{LOCK}: has no valid entry of {stage} ({error!r:.200})") from None
    values, changed = YAML().load(lock), io.StringIO()
    values["stages"][stage] = entry
    YAML().dump(values, changed)
    return changed.getvalue()


def made_by() -> str:
    """Return the job or person that made the weights of HEAD, by the commit that brought them."""
    weights = compare.hashes(at("HEAD").stages.get(TRAIN, {}), "outs")
    md5 = next(iter(weights.values()), "no output")
    row = "%(trailers:key=Job,valueonly,separator=%x20)|%an in %h"
    job, _, person = git.line("log", "-1", f"-S{md5}", f"--format={row}", "--", LOCK).partition("|")
    return f"{job} of {person}" if job else person


def refused(base: Base, after: Snapshot) -> list[str]:
    """Return why the pipeline is not run: an unfinished merge, or files that DVC must not see."""
    if git.unmerged() or any("conflict markers" in problem for problem in after.problems):
        return ["a merge is unfinished: 'git merge --abort', then 'digits merge'"]
    known = [path for path in sorted(TABLES) if base.commit and git.show(base.commit, path)]
    hidden = git.ignored(*known) if known else []
    found = [f"{path}: a .gitignore hides this table; remove that line" for path in hidden]
    return dvc.refused_files(git.listed("*.dvc")) + found


def weights_of_others(before: Snapshot, today: Snapshot, after: Snapshot) -> str:
    """Return stage train if its entry is kept: it differs, and the base has `verify: restore`."""
    azure = today.params.get("azure")
    restores = isinstance(azure, dict) and azure.get("verify") == "restore"
    other = TRAIN in after.stages and after.stages[TRAIN] != before.stages.get(TRAIN)
    return TRAIN if restores and other else ""


def rules(today: Snapshot, after: Snapshot, where: str) -> tuple[Params, list[str]]:
    """Return section `review` of the base, or the working tree's, and why it is not the base's."""
    try:
        return params.section(Params, today.params, "review"), []
    except DigitsError as error:
        text = f"the gate of the working tree is used: {where}: {error}"
        return params.section(Params, after.params, "review"), [text] if today.params else []


def seed_variance(base: Base, today: Snapshot, after: Snapshot) -> tuple[dict, list[str]]:
    """Return data/noise.json as the base has it, and notices; nothing where it does not apply."""
    notices = []
    if base.commit and git.show(base.commit, NOISE) != tree(NOISE):
        notices.append(f"{NOISE} is changed here, which has no effect: the base's is used")
    noise = today.noise if base.tip else after.noise
    if noise and (other := compare.measured_with(noise, after)):
        notices.append(
            f"the seed variance of {NOISE} is not used: it was measured with another value of "
            f"{', '.join(other)}. Measure it again: make noise"
        )
        noise = {}
    return noise, notices


def review(revision: str | None, repro: bool, restore: str = "") -> Report:
    """Compare; with `repro`, run `dvc repro` before; with `restore`, fetch the base's files first.

    Raises DigitsError outside the repository's root.
    """
    git.require_root()
    base = git.find_base(revision)
    dirty = bool(git.changed(".", ":!review"))
    after = claimed = read(tree, "in the working tree")
    before = at(base.commit)
    today = before if base.tip == base.commit else at(base.tip)
    reasons, problems = refused(base, after), list[str]()
    run = None
    if repro and not reasons:
        kept = weights_of_others(before, today, after)
        run, missing = reproduce(base.commit, restore, kept)
        if kept and run.stages.get(kept, ("", 0))[0] != "ran":
            problems.append(f"weights not reproduced; made by {made_by()}")
        if missing:
            problems.append(f"not all could be restored ({missing}); the rest is computed here")
        after = read(tree, "in the working tree")
    if run and run.failed:
        lacking = NOT_CACHED if run.failed.endswith(".dvc") else ""
        reasons.append(f"'dvc repro' failed at {run.failed}{lacking}")
    elif run and (stale := git.changed(*KEPT)):
        problems.append(
            f"the committed files differ from what the pipeline computes ({', '.join(stale[:6])}): "
            "run 'dvc repro', 'git add dvc.lock data', 'git commit'"
        )
        if git.line("log", "-1", "--format=%an").endswith("[bot]"):  # it committed what a run made
            other = compare.irreproducible(claimed, after)
            reasons += [f"not reproducible: {name}" for name in other]
    elif not run and not reasons:
        stale, missing_files = dvc.status(set(compare.outs(after)) - TABLES)
        reasons, problems = reasons + stale, problems + missing_files
    if base.unresolvable:
        reasons.append(base.description)
    settings = None
    if not after.params:  # whatever else failed, this is why
        texts = (text for text in after.problems if text.startswith("params.yaml"))
        reasons.insert(0, next(texts, "params.yaml is empty"))
    try:
        settings, notices = rules(today, after, f"params.yaml of {base.description}")
        problems += notices
    except DigitsError as error:
        reasons += [str(error)] if after.params else []
    both = bool(before.params and after.params)
    inputs = {
        name: compare.inputs(before.stages.get(name), after.stages.get(name))
        for name in {**before.stages, **after.stages}
        if before.stages and after.stages
    }
    if both and before.params.get("review") != after.params.get("review"):
        problems.append("section review of params.yaml is changed; the base's is used instead")
        read_by = [name for name, changed in inputs.items() if changed]
        if read_by and base.tip:
            reasons.append(
                "section review of params.yaml changes together with what a stage reads "
                f"({', '.join(read_by[:5])}): split it into two pull requests"
            )
    noise, notices = seed_variance(base, today, after)
    gate = settings.gate if settings else {}
    rows = compare.metrics(before, after, noise, gate)
    if compare.other_test_set(before, after):
        notices.insert(0, NO_COMPARISON)
    reasons += judge(rows, gate)
    return Report(
        verdict=compare.verdict(rows),
        gate=schema.Gate(not reasons, reasons),
        head=git.commit("HEAD"),
        dirty=dirty,
        base=base.commit,
        against=base.description,
        problems=[
            text
            for text in notices + problems + after.problems + before.problems
            if text not in reasons
        ],
        failed=run.failed if run else "",
        last_lines=run.last_lines if run else [],
        stages=[
            Stage(name, what, round(seconds, 1), inputs.get(name, []))  # type: ignore[arg-type]
            for name in inputs or after.stages
            for what, seconds in [(run.stages if run else {}).get(name, ("", 0.0))]
        ],
        metrics=rows,
        classes=compare.classes(before, after),
        params=compare.changes(before.params, after.params) if both else [],
        curves_before=before.curves,
        curves_after=after.curves,
    )
