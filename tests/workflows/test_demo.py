"""`make demo`, which is itself the short form of the whole story, from training to retraining."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Project, environment
from loopback import needs_bash


@needs_bash
@pytest.mark.prove
def test_the_story_ends_well_and_leaves_the_clone_as_it_was(tmp_path: Path) -> None:
    before = Project(ROOT).git("status", "--porcelain")
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
    assert list(tmp_path.iterdir()) == []
    assert Project(ROOT).git("status", "--porcelain") == before
