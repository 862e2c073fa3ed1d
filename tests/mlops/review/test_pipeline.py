"""`digits review` and `digits merge` with DVC, on the small project."""

import json
from pathlib import Path

import pytest
from conftest import NAME, Project

pytestmark = pytest.mark.slow


def digits(project: Project, *arguments: str, code: int = 0) -> str:
    return project.run(NAME, *arguments, code=code)


def relaxed(project: Project) -> None:
    """Let the small model pass the gate, as a commit of main."""
    project.edit("params.yaml", "limit: 0.99,", "limit: 0.0,")
    project.edit("params.yaml", "limit: 0.005,", "limit: 1.0,")
    project.git("commit", "--quiet", "--all", "--message", "A gate for a small model")


def test_a_change_is_reproduced_and_told(project: Project) -> None:
    relaxed(project)
    project.git("switch", "--quiet", "--create", "change")
    project.edit("params.yaml", "mistakes: 60", "mistakes: 30")
    assert "dvc.lock is outdated (evaluate)" in digits(project, "review")
    digits(project, "review", "--repro", "--gate", "--out", "review")
    text = (project.root / "review" / "report.md").read_text("utf-8")
    assert text.startswith("## No difference · ✅ gate passed")
    assert "| evaluate.mistakes | 60 | 30 |" in text
    assert "| evaluate | ran | evaluate.mistakes |" in text
    assert "| train | unchanged |" in text
    assert "the committed files differ from what the pipeline computes (dvc.lock" in text
    values = json.loads((project.root / "review" / "report.json").read_text("utf-8"))
    assert values["gate"] == {"passed": True, "reasons": []}
    ran = {stage["name"]: stage["what"] for stage in values["stages"]}
    assert ran["evaluate"] == "ran"
    project.git("commit", "--quiet", "--all", "--message", "Fewer mistakes")
    project.git("switch", "--quiet", "main")
    assert "| evaluate | restored |" in digits(project, "review", "--repro", "--base", "change")


@pytest.mark.prove
def test_a_stage_that_fails_is_told(project: Project) -> None:
    project.edit("params.yaml", "mistakes: 60", "mistakes: none")
    told = digits(project, "review", "--repro", "--out", "review", code=1)
    assert "dvc repro failed at stage evaluate" in told
    text = (project.root / "review" / "report.md").read_text("utf-8")
    assert "gate failed: 'dvc repro' failed at stage evaluate" in text.splitlines()[0]
    assert "evaluate.mistakes is 'none'" in text


def test_missing_files_are_told(project: Project) -> None:
    (project.root / "data" / "model" / "model.keras").unlink()
    told = digits(project, "review")
    assert "here: data/model/model.keras; run 'dvc pull'" in told
    assert "dvc.lock is not what" not in told


def test_a_fresh_clone_is_not_stale(project: Project, tmp_path: Path) -> None:
    """Nothing is pulled: of a folder that stages depend on there is its .gitignore alone."""
    told = digits(project.clone(tmp_path / "fresh"), "review")
    assert "run 'dvc pull'" in told
    assert "dvc.lock is not what" not in told


@pytest.mark.prove
def test_a_conflict_is_merged_without_training(project: Project) -> None:
    project.edit("params.yaml", "mistakes: 60", "mistakes: 30")
    project.dvc("repro")
    project.git("commit", "--quiet", "--all", "--message", "On main")
    project.git("switch", "--quiet", "--create", "other", "HEAD^")
    project.edit("params.yaml", "label_smoothing: 0.1", "label_smoothing: 0.2")
    project.dvc("repro")
    project.git("commit", "--quiet", "--all", "--message", "Another training")
    project.run("git", "merge", "--quiet", "main", code=1)
    told = digits(project, "review")
    assert "'digits merge'" in told and "gate failed" in told.splitlines()[0]
    project.git("merge", "--abort")
    digits(project, "merge", "main")
    assert project.stages_run(project.dvc("repro")) == ["evaluate"]
    project.git("commit", "--quiet", "--all", "--message", "Reproduced")
    assert json.loads(project.dvc("status", "--json")) == {}


def test_git_never_mixes_two_locks(project: Project) -> None:
    """Each side changes a stage that the other leaves alone: a mixture that nobody computed."""
    whole = (project.root / "dvc.lock").read_text("utf-8")
    sides = {"mistakes": ("mistakes: 60", "mistakes: 30"), "python": ("'3.11'", "'3.12'")}
    for branch, (old, new) in sides.items():
        project.git("switch", "--quiet", "--create", branch, "main")
        assert old in whole
        (project.root / "dvc.lock").write_text(whole.replace(old, new), "utf-8", newline="\n")
        project.git("commit", "--quiet", "--all", "--message", branch)
    project.run("git", "merge", "--quiet", "mistakes", code=1)
    assert project.git("diff", "--name-only", "--diff-filter=U") == "dvc.lock\n"
