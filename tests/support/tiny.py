"""A repository whose pipeline takes a second, reviewed as the job `review` does it.

Its stages and tables have the names of the real ones; DVC and `digits review` are real. The
accuracy of the "model" depends on `epochs`, in a way that only stage train knows.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project

from core.errors import DigitsError
from mlops import cli

STAGE = """
import json, pathlib, sys, yaml
DATA = pathlib.Path("data")
def write(name, text):
    (DATA / name).parent.mkdir(parents=True, exist_ok=True)
    (DATA / name).write_text(text)
stage, params = sys.argv[1], yaml.safe_load(open("params.yaml"))
if stage == "prepare":
    raw = (DATA / "raw.csv").read_text()
    labelled = sorted(path.read_text() for path in (DATA / "labelled").glob("*.csv"))
    write("prepared/training.npz", raw + "".join(labelled))
    write("prepared/test.npz", raw[:4])
elif stage == "train":
    trained = pathlib.Path("trained")
    trained.write_text(trained.read_text() + "x" if trained.exists() else "x")
    write("model/model.keras", str(params["epochs"]))
else:
    accuracy = {0: 0.5, 1: 0.99, 2: 0.995}[int((DATA / "model/model.keras").read_text())]
    low, high = accuracy - 0.001, accuracy + 0.001
    row = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    write("evaluation/metrics.json", json.dumps({"mnist": row}))
"""
PIPELINE = """
stages:
  prepare:
    cmd: python stage.py prepare
    deps: [data/raw.csv, data/labelled]
    outs: [data/prepared/training.npz, data/prepared/test.npz]
  train:
    cmd: python stage.py train
    params: [epochs]
    deps: [data/prepared/training.npz]
    outs: [data/model/model.keras]
  evaluate:
    cmd: python stage.py evaluate
    deps: [data/model/model.keras, data/prepared/test.npz]
    metrics: [data/evaluation/metrics.json: {cache: false}]
"""
PARAMS = """
epochs: 1
classes: ["0", "1"]
review:
  retrain: {propose: true, set: {}}
  gate:
    mnist:
      accuracy: {direction: higher, limit: 0.9, tolerance: 0.003}
"""
METRICS = "data/evaluation/metrics.json"
REMOTES = ("main", "review")


def md5(text: str) -> str:
    """Return what DVC names a file by."""
    return hashlib.md5(text.encode()).hexdigest()


@dataclass(frozen=True)
class Tiny(Project):
    """The repository of an author, on a branch whose base is `origin/main`."""

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text, "utf-8")

    def lock(self) -> dict[str, Any]:
        """Return dvc.lock."""
        return yaml.safe_load((self.root / "dvc.lock").read_text("utf-8"))

    def forge(self, lock: dict[str, Any]) -> None:
        """Write dvc.lock by hand."""
        self.write("dvc.lock", yaml.safe_dump(lock, sort_keys=False))

    def forge_listing(self, name: str, text: str, relpath: str) -> None:
        """Track a folder whose listing, in DVC's cache, places a text elsewhere."""
        self.write(f"{name}/x.csv", text)
        self.dvc("add", "--quiet", name)
        cache = self.root / ".dvc" / "cache" / "files" / "md5"
        listing = json.dumps([{"md5": md5(text), "relpath": relpath}])
        digest = md5(listing)
        (cache / digest[:2]).mkdir(exist_ok=True)
        (cache / digest[:2] / f"{digest[2:]}.dir").write_text(listing)
        place = f"path: {Path(name).name}, md5: {digest}.dir, size: {len(text)}"
        self.write(f"{name}.dvc", f"outs:\n- {{{place}, nfiles: 1, hash: md5}}\n")

    def commit(self, message: str) -> None:
        """Commit everything."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def on_main(self, message: str) -> None:
        """Commit everything, as a commit of main from which the branch then starts."""
        self.commit(message)
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")


@dataclass(frozen=True)
class Reviewed:
    """How the job `review` ended."""

    passed: bool
    error: str  # what the command said, else empty
    stale: str  # what differs from what is committed, as the job hands it over
    report: dict[str, Any]  # report.json
    text: str  # report.md
    trained: bool


def make(root: Path) -> Tiny:
    """Return the repository, reproduced and committed, with a branch checked out."""
    tiny = Tiny(root)
    for name, text in {
        "stage.py": STAGE,
        "dvc.yaml": PIPELINE,
        "params.yaml": PARAMS,
        "data/raw.csv": "1,2,3\n",
        "data/labelled/.gitignore": "",
        ".gitignore": "/review/\n/trained\n__pycache__/\n",
    }.items():
        tiny.write(name, text)
    tiny.git("init", "--quiet", "--initial-branch", "main")
    tiny.dvc("init", "--quiet")
    tiny.dvc("repro", "--quiet")
    tiny.on_main("main")
    tiny.git("switch", "--quiet", "--create", "change")
    return tiny


def review(author: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reviewed:
    """Do what the job `review` does: a fresh clone, main's objects, reproduce and judge."""
    head = author.git("rev-parse", "HEAD").strip()
    job = Tiny(folder)
    author.git("clone", "--quiet", str(author.root), str(folder))
    job.git("fetch", "--quiet", str(author.root), "+refs/remotes/origin/*:refs/remotes/origin/*")
    job.git("checkout", "--quiet", "--detach", head)
    remotes = [f"['remote \"{name}\"']\n    url = {author.root}/.dvc/cache\n" for name in REMOTES]
    job.write(".dvc/config.local", "".join(remotes))
    monkeypatch.chdir(folder)
    error = ""
    try:
        cli.call(
            "review",
            "--repro",
            "--gate",
            "--base",
            "origin/main",
            "--out",
            "review",
            "--restore",
            "main",
        )
    except DigitsError as failure:
        error = str(failure)
    stale = job.git("status", "--porcelain", "--untracked-files=all", "--", "dvc.lock", "data")
    report = folder / "review" / "report.json"
    return Reviewed(
        passed=not error and not stale,
        error=error,
        stale=stale,
        report=json.loads(report.read_text("utf-8")) if report.exists() else {},
        text=report.with_suffix(".md").read_text("utf-8") if report.exists() else "",
        trained=(folder / "trained").exists(),
    )
