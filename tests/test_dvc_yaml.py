"""dvc.yaml against the code: each stage's deps, outs and params are what it really uses."""

import ast
import dataclasses
import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest
from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA
from ruamel.yaml import YAML

from core import params

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"


def stages() -> dict[str, Any]:
    """Return the stages of dvc.yaml by name, those in a foreach without their wrapping."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


STAGES = stages()
LOCKS = dict.fromkeys(("train", "package", "simulate"), "requirements-serve.txt")
SHIPPED = dict.fromkeys(("mnist", "foreign", "prepare", "evaluate", "monitor"), "requirements.txt")
SHIPPED |= LOCKS


def imported(path: Path) -> set[Path]:
    """Return the modules of this project that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            module_file = SOURCE / Path(*name.split(".")).with_suffix(".py")
            if name.startswith(("core.", "digits.")) and module_file.exists():
                found.add(module_file)
    return found


def closure(path: Path) -> set[str]:
    """Return what a stage runs: __main__, its module and all that these import."""
    seen: set[Path] = set()
    waiting = {path, SOURCE / "__main__.py"}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= imported(module) - seen
    return {file.relative_to(ROOT).as_posix() for file in seen}


def paths(entries: list[Any]) -> set[str]:
    """Return the paths of deps or outs, with or without settings."""
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def dep(path: str) -> str:
    """Return the dep that a module belongs to: itself in pipeline/, else its package."""
    folder = path.rpartition("/")[0]
    return path if folder in ("src", "src/digits/pipeline") else folder


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_imported_packages(stage: str) -> None:
    """Tracking writes no output, so its change reruns nothing."""
    listed = {path for path in paths(STAGES[stage]["deps"]) if path.startswith("src/")}
    words = shlex.split(STAGES[stage]["cmd"])[2:]
    copied = {dep(word) if word.endswith(".py") else word for word in words if "src/" in word}
    used = {dep(path) for path in closure(SOURCE / "digits" / "pipeline" / f"{stage}.py")}
    assert listed == (used | copied) - {"src/digits/tracking"}


def test_dvc_yaml_names_few_sources() -> None:
    named = [path for stage in STAGES.values() for path in paths(stage["deps"])]
    assert sum(path.startswith("src/") for path in named) <= 5 * len(STAGES)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=str)
def test_init_files_are_docstrings_alone(path: Path) -> None:
    assert len(ast.parse(path.read_text("utf-8")).body) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_stage_module_and_section_have_one_name(stage: str) -> None:
    assert STAGES[stage]["cmd"].split()[:3] == ["python", "src", stage]
    assert (SOURCE / "digits" / "pipeline" / f"{stage}.py").exists()
    assert any(name.split(".")[0] == stage for name in STAGES[stage]["params"])


@pytest.mark.parametrize("stage", STAGES)
def test_cmd_names_deps_and_outs(stage: str) -> None:
    """Each path in cmd is a dep or an out, or the folder of some; each data path is in cmd."""
    words = shlex.split(STAGES[stage]["cmd"])[3:]
    named = {word for word in words if "/" in word or word.endswith((".txt", ".json"))}
    kinds = ("outs", "metrics", "plots")
    outs = {path for kind in kinds for path in paths(STAGES[stage].get(kind, []))}
    data = outs | {
        path
        for path in paths(STAGES[stage]["deps"])
        if not path.startswith(("src/", "${")) or any(name.startswith(path) for name in named)
    }
    # A new TensorFlow trains again; a new plotting library neither trains nor packages.
    locks = {path for path in data if path.startswith("requirements")}
    assert stage not in SHIPPED or locks == {SHIPPED[stage]}
    data -= locks
    named -= locks
    for path in data:
        assert any(f"{path}/".startswith(f"{name}/") or name.startswith(path) for name in named)
    for name in named:
        assert any(f"{path}/".startswith(f"{name}/") or name.startswith(path) for path in data)


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_what_the_stage_reads(stage: str) -> None:
    """A stage lists the shared values that its module names as task.<value>; vars(task) has all."""
    module = ast.parse((SOURCE / "digits" / "pipeline" / f"{stage}.py").read_text("utf-8"))
    read = {
        node.attr
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "task"
    }
    shared = {field.name for field in dataclasses.fields(params.Task)}
    if any(ast.unparse(node) == "vars(task)" for node in ast.walk(module)):
        read = shared
    listed = {name for name in STAGES[stage]["params"] if name in shared}
    assert listed == read & shared
    assert dataclasses.is_dataclass(importlib.import_module(f"digits.pipeline.{stage}").Params)


def test_no_stage_but_evaluate_reads_the_test_pool() -> None:
    readers = [name for name in STAGES if "data/prepared/test.npz" in paths(STAGES[name]["deps"])]
    assert readers == ["evaluate"]


def test_a_changed_reader_reruns_mnist_and_foreign_alone() -> None:
    def near(path: str) -> bool:
        return "src/digits/sources/".startswith(f"{path}/") or path.startswith("src/digits/sources")

    assert {name for name in STAGES if any(map(near, paths(STAGES[name]["deps"])))} == {
        "mnist",
        "foreign",
    }


def test_nothing_installed_is_a_dep() -> None:
    for stage in STAGES.values():
        assert not any("node_modules" in path or ".venv" in path for path in paths(stage["deps"]))


def test_dvc_yaml_is_valid_by_dvcs_own_schema() -> None:
    COMPILED_MULTI_STAGE_SCHEMA(YAML(typ="safe").load(ROOT / "dvc.yaml"))
