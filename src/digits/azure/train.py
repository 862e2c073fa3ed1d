"""`digits train`: the pipeline of this commit as one job on Azure ML, or on its stand-in.

What it made is then in DVC's cache here: `dvc repro` restores it instead of training. The job goes
on when this command is stopped; --attach looks again, --cancel ends it.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from azure.core.exceptions import (
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)

from digits.azure import job, release, results
from digits.azure.deploy import LOGS, explained
from digits.azure.workspace import Workspace, connect
from digits.errors import DigitsError
from digits.files import write_text

LAST_LINES = 12


def finish(workspace: Workspace, name: str, status: str, log: list[str]) -> None:
    """Fetch what a job made and say how it compares; raise DigitsError when it did not end well."""
    made = job.left(workspace, name)
    if status != "Completed" or made is None:
        file = LOGS / f"{name}.log"
        write_text(file, "\n".join(log) + "\n")
        last = "\n".join(f"  {line}" for line in log[-LAST_LINES:])
        how = "was canceled" if status == "Canceled" else f"ended as {status}"
        mend = "" if status == "Canceled" else "; mend the cause, commit, push and run again"
        raise DigitsError(f"{name} {how}; its log is in {file}, its end:\n{last}\n{name}{mend}")
    lock, account = made
    results.fetch([lock], job.remote(workspace))
    print("\n".join(compared(lock, account)))


def compared(lock: str, account: dict[str, Any]) -> list[str]:
    """Return lines about a job's dvc.lock beside the one here, and about its machine."""
    ours, theirs = results.stages(Path(results.LOCK).read_text("utf-8")), results.stages(lock)
    same, other, new = [], [], []
    for stage, found in theirs.items():
        known = ours.get(stage)
        inputs = [
            {key: one.get(key) for key in ("cmd", "deps", "params")} for one in (found, known or {})
        ]
        if known is None or inputs[0] != inputs[1]:
            new.append(stage)
        elif known["outs"] == found["outs"]:
            same.append(stage)
        else:
            pairs = zip(known["outs"], found["outs"], strict=True)
            other += [one["path"] for one, made in pairs if one != made]
    lines = [f"{len(same)} stages with the same bytes as dvc.lock here."] if same else []
    lines += [f"Not the same bytes as dvc.lock here: {', '.join(other)}."] if other else []
    lines += [f"New: {', '.join(new)}; `dvc repro` restores what the job made."] if new else []
    here = results.machine()
    if differ := [
        f"{key} {account[key]}, here {value}"
        for key, value in here.items()
        if account[key] != value
    ]:
        lines.append(
            f"The job's machine computes differently ({'; '.join(differ)}): what is restored has "
            "its bytes, not those that this machine would make."
        )
    return lines


def main(arguments: list[str]) -> None:
    """Submit a job and follow it, or look at one, or cancel it."""
    parser = argparse.ArgumentParser(prog="digits train", description=__doc__)
    parser.add_argument("--workspace", choices=("azure", "local"), default="azure")
    parser.add_argument(
        "--compute", help="a cluster's name, or serverless; not as params.yaml says"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--attach", metavar="JOB", help="follow a job, fetch what it made")
    what.add_argument("--cancel", metavar="JOB", help="end a job")
    asked = parser.parse_args(arguments)
    settings, _ = release.load()
    if asked.compute:
        compute = None if asked.compute == "serverless" else asked.compute
        settings = dataclasses.replace(
            settings, job=dataclasses.replace(settings.job, compute=compute)
        )
    if not (asked.attach or asked.cancel):
        job.commit()
    try:
        workspace = connect(asked.workspace)
        if asked.cancel:
            workspace.client.jobs.begin_cancel(asked.cancel).result()
            print(f"{asked.cancel} is canceled; it left nothing in the cache.")
            return
        name = asked.attach or start(workspace, settings)
        try:
            status, log = job.follow(workspace, name)
        except KeyboardInterrupt:
            again = f"digits train --workspace {asked.workspace}"
            print(f"{name} goes on: `{again} --attach {name}` looks again, --cancel ends it.")
            raise
        finish(workspace, name, status, log)
    except ResourceNotFoundError as error:
        raise DigitsError(
            f"{asked.cancel or asked.workspace}: not found ({error.message})"
        ) from None
    except (HttpResponseError, ServiceRequestError, ServiceResponseError) as error:
        raise DigitsError(explained(error)) from error


def start(workspace: Workspace, settings: release.Params) -> str:
    """Submit the job of this commit; return its name."""
    results.offer(job.RAW, job.remote(workspace))
    with tempfile.TemporaryDirectory() as folder:
        name = job.submit(workspace, job.define(workspace, settings, Path(folder)))
    print(f"{name} is submitted.", flush=True)
    return name
