"""`digits train`: the pipeline of this commit as one job on Azure ML, or on its stand-in.

What it made is then in DVC's cache here: `dvc repro` restores it instead of training. The job goes
on when this command is stopped; --attach looks again, --cancel ends it.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from core.errors import DigitsError
from mlops.azure.workspace import Workspace
from mlops.deploy import release
from mlops.jobs import job, results

LAST_LINES = 12


def finish(workspace: Workspace, name: str, status: str) -> None:
    """Fetch what a job made and say how it compares; raise DigitsError when it did not end well."""
    made = job.left(workspace, name)
    if status != "Completed" or made is None:
        file = job.save_log(workspace, name)
        log = file.read_text("utf-8").splitlines()
        how = "was canceled" if status == "Canceled" else f"ended as {status}: {cause(log)}"
        lines = "\n".join(["", *(f"  {line}" for line in log[-LAST_LINES:])])
        raise DigitsError(f"{name} {how}; its log is in {file} and ends with:{lines}")
    lock, account = made
    results.fetch([lock], job.remote(workspace))
    print("\n".join(compared(lock, account)))
    ran, head = job.commit_of(workspace, name), release.git("rev-parse", "HEAD").strip()
    if ran != head:
        print(f"That was commit {ran[:10]}; check it out first: here is {head[:10]}.")


def cause(log: list[str]) -> str:
    """Return what the worker of any node said last, with the mend, or that none said anything."""
    told = [line.removeprefix("job: ") for line in log if line.startswith("job: ")]
    if not told:
        return "it ended before it could say why, as for want of memory or time; see azure.job"
    return f"{told[-1]}; mend that, commit, push and run again"


def inputs(stage: dict[str, Any]) -> list[Any]:
    """Return what of a stage in dvc.lock DVC's run cache knows it by."""
    paths = [out["path"] for out in stage.get("outs", ())]
    return [paths, *(stage.get(key) for key in ("cmd", "deps", "params"))]


def compared(lock: str, account: dict[str, Any]) -> list[str]:
    """Return lines about a job's dvc.lock beside the one here, and about its machine."""
    ours, theirs = results.stages(Path(results.LOCK).read_text("utf-8")), results.stages(lock)
    same, other, new = [], [], []
    for stage, found in theirs.items():
        known = ours.get(stage)
        if known is None or inputs(known) != inputs(found):
            new.append(stage)
        elif known.get("outs") == found.get("outs"):
            same.append(stage)
        else:
            other += [made["path"] for made in found["outs"] if made not in known["outs"]]
    lines = [f"{len(same)} stages with the same bytes as dvc.lock here."] if same else []
    lines += [f"Not the same bytes as dvc.lock here: {', '.join(other)}."] if other else []
    lines += [f"New: {', '.join(new)}; `dvc repro` restores what the job made."] if new else []
    here = results.machine()
    if differ := [
        f"{key} {account['machine'][key]}, here {value}"
        for key, value in here.items()
        if account["machine"][key] != value
    ]:
        lines.append(
            f"The job's machine computes differently ({'; '.join(differ)}): what is restored has "
            "its bytes, not those that this machine would make."
        )
    return lines


def start(workspace: Workspace, settings: release.Params) -> str:
    """Submit the job of this commit; return its name."""
    print("".join(f"{line}\n" for line in job.other_bytes(settings)), end="")
    results.offer(job.RAW, job.remote(workspace))
    with tempfile.TemporaryDirectory() as folder:
        name = job.submit(workspace, job.define(workspace, settings, Path(folder)))
    print(f"{name} is submitted.", flush=True)
    return name


def main(asked: SimpleNamespace) -> None:
    """Submit a job and follow it, or look at one, or cancel it."""
    with job.session(asked) as (workspace, settings):
        if asked.cancel:
            job.cancel(workspace, asked.cancel)
            return
        name = asked.attach or start(workspace, settings)
        finish(workspace, name, job.follow(workspace, name, job.Log(workspace, name).more))
