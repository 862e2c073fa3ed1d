"""MAKE_IT_YOURS.md: each change is made in a copy of the tree, which stays sound."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Project, copy_tracked, environment

TEXT = (ROOT / ".github" / "MAKE_IT_YOURS.md").read_text("utf-8")
CHANGES = dict(re.findall(r"(?ms)^## \d+\. (.+?)$\n(.*?)(?=^## |\Z)", TEXT))
QUICK = "A stage"  # the one of `make test`


@pytest.fixture(name="copy")
def a_copy(tmp_path: Path) -> Project:
    """A copy of the tree with its own params.yaml, committed."""
    project = Project(tmp_path / "project")
    copy_tracked(project.root)
    (project.root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for name in ("node_modules", ".venv"):
        (project.root / name).symlink_to(ROOT / name)
    (project.root / ".git").mkdir()
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "First version")
    return project


def edit(root: Path, lines: list[str]) -> None:
    """Do what a block `diff` says; the lines to replace stand in the file exactly once."""
    name = lines[0].removeprefix("--- ")
    new = [line[1:] for line in lines[1:] if line.startswith("+") and not line.startswith("+++")]
    if name == "/dev/null":
        path = root / lines[1].removeprefix("+++ ")
        path.write_text("\n".join(new) + "\n", "utf-8")
        return
    old = [line[1:] for line in lines[1:] if line.startswith("-")]
    text = (root / name).read_text("utf-8")
    found = re.findall(f"^{re.escape(chr(10).join(old))}$", text, flags=re.M)
    assert len(found) == 1, f"{name} has {old} {len(found)} times"
    head, tail = re.split(f"^{re.escape(found[0])}$", text, maxsplit=1, flags=re.M)
    (root / name).write_text(head + "\n".join(new) + tail[0 if new else 1 :], "utf-8")


def test_ten_changes_are_described() -> None:
    assert len(CHANGES) == 10


@pytest.mark.shipped
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name == QUICK else pytest.mark.prove(minutes=1)
        )
        for name in CHANGES
    ],
)
def test_a_change_leaves_the_project_sound(change: str, copy: Project) -> None:
    env = environment() | {"PYTHONPATH": str(copy.root / "src")}
    for kind, block in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", CHANGES[change]):
        lines = block.splitlines()
        if kind == "diff":
            edit(copy.root, lines)
            continue
        for line in lines:
            done = subprocess.run(
                ["bash", "-c", line.replace("pytest ", "pytest -q -p no:xdist ", 1)],
                cwd=copy.root,
                env=env,
                capture_output=True,
                text=True,
                timeout=600,
            )
            said = f"{line}\n{done.stdout}\n{done.stderr}"
            assert (done.returncode != 0) == line.endswith("# fails"), said
            assert "Traceback" not in done.stderr, said
            if line.startswith("digits check"):
                assert 'Section("size", "digits.pipeline.size:Params"),' in said
    copy.run("ruff", "check", ".")
    copy.run("ruff", "format", "--check", ".")
    if change != QUICK:  # which is to be quick: it takes half a minute
        copy.run("mypy")
