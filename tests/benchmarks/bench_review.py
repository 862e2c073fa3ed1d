"""Measure the time from a push to the report: `make bench-review`, `--record` for BENCHMARKS.md.

A clone of this commit is reviewed by the real workflow files, which act runs on this machine; the
cache has what main has made. For each change: the seconds of `dvc repro` in a clone, those from the
push to the comment on the pull request, and the difference. GitHub adds the wait for a machine and
the installation of the packages.
"""

import argparse
import hashlib
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from conftest import ROOT, Project
from loopback import GitHub
from records import Pull, Run

from benchmarks.record import Goal, finish
from core.errors import DigitsError
from mlops import git

MORE_SECONDS, README_SECONDS = 90, 60
CHANGES = {  # file, what is replaced there, and by what
    "README": ("README.md", r"\A", "A word.\n\n"),
    "evaluate": ("params.yaml", r"^( *mistakes: )\d+", r"\g<1>30"),
    "train": ("params.yaml", r"^(epochs: )\d+", r"\g<1>2"),
}


class Timed(GitHub):
    """A GitHub that knows how long each run of a workflow took."""

    def __init__(self, folder: Path) -> None:
        """Make it in a folder."""
        super().__init__(folder)
        self.took: dict[str, float] = {}  # of the first run of a workflow

    def act(self, workflow: str, *more: Any) -> Run:
        """Run a workflow file."""
        start = time.perf_counter()
        run = super().act(workflow, *more)
        self.took.setdefault(workflow, time.perf_counter() - start)
        return run


def warm(project: Project, github: GitHub) -> None:
    """Fill the caches of main as deploy.yml does, with what this clone has."""
    place = github.caches / "refs-heads-main" / "dvc-1" / ".dvc" / "cache"
    project.dvc("remote", "add", "--local", "--quiet", "warm", str(place))
    project.dvc("push", "--quiet", "--remote", "warm")
    for name in project.git("ls-files", "data").splitlines():  # small tables, which git keeps
        content = (project.root / name).read_bytes()
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        path = place / "files" / "md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def cloned(source: Path, target: Path) -> Project:
    """Return a clone whose packages are this project's."""
    project = Project(source).clone(target)
    for name in (".venv", "node_modules"):
        (project.root / name).symlink_to(ROOT / name)
    return project


def changed(project: Project, name: str) -> None:
    """Make a change."""
    file, pattern, replacement = CHANGES[name]
    path = project.root / file
    text, count = re.subn(pattern, replacement, path.read_text("utf-8"), flags=re.M)
    if count != 1:
        raise DigitsError(f"{file}: expected one line {pattern}, found {count}")
    path.write_text(text, "utf-8", newline="\n")


def measure(github: Timed, main: Project, name: str, number: int) -> tuple[float, float]:
    """Return the seconds of `dvc repro` for a change, and those from its push to its comment."""
    changed(main, name)
    start = time.perf_counter()
    main.dvc("repro")
    alone = time.perf_counter() - start
    main.git("checkout", "--quiet", "--", ".")
    main.dvc("checkout", "--quiet", "--force")
    work = main.clone(github.folder / name)
    work.git("checkout", "--quiet", "-b", name)
    changed(work, name)
    work.git("commit", "--quiet", "--all", "--message", name)
    github.took.clear()
    pull = Pull(number, name)
    github.push(work.root, pull)
    review, *_ = github.settle()
    if not pull.comments or "No report" in pull.comments[0]["body"]:
        raise DigitsError(f"{name}: no report: {review.log[-2000:]}")
    return alone, github.took["pull-request.yml"] + github.took["comment.yml"]


def main(arguments: list[str]) -> None:
    """Measure each change once."""
    parser = argparse.ArgumentParser(prog="make bench-review", description=__doc__)
    parser.add_argument("--change", choices=CHANGES, action="append", help="(default: all)")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(arguments)
    if found := git.changed("."):  # the packages are those of the working tree
        raise DigitsError(f"{found[0]}: not committed. Commit it: the commit is what is measured")
    here, rows, goals = Project(Path.cwd()), list[list[str]](), list[Goal]()
    with tempfile.TemporaryDirectory() as folder, Timed(Path(folder, "github")) as github:
        clone = cloned(here.root, Path(folder, "main"))
        clone.git("push", "--quiet", str(github.origin), "HEAD:refs/heads/main")
        local = clone.root / ".dvc" / "config.local"
        local.write_text(f"[cache]\n    dir = {here.dvc('cache', 'dir').strip()}\n")
        clone.dvc("checkout", "--quiet")
        warm(clone, github)
        local.write_text("")  # no run cache: what a change makes is made
        (clone.root / ".dvc" / "cache").mkdir(exist_ok=True)
        stored = github.caches / "refs-heads-main" / "dvc-1" / ".dvc" / "cache"
        shutil.copytree(stored, clone.root / ".dvc" / "cache", dirs_exist_ok=True)
        for number, name in enumerate(given.change or CHANGES, 1):
            alone, report = measure(github, clone, name, number)
            difference = report - alone
            rows.append([name, *(f"{seconds:.0f}" for seconds in (alone, report, difference))])
            if name == "README":
                goals.append(Goal("seconds for a README", report, "at most", README_SECONDS))
            else:
                goals.append(Goal(f"more seconds: {name}", difference, "at most", MORE_SECONDS))
    head = ["change", "dvc repro, s", "push to report, s", "difference, s"]
    finish("bench_review", [head, *rows], goals, "measured once", given.record)
