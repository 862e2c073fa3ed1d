"""Another model in the place of `digits`, with core and mlops as they are."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import steps
from conftest import ROOT, Project, copy_tracked
from light import DIGITS, Deployable, Emulator
from loopback import needs_bash

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def digits(project: Project, *arguments: str, code: int = 0, workspace: str = "") -> str:
    """Run `digits` with the project's own src."""
    source = str(project.root / "src")
    env = {"PYTHONPATH": source, "DIGITS_LOCAL_WORKSPACE": workspace, "PYTHONWARNINGS": "ignore"}
    return project.run(*DIGITS, *arguments, code=code, **env)


def commit(project: Project, message: str) -> None:
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", message)


@pytest.fixture(scope="module", name="upstream")
def an_upstream(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository with this one's files as its first commit."""
    project = Project(tmp_path_factory.mktemp("upstream") / "project")
    copy_tracked(project.root)
    project.git("init", "--quiet", "--initial-branch", "main")
    commit(project, "First version")
    return project


@pytest.fixture(scope="module", name="reproduced_irises")
def a_reproduced_project(upstream: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose model is the one of this folder, reproduced and committed."""
    own = upstream.clone(tmp_path_factory.mktemp("own") / "project")
    for name in ("src/digits", "data"):
        shutil.rmtree(own.root / name)
    shutil.copytree(
        HERE / "wing", own.root / "src" / "digits", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copyfile(HERE / "stages.yaml", own.root / "dvc.yaml")
    (own.root / "dvc.lock").unlink()
    (own.root / "README.md").write_text("# Irises\n")
    values = (own.root / "params.yaml").read_text("utf-8")
    azure = re.search(r"^azure:.*?(?=^\S)", values, re.M | re.S)
    assert azure
    section = azure[0]
    for name, value in {"step_seconds": "0.0", "lease_seconds": "15", "collections": "[]"}.items():
        section, count = re.subn(rf"(?m)^  {name}: [^#\n]*", f"  {name}: {value} ", section)
        assert count == 1, name
    section = section.replace("latency_seconds: 2.0", "latency_seconds: 20.0")
    (own.root / "params.yaml").write_text(
        section + (HERE / "params.yaml").read_text("utf-8"), "utf-8"
    )
    own.git("remote", "remove", "origin")
    own.dvc("repro", "--quiet")
    commit(own, "Irises in place of digits")
    return own


@pytest.fixture(name="irises")
def a_project(reproduced_irises: Project, tmp_path: Path) -> Project:
    """A copy of it of one's own."""
    return reproduced_irises.copy(tmp_path / "irises")


def change(project: Project, depth: int) -> None:
    """Train another tree and commit what it makes."""
    path = project.root / "params.yaml"
    text = re.sub(r"train: {depth: \d+}", f"train: {{depth: {depth}}}", path.read_text("utf-8"))
    path.write_text(text, "utf-8")
    project.dvc("repro", "--quiet")
    commit(project, f"Depth {depth}")


def test_a_review_judges_another_model(irises: Project) -> None:
    irises.git("switch", "--quiet", "--create", "change")
    change(irises, depth=1)
    report = digits(irises, "review", "--gate", code=1)
    assert "iris accuracy 0.66 is below its limit 0.9" in report.splitlines()[0]
    assert "| train.depth | 3 | 1 |" in report
    assert "⚠️" not in report


@pytest.mark.prove
def test_another_model_is_deployed_rolled_back_and_destroyed(
    irises: Project, emulator: Emulator
) -> None:
    (irises.root / ".emulator").symlink_to(emulator.folder)
    (irises.root / ".git" / "info" / "exclude").write_text(".emulator\n")
    place = Deployable(irises.root, "irises", emulator.folder)

    def deploy(*arguments: str, code: int = 0) -> str:
        command = ["deploy", *arguments, "--workspace", "local"]
        return digits(irises, *command, code=code, workspace="irises")

    try:
        deploy("apply")
        (first,) = place.serving(emulator)["traffic"]
        change(irises, depth=4)
        deploy("apply")
        (second,) = place.serving(emulator)["traffic"]
        assert second != first
        change(irises, depth=1)
        assert "the gate failed: iris accuracy 0.66 is below" in deploy("apply", code=1)
        package = irises.root / "data" / "package"
        for path in package.iterdir():  # a rollback needs the requests alone
            if path.name != "smoke.jsonl":
                path.unlink()
        deploy("rollback")
        assert list(place.serving(emulator)["traffic"]) == [first]
    finally:
        deploy("destroy", "--wait", "--yes")
    assert emulator.call("GET", place.endpoint)["value"] == []


@pytest.mark.prove
def test_a_later_upstream_is_merged_and_the_model_kept(
    upstream: Project, irises: Project, tmp_path: Path
) -> None:
    later = upstream.copy(tmp_path / "upstream")
    later.edit("params.yaml", "instance_count: 1", "instance_count: 2")
    for name in ("src/mlops/git.py", "src/digits/__init__.py", "dvc.yaml", "README.md", "dvc.lock"):
        with (later.root / name).open("a", encoding="utf-8") as file:
            file.write("# later\n")
    (later.root / "src" / "digits" / "later.py").write_text('"""A new module."""\n')
    (later.root / "data" / "evaluation" / "metrics.json").write_text("{}\n")
    commit(later, "A later version")
    kept = irises.git("ls-tree", "-r", "HEAD", "src/digits", "data", "dvc.yaml", "dvc.lock")
    irises.git("remote", "add", "upstream", str(later.root))
    irises.git("fetch", "--quiet", "upstream")
    text = (irises.root / ".github" / "MAKE_IT_YOURS.md").read_text("utf-8")
    _, _, later_versions = text.partition("## Later versions of this repository\n")
    commands = re.findall(r"^    git (.+)$", later_versions, re.M)[2:]  # after remote and fetch
    assert len(commands) == 3
    for command, code in zip(commands, (1, 0, 0), strict=True):
        irises.run("git", *command.split(), code=code)
    (later.root / "src" / "digits" / "again.py").write_text('"""Conflicts with nothing."""\n')
    commit(later, "A module more")
    irises.git("fetch", "--quiet", "upstream")
    for command in commands:
        irises.run("git", *command.split())
    assert irises.git("status", "--porcelain") == ""
    assert irises.git("rev-list", "--count", "HEAD..upstream/main").strip() == "0"
    now = irises.git("ls-tree", "-r", "HEAD", "src/digits", "data", "dvc.yaml", "dvc.lock")
    assert now == kept
    assert (irises.root / "README.md").read_text() == "# Irises\n"
    assert (irises.root / "src" / "mlops" / "git.py").read_text("utf-8").endswith("# later\n")
    assert "instance_count: 2" in (irises.root / "params.yaml").read_text("utf-8")
    report = digits(irises, "review", "--gate")
    assert "gate passed" in report.splitlines()[0]
    assert "| **iris accuracy** | 0.94 | 0.94 | 0 | no difference |" in report
    assert "⚠️" not in report


MODEL = """\
import json, sys
import joblib, yaml
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier

lengths, labels = load_iris(return_X_y=True)
depth = yaml.safe_load(open("params.yaml"))["train"]["depth"]
if sys.argv[1] == "train":
    tree = DecisionTreeClassifier(max_depth=depth, random_state=1)
    tree.fit(lengths[::3], labels[::3])
    joblib.dump(tree, "tree.joblib")
else:
    right = joblib.load("tree.joblib").predict(lengths[1::3]) == labels[1::3]
    json.dump({"accuracy": float(right.mean())}, open("scores.json", "w"))
"""
OWN = {
    "model.py": MODEL,
    "params.yaml": """\
train: {depth: 3}
review:
  gate:
    scores:
      accuracy: {direction: higher, limit: 0.9, tolerance: 0.02}
  retrain: {propose: false, set: {}}
""",
    "dvc.yaml": """\
stages:
  train: {cmd: python model.py train, params: [train], deps: [model.py], outs: [tree.joblib]}
  evaluate:
    cmd: python model.py evaluate
    deps: [model.py, tree.joblib]
    metrics: [scores.json: {cache: false}]
""",
}


@needs_bash
@pytest.mark.prove
def test_the_action_reviews_a_repository_that_has_nothing_of_this_one(tmp_path: Path) -> None:
    """The same tree on irises; its metrics stand where its dvc.yaml says, without a source."""
    own = Project(tmp_path / "own")
    own.root.mkdir()
    for name, text in OWN.items():
        (own.root / name).write_text(text, "utf-8")
    own.git("init", "--quiet", "--initial-branch", "main")
    own.dvc("init", "--quiet")
    own.dvc("repro", "--quiet")
    commit(own, "Irises")
    own.git("update-ref", "refs/remotes/origin/main", "HEAD")
    own.git("switch", "--quiet", "--create", "change")
    python = tmp_path / "review" / "bin" / "python"  # as the action installs it
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    step = next(step for step in steps.action("review") if "BASE" in step.get("env", {}))
    env = {"BASE": "origin/main", "PYTHONPATH": str(ROOT / "src")}
    change(own, depth=2)
    steps.run(step, own.root, tmp_path, **env)
    summary = (tmp_path / "github_step_summary").read_text("utf-8")
    assert "gate passed" in summary.splitlines()[0]
    assert "| train.depth | 3 | 2 |" in summary and "| **scores accuracy** |" in summary
    assert (own.root / "review" / "report.json").exists()
    change(own, depth=1)
    with pytest.raises(AssertionError, match=r"scores accuracy 0\.66 is below its limit 0\.9"):
        steps.run(step, own.root, tmp_path, **env)


def test_core_and_mlops_are_this_repositorys_own(irises: Project) -> None:
    for wing in ("core", "mlops"):
        for path in (ROOT / "src" / wing).rglob("*.py"):
            name = path.relative_to(ROOT)
            assert (irises.root / name).read_bytes() == path.read_bytes(), name
