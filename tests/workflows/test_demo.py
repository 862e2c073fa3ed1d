"""`make demo`, which is itself the short form of the whole story, from training to retraining."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Project, environment
from demo import back
from loopback import needs_bash

LOOK = "| digits-x: {}; 4,320 requests, accuracy by labels {}\n"


def files(root: Path) -> list[str]:
    """Return what differs from the commit or is ignored, without what tests and tools leave."""
    listing = Project(root).git("status", "--porcelain", "--ignored", "--untracked-files=all")
    own = re.compile(r"!! (\.venv|node_modules|\.dvc/tmp)/|!! .*(__pycache__|_cache)/")
    return [line for line in listing.splitlines() if not own.match(line)]


def test_accuracy_that_is_back_is_told() -> None:
    before = LOOK.format("drift since 2026-01-12T02:00:00Z", "84.10%")
    told = back(before, LOOK.format("no drift", "98.64%"))
    assert told == "accuracy by labels: 84.10% with the drift, 98.64% now"


@pytest.mark.parametrize("after", ["84.20%", "71.00%", "not known"])
def test_accuracy_that_is_not_back_stops_the_demo(after: str) -> None:
    with pytest.raises(AssertionError, match=r"it is not back|no accuracy by labels"):
        back(LOOK.format("drift since 2026", "84.10%"), LOOK.format("no drift", after))


def test_ignored_files_that_are_left_are_seen(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.git("init", "--quiet")
    (tmp_path / ".gitignore").write_text("/review/\n__pycache__/\n")
    before = files(tmp_path)
    for name in ("review/report.md", "__pycache__/demo.pyc"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert files(tmp_path) == [*before, "!! review/report.md"]


@needs_bash
@pytest.mark.prove(minutes=9)
def test_the_story_ends_well_and_leaves_the_clone_as_it_was(tmp_path: Path) -> None:
    before = files(ROOT)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("demo.py"))],
        cwd=ROOT,
        env=environment() | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "may it be merged? no" in done.stdout
    assert "#101: opened." in done.stdout
    assert "#101: closed." in done.stdout
    assert re.search(r"accuracy by labels: \S+ with the drift, \S+ now", done.stdout)
    assert list(tmp_path.iterdir()) == []
    assert files(ROOT) == before
