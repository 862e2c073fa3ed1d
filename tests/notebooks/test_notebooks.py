"""The notebooks run top to bottom, in a terminal and as .ipynb, and show what they say."""

import ast
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest
import run
from conftest import ROOT, Project, copy_tracked, environment

FOLDER = "src/notebooks"
NOTEBOOKS = sorted((ROOT / FOLDER).glob("*.py"))
LINES = 120
OURS = {"core", "digits", "mlops", "azureml_emulator"}


def run_notebook(project: Project, name: str) -> str:
    """Run a notebook as a student does in a terminal; return what it printed."""
    return project.run("python", f"{FOLDER}/{name}.py")


@pytest.fixture
def small(project: Project) -> Project:
    """The small project; notebook 1 trains for one epoch."""
    project.edit(f"{FOLDER}/1_data_science.py", "EPOCHS = 3", "EPOCHS = 1")
    return project


@pytest.fixture
def local(small: Project) -> Iterator[Project]:
    """The small project with the local services of `digits local`."""
    process = subprocess.Popen(
        ["digits", "local"],
        cwd=small.root,
        env=environment(),
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert process.stdout
        assert process.stdout.readline().startswith("Serving at")
        yield small
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1_data_science", "2_cloud", "3_production"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_each_is_explained(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LINES
    kinds = [(cell.cell_type, cell.source) for cell in jupytext.reads(text, "py:percent").cells]
    assert [kind for kind, _ in kinds] == ["markdown", "code"] * (len(kinds) // 2)
    for kind, source in kinds:
        assert '"""' not in source
        assert len(source.splitlines()) <= 24 if kind == "code" else source.endswith(".")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_of_this_project_only_the_emulators_client_is_imported(path: Path) -> None:
    """Everything else is what a student knows from elsewhere."""
    modules = [
        name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    ]
    ours = {name for name in modules if name.split(".")[0] in OURS}
    assert ours <= {"azureml_emulator.client"}


@pytest.mark.slow
def test_make_notebooks_writes_them_without_outputs_and_git_ignores_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_tracked(tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "env", lambda: None)
    run.notebooks()
    written = sorted((tmp_path / FOLDER).glob("*.ipynb"))
    assert [path.stem for path in written] == [path.stem for path in NOTEBOOKS]
    for path in written:
        content = json.loads(path.read_text("utf-8"))
        assert content["metadata"]["kernelspec"]["name"] == "python3"
        cells = content["cells"]
        assert "".join(cells[0]["source"]).startswith("# ")
        for cell in cells:
            assert cell["cell_type"] == "markdown" or (
                cell["outputs"],
                cell["execution_count"],
            ) == ([], None)
    listing = ["git", "status", "--porcelain", "--untracked-files=all"]
    assert ".ipynb" not in subprocess.check_output(listing, cwd=tmp_path, text=True)


@pytest.mark.slow(minutes=0.4)
def test_data_science_ends_with_a_model_and_its_accuracy(small: Project) -> None:
    printed = run_notebook(small, "1_data_science")
    metrics = json.loads((small.root / "outputs" / "metrics.json").read_text("utf-8"))
    assert metrics["epochs"] == 1
    assert 0.3 < metrics["accuracy"] < 1
    assert f"test accuracy {metrics['accuracy']:.4f} ± {metrics['margin']:.4f}" in printed
    assert (small.root / "outputs" / "model.keras").stat().st_size > 100_000
    assert small.git("status", "--porcelain").splitlines() == [f" M {FOLDER}/1_data_science.py"]


@pytest.mark.prove(minutes=1)
def test_cloud_runs_the_first_notebook_as_a_job(local: Project) -> None:
    for _ in range(2):  # a student runs it again
        printed = run_notebook(local, "2_cloud")
        assert re.findall(r"^(preparing|running|completed)$", printed, re.M)[-1] == "completed"
        job = (local.root / "outputs/cloud/outputs/metrics.json").read_text("utf-8")
        assert printed.rstrip().endswith(job.rstrip())
    run_notebook(local, "1_data_science")
    assert job == (local.root / "outputs/metrics.json").read_text("utf-8")


@pytest.mark.prove(minutes=1)
def test_cloud_shows_why_a_job_failed(local: Project) -> None:
    local.edit(f"{FOLDER}/1_data_science.py", "EPOCHS = 1", 'raise SystemExit("no epochs")')
    printed = local.run("python", f"{FOLDER}/2_cloud.py", code=1)
    assert re.search(r"^no epochs$", printed, re.M)
    assert "ended as" in printed


@pytest.mark.prove(minutes=1)
def test_production_sees_the_drift_and_leaves_no_endpoint(local: Project) -> None:
    for _ in range(2):
        printed = run_notebook(local, "3_production")
        rows = re.findall(r"^(\d)\s+(\d+)\s+([\d.]+)\s+([\d.]+)$", printed, re.M)
        assert [int(row[1]) for row in rows] == [0, 0, 0, 0, 0, 10, 20, 40, 60, 80]
        found = re.search(r"^drift above 0.031, on days \[(.*)\]$", printed, re.M)
        assert found
        assert "9" in found[1]
        state = json.loads((local.root / ".emulator/state.json").read_text("utf-8"))
        assert [key for key in state["resources"] if "/onlineendpoints/" in key] == []
