"""The import rules of pyproject.toml: what breaks each, and what a deployment loads."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

# A module below src, and an import that one contract alone forbids to it.
FORBIDDEN = {
    "core/tf_config.py": "import digits.sources",
    "digits/model/lineage.py": "import mlops.git",
    "azureml_emulator/__init__.py": "import mlops.dvc",
    "mlops/deploy/plan.py": "import digits.model.lineage",
    "mlops/setup/az.py": "import azureml_emulator.inference",
    "digits/runtime/normalise.py": "import digits.sources",
    "digits/serving/picture.py": "import core.files",
    "mlops/azure/revisions.py": "import mlops.deploy.lease",
    "mlops/bot/github.py": "import core.files",
    "mlops/deploy/lease.py": "import mlops.bot.github",
}


@pytest.mark.slow
def test_each_contract_can_be_broken(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    for name, line in FORBIDDEN.items():
        with (tmp_path / "src" / name).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    done = subprocess.run(
        ["lint-imports", "--no-cache"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1, done.stdout
    assert " KEPT" not in done.stdout
    for name, line in FORBIDDEN.items():
        importer = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        imported = line.removeprefix("import ")
        assert re.search(rf"\b{importer} -> {imported}\b", done.stdout), f"{line}: {done.stdout}"


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("core/files.py", ["TID251", "TID253"]),
        ("mlops/review/gate.py", ["TID251", "TID253"]),
        ("mlops/deploy/plan.py", ["TID253"]),
        ("digits/model/network.py", ["TID251"]),
        ("digits/pipeline/monitor.py", ["TID251", "TID253"]),
    ],
)
def test_heavy_packages_are_imported_where_they_are_needed(name: str, rules: list[str]) -> None:
    command = ["ruff", "check", "--no-cache", "--select", "TID", "--output-format", "concise"]
    done = subprocess.run(
        [*command, "--stdin-filename", f"src/{name}", "-"],
        cwd=ROOT,
        env=environment(),
        input="import azure.ai.ml\nimport tensorflow\n",
        capture_output=True,
        encoding="utf-8",
    )
    assert re.findall(r": (TID\d+) ", done.stdout) == rules


@pytest.mark.slow
def test_a_deployment_loads_neither_the_model_nor_emulator_nor_page() -> None:
    program = "import sys; import mlops.deploy.rollout; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    unwanted = ("digits", "azureml_emulator", "mlops.dashboard", "mlops.production", "tensorflow")
    assert not re.findall(rf"\b(?:{'|'.join(unwanted)})\b\S*", done.stdout)
