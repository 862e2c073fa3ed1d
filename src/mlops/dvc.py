"""The program DVC: run a command, and what `dvc repro` and `dvc status` report of each stage."""

import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from core.errors import DigitsError

EVENTS = {
    re.compile(r"Running stage '(.+)':\s*"): "ran",
    re.compile(r"Stage '(.+)' is cached - skipping run, checking out outputs\s*"): "restored",
    re.compile(r"Stage '(.+)' didn't change, skipping\s*"): "unchanged",
}
LAST_LINES = 30
ABSENT = {"deleted", "not in cache"}  # as `dvc status` says it


@dataclass
class Run:
    """How `dvc repro` went."""

    stages: dict[str, tuple[str, float]] = field(default_factory=dict)  # what happened, seconds
    failed: str = ""  # the stage, or "the pipeline"; empty when all went well
    last_lines: list[str] = field(default_factory=list)


def command(*arguments: str) -> list[str]:
    """Return the command line of the DVC that is installed beside this Python."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment() -> dict[str, str]:
    """Return an environment in which stages find this Python."""
    folder = str(Path(sys.executable).parent)
    return os.environ | {"PATH": folder + os.pathsep + os.environ.get("PATH", "")}


def run(
    *arguments: str, folder: Path | None = None, fix: str = "run this again", **env: str
) -> str:
    """Run DVC in a folder; return its standard output.

    Waits for another DVC that holds the lock. Raises DigitsError with DVC's own error, and with
    `fix`, when it fails.
    """
    done = subprocess.run(
        command("--wait-for-lock", *arguments),
        cwd=folder,
        env=environment() | env,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        _, _, error = done.stderr.partition("ERROR: ")
        reason = " ".join((error or done.stderr or done.stdout).split())[:500]
        raise DigitsError(f"dvc {arguments[0]}: {reason or done.returncode}; {fix}")
    return done.stdout


def repro(*options: str) -> Run:
    """Run `dvc repro`, printing what it prints."""
    run, last = Run(), deque[str](maxlen=LAST_LINES)
    name, what, since = "", "", time.monotonic()
    process = subprocess.Popen(
        command("repro", *options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout
    with process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line.rstrip())
            found = [(match[1], kind) for e, kind in EVENTS.items() if (match := e.fullmatch(line))]
            if found:
                if name:
                    run.stages[name] = (what, time.monotonic() - since)
                (name, what), since = found[0], time.monotonic()
    if name:
        run.stages[name] = (what, time.monotonic() - since)
    if process.returncode:
        stage_name = re.search(r"failed to reproduce '([^'\n]+)'", "\n".join(last))
        run.failed = f"stage {stage_name[1]}" if stage_name else "the pipeline"
        run.last_lines = [line for line in last if line.strip()]
    return run


def status(cached: set[str]) -> tuple[list[str], list[str]]:
    """Return what makes dvc.lock stale, and which files are not here as it has them.

    `cached` are the outputs that DVC keeps: another one here, or a folder of them, says nothing
    against dvc.lock.
    """
    kept = {*cached, *(str(folder) for path in cached for folder in PurePosixPath(path).parents)}
    try:
        status = json.loads(run("status", "--json"))
    except (DigitsError, ValueError) as error:
        return [f"'dvc status' failed: {error}"], []
    stale: list[str] = []
    missing: list[str] = []
    for stage, entries in status.items():
        for entry in entries:
            if not isinstance(entry, dict):
                stale.append(stage)  # "changed command"
                continue
            for kind in ("changed deps", "changed outs"):
                changed = entry.get(kind) or {}
                other = [p for p, how in changed.items() if str(how) in ABSENT or p in kept]
                missing += other  # params are a mapping of their own
                stale += [stage] if len(other) < len(changed) else []
    names, files = ", ".join(dict.fromkeys(stale)), list(dict.fromkeys(missing))
    few = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    fix = "run 'dvc repro', then commit dvc.lock and data"
    return (
        [f"dvc.lock is not what the pipeline would make ({names}): {fix}"] if stale else [],
        [f"missing or of another version here: {few}; run 'dvc pull', or 'dvc repro'"]
        if missing
        else [],
    )


def plots(base: str | None, folder: Path) -> str:
    """Write DVC's plots page into a folder; return what went wrong, empty when nothing did."""
    arguments = ["plots", "diff", base] if base else ["plots", "show"]
    try:
        run(*arguments, "--out", str(folder))
    except DigitsError as error:
        return f"DVC's page of plots was not made: {error}"
    return ""
