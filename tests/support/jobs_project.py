"""A project whose pipeline takes seconds, for jobs to run."""

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frozen
import pytest
import yaml
from azure.storage.blob import BlobServiceClient
from conftest import ROOT, Project, environment
from light import DIGITS, Emulator

STAGE = """
import json, os, sys, time
from pathlib import Path
import yaml

params = yaml.safe_load(Path("params.yaml").read_text())
if params["train"]["batch_size"] == 13:
    sys.exit("13 is no size of a batch")
print("training on", Path("data/pool.txt").read_text().strip())
os.write(1, b"the first step\\n")
while Path("HOLD").exists():
    time.sleep(0.05)
Path("data/model").mkdir(parents=True, exist_ok=True)
Path("data/model/model.txt").write_text(f"weights {params['train']} HOLD")
Path("data/images").mkdir(exist_ok=True)
Path("data/images/one.txt").write_text(f"an image, {params['train']}")
accuracy = 1 - params["train"]["batch_size"] / 1000
Path("data/evaluation").mkdir(parents=True, exist_ok=True)
Path("data/evaluation/metrics.json").write_text(json.dumps({"mnist": {"accuracy": accuracy}}))
"""
PIPELINE: dict[str, Any] = {
    "mnist": {
        "cmd": "python -c \"open('data/pool.txt', 'w').write('ten digits')\"",
        "deps": ["package-lock.json"],
        "outs": ["data/pool.txt"],
    },
    "foreign": {
        "cmd": "python -c \"open('data/foreign.txt', 'w').write('no digits')\"",
        "deps": ["package-lock.json"],
        "outs": ["data/foreign.txt"],
    },
    "train": {
        "cmd": "python stage.py",
        "deps": ["data/pool.txt", "stage.py"],
        "params": ["train"],
        "outs": ["data/model/model.txt", "data/images"],
        "metrics": [{"data/evaluation/metrics.json": {"cache": False}}],
    },
}


@dataclass(frozen=True)
class Trainable(Project):
    """A project with an origin, and a workspace of its own."""

    workspace: str = ""

    @property
    def hold(self) -> Path:
        """A file which, while it is there, keeps stage train from ending."""
        return self.root.parent / "hold"

    def published(self, emulator: Emulator) -> set[bytes]:
        """Return the models in the container `review` that jobs of this project made.

        Those of batches of 64 are not counted: the project made them before. Fails when the
        container has a run cache.
        """
        url = f"{emulator.address['blobs']}/devstoreaccount1"
        with BlobServiceClient(url, credential=emulator.address["blob_key"]) as service:
            container = service.get_container_client("review")
            names = list(container.list_blob_names())
            assert not [name for name in names if name.startswith("runs/")]
            found = [container.download_blob(name).readall() for name in names]
        ours = [text for text in found if str(self.hold).encode() in text and b"weights" in text]
        return {text for text in ours if b"'batch_size': 64," not in text}

    @property
    def settings(self) -> dict[str, str]:
        """What a command must find in its environment."""
        return {"DIGITS_LOCAL_WORKSPACE": self.workspace, "PYTHONPATH": str(ROOT / "src")}

    def digits(self, *arguments: str, code: int = 0) -> str:
        """Run a command on the emulator; return what it printed."""
        return self.run(*DIGITS, *arguments, "--workspace", "local", code=code, **self.settings)

    def begun(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command on the emulator."""
        return subprocess.Popen(
            [*DIGITS, *arguments, "--workspace", "local"],
            cwd=self.root,
            env=environment() | self.settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def commit(self, batch_size: int, push: bool = True) -> None:
        """Set a param, commit, push."""
        path = self.root / "params.yaml"
        values = path.read_text("utf-8").splitlines()
        (number,) = (i for i, line in enumerate(values) if line.startswith("  batch_size:"))
        values[number] = f"  batch_size: {batch_size}"
        path.write_text("\n".join(values) + "\n", "utf-8")
        self.git("commit", "--quiet", "--all", "--allow-empty", "--message", f"Batch {batch_size}")
        if push:
            self.git("push", "--quiet", "origin", "main")


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what a process prints until `text`; return that line."""
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended without {text!r}")


@pytest.fixture(name="trainable")
def a_trainable(emulator: Emulator, tmp_path: Path) -> Iterator[Trainable]:
    """A project of one's own, reproduced once, pushed to an origin."""
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    project = Trainable(root, f"w{uuid.uuid4().hex[:8]}")
    (root / "params.yaml").write_text(frozen.text(), "utf-8")
    for name in ("requirements-dev.txt", "package-lock.json", ".dvc/config"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / ".gitignore").write_text("/.emulator\n/.deploy\n*.partial\n")
    (root / ".emulator").symlink_to(emulator.folder)
    (root / "stage.py").write_text(STAGE.replace("HOLD", str(project.hold)))
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": PIPELINE}, sort_keys=False))
    project.git("init", "--quiet", "--initial-branch", "main")
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".dvcignore").write_text("")
    project.dvc("repro", "--quiet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "A small project")
    project.git("init", "--quiet", "--bare", str(tmp_path / "origin"))
    project.git("remote", "add", "origin", str(tmp_path / "origin"))
    project.git("push", "--quiet", "origin", "main")
    yield project
