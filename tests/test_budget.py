"""budget.py: sizes are counted, and each limit is enforced."""

import subprocess
from pathlib import Path

import budget
import pytest

LIMITS = {
    "total": 100,
    "core_and_digits": 60,
    "mlops": 30,
    "azureml_emulator": 10,
    "csv_to_package": 45,
    "file": 30,
    "modules": 4,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project that meets each limit exactly."""
    pipeline = "src/digits/pipeline"
    files = {
        "src/digits/runtime/loader.py": "\n" * 5,
        "src/digits/runtime/__init__.py": "\n" * 5,
        f"{pipeline}/mnist.py": "def f():\n    from core import files\n" + "\n" * 3,
        f"{pipeline}/prepare.py": "import core.files\n" + "\n" * 4,
        f"{pipeline}/train.py": "\n" * 5,
        f"{pipeline}/package.py": "\n" * 5,
        "src/core/files.py": "# A comment\n" * 20,
        "src/core/unused.py": "\n" * 10,
        "src/mlops/long.py": "\n" * 30,
        "src/azureml_emulator/server.py": "\n" * 10,
        "src/notebooks/three.py": "\n" * 500,
        "src/mlops/web/page.js": "\n" * 500,
        "tests/test_it.py": "\n" * 500,
        "pyproject.toml": "[tool.digits.budget]\n"
        + "".join(f"{name} = {limit}\n" for name, limit in LIMITS.items()),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
    return tmp_path


def test_sizes_at_the_limits_pass(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.check(tree) == []
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["src/digits/pipeline", "4", "20"] in rows
    assert ["azureml_emulator", "10", "10"] in rows


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_is_enforced(
    tree: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tree / "pyproject.toml"
    text = path.read_text("utf-8")
    path.write_text(text.replace(f"{name} = {LIMITS[name]}", f"{name} = {LIMITS[name] - 1}"))
    monkeypatch.setattr("sys.argv", ["budget.py", str(tree)])
    assert budget.main() == 1
    lines = capsys.readouterr().out.splitlines()
    (finding,) = [line for line in lines if line.startswith("budget: ")]
    assert f"{LIMITS[name] - 1}. Delete code" in finding
