"""A clone for tests, with emulated `az` and `gh` on its PATH."""

import os
import shutil
from pathlib import Path

import frozen
import pytest
from cloud import Cloud
from conftest import ROOT, Project

from mlops import dvc
from mlops.setup import az


@pytest.fixture(name="cloud")
def a_cloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Cloud:
    """Azure and GitHub with nothing of ours yet; the current folder is a clone with an origin.

    Slow tests start its executables; in others the same code answers in this process.
    """
    clone = Project(tmp_path / "clone")
    shutil.copytree(ROOT / ".github", clone.root / ".github")
    (clone.root / ".dvc").mkdir()
    (clone.root / "params.yaml").write_text(frozen.text(), "utf-8")
    shutil.copyfile(ROOT / ".dvc/config", clone.root / ".dvc/config")
    clone.git("init", "--quiet")
    clone.git("remote", "add", "origin", "git@github.com:octo/digits.git")
    for name in os.environ:
        if name.startswith("AZURE"):
            monkeypatch.delenv(name)
    found = Cloud(tmp_path / "cloud")
    monkeypatch.setenv("PATH", str(found.bin), prepend=os.pathsep)
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(az, "execute", found.run)
    monkeypatch.setattr(dvc, "probe", lambda remote, folder=None: None)  # no account is real
    monkeypatch.chdir(clone.root)
    return found
