"""`digits train`: run the pipeline of this commit as a job on Azure ML or on its emulator.

Input: the commit. Output: the results of the job in this clone, that is dvc.lock, the small tables,
and all other outs by `dvc checkout`.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

from core.errors import DigitsError
from mlops import dvc, git
from mlops.azure.settings import Params
from mlops.azure.workspace import Workspace
from mlops.jobs import job, results
from mlops.review import compare

LAST_LINES = 12


def finish(workspace: Workspace, name: str, status: str) -> None:
    """Download the results of a job and compare them; raise DigitsError when it failed."""
    summary = job.read_summary(workspace, name)
    if status != "Completed" or summary is None:
        file = job.save_log(workspace, name)
        log = file.read_text("utf-8").splitlines()
        how = "was canceled" if status == "Canceled" else f"ended as {status}: {cause(log)}"
        end = "\n".join(["", *(f"  {line}" for line in log[-LAST_LINES:])])
        raise DigitsError(f"{name} {how}. Its log is in {file} and ends with:{end}")
    ran = job.commit_of(workspace, name)
    with results.worktree(ran, job.remote(workspace)) as tree:
        files = job.read_outputs(workspace, name, ran)
        refuse_changed(ran, files)
        tree.fetch(files)
    before = (git.show(ran, results.LOCK) or b"").decode()
    lines = compared(before, files[results.LOCK].decode())
    results.place(files, Path())
    dvc.checkout(fix="close these files, then run `dvc checkout`")
    save = f"`git diff`, then `git commit --all --trailer 'Job: {name}'`"
    print("\n".join([*lines, f"The results of the job are in place: {save}"]))


def refuse_changed(ran: str, files: dict[str, bytes]) -> None:
    """Raise DigitsError when a result of a job of commit `ran` would overwrite local changes."""
    changed = git.run("diff", "--name-only", "-z", ran, "--", *files).split("\0")
    changed += git.run("ls-files", "--others", "-z", "--", *files).split("\0")
    for name in filter(None, changed):
        if not Path(name).exists() or Path(name).read_bytes() != files[name]:
            raise DigitsError(
                f"{name}: has changed since commit {ran[:10]}, which the job ran. Check out that "
                f"commit, then {results.ATTACH}."
            )


def cause(log: list[str]) -> str:
    """Return the last error of the worker of any node, with a fix."""
    errors = [line.removeprefix("job: ") for line in log if line.startswith("job: ")]
    if not errors:
        return "no error in the log: it may have run out of memory or time; see azure.job"
    return f"{errors[-1]}; fix this, commit, push and run again"


def compared(before: str, lock: str) -> list[str]:
    """Return lines that compare a job's dvc.lock with the one before."""
    ours, theirs = dvc.stages(before), dvc.stages(lock)
    same, other, new = [], [], []
    for stage, found in theirs.items():
        known = ours.get(stage)
        paths = [compare.hashes(one or {}, "outs").keys() for one in (known, found)]
        if known is None or compare.inputs(known, found) or paths[0] != paths[1]:
            new.append(stage)
        elif known.get("outs") == found.get("outs"):
            same.append(stage)
        else:
            other += [made["path"] for made in found["outs"] if made not in known["outs"]]
    lines = [f"{len(same)} stages with the same bytes as dvc.lock here."] if same else []
    lines += [f"Not the same bytes as dvc.lock here: {', '.join(other)}."] if other else []
    lines += [f"New: {', '.join(new)}."] if new else []
    return lines


def start(workspace: Workspace, settings: Params) -> str:
    """Submit the job of this commit; return its name."""
    results.upload_inputs(job.remote(workspace))
    with tempfile.TemporaryDirectory() as folder:
        name = job.submit(workspace, job.define(workspace, settings, Path(folder)))
    print(f"Submitted {name}.", flush=True)
    return name


def main(asked: SimpleNamespace) -> None:
    """Submit a job and follow it, or follow or cancel an earlier one."""
    with job.session(asked) as (workspace, settings):
        if asked.cancel:
            job.cancel(workspace, asked.cancel)
            return
        name = asked.attach or start(workspace, settings)
        finish(workspace, name, job.follow(workspace, name, job.Log(workspace, name).more))
