"""Run the script of one step of a workflow or of an action by itself."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, environment


def find(workflow: str, job: str, name: str) -> dict[str, Any]:
    """Return the step of a job by its id."""
    text = (ROOT / ".github" / "workflows" / workflow).read_text("utf-8")
    steps = yaml.safe_load(text)["jobs"][job]["steps"]
    return next(step for step in steps if step.get("id") == name)


def action(name: str) -> list[dict[str, Any]]:
    """Return the steps of a composite action of this repository."""
    text = (ROOT / ".github" / "actions" / name / "action.yml").read_text("utf-8")
    return yaml.safe_load(text)["runs"]["steps"]


def run(
    step: dict[str, Any], folder: Path, temp: Path | None = None, **env: str
) -> tuple[str, str]:
    """Run a step's script in a folder, as GitHub's shell does; return what it printed, its outputs.

    `bash -e`, and with `shell: bash` pipefail as well: docs.github.com, "Workflow syntax", shell.
    """
    pipefail = ["-o", "pipefail"] if "shell" in step else []
    temp = temp or folder
    files = {name: temp / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    given = {"RUNNER_TEMP": str(temp), **{name: str(path) for name, path in files.items()}}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", *pipefail, "-c", step["run"]],
        cwd=folder,
        env=environment() | {"GITHUB_JOB": ""} | dict(os.environ) | given | env,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr, files["GITHUB_OUTPUT"].read_text()
