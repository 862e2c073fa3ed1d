"""Imports against the locks, as far as deptry does not compare them.

It takes the namespaces azure and azureml for one distribution each, and knows nothing of the
endpoint, whose environment has a lock of its own.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_dvc_yaml import LOCKS, SOURCE, closure

ENDPOINT = {  # what the markers of the lock are evaluated for
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "os_name": "posix",
    "python_version": "3.11",
    "python_full_version": "3.11.0",
}
SERVED = "requirements-serve.txt"
NAMESPACES = ("azure", "azureml")


def azure_imports(path: Path) -> Iterator[str]:
    """Yield the names below the namespaces that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.partition(".")[0] in NAMESPACES)


def distributions() -> dict[str, str]:
    """Return which installed distribution each module below the namespaces belongs to."""
    return {
        file.as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", "."): found.name
        for found in metadata.distributions()
        for file in found.files or ()
        if file.parts[0] in NAMESPACES and file.suffix == ".py"
    }


def declared(project: dict[str, object]) -> set[str]:
    """Return the names of the distributions that pyproject.toml declares for src."""
    section = project["project"]
    assert isinstance(section, dict)
    groups = [section["dependencies"], *section["optional-dependencies"].values()]
    return {re.split(r"[\s;<>=\[]", line)[0] for group in groups for line in group}


@pytest.mark.slow
def test_each_import_of_azure_has_its_distribution_declared() -> None:
    owners = distributions()
    known = declared(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")))
    checked, undeclared = set(), []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for name in azure_imports(path):
            module = name
            while module not in owners:  # the last words are names inside the module
                module, _, rest = module.rpartition(".")
                assert rest, f"{path}: no installed distribution has {name}"
            checked.add(owners[module])
            if owners[module] not in known:
                undeclared.append(f"{path}: {name} of {owners[module]}")
    assert undeclared == []
    assert {"azure-ai-ml", "azure-core", "azure-identity"} <= checked


def served() -> set[str]:
    """Return the names of the packages that the endpoint's environment has."""
    text = (ROOT / SERVED).read_text("utf-8")
    pins = [Requirement(line) for line in re.findall(r"^\S+==[^\\\n]+", text, re.M)]
    return {
        canonicalize_name(pin.name)
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(ENDPOINT)
    }


def outside(path: Path) -> Iterator[str]:
    """Yield the top-level modules of packages that a file imports, at any depth of its code."""
    local = {"core", "digits", *(file.stem for file in (SOURCE / "digits").glob("*/*.py"))}
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        for name in names:
            top = name.partition(".")[0]
            if top not in local | {"determinism"} | sys.stdlib_module_names:
                yield name if top in NAMESPACES else top


@pytest.mark.slow
def test_what_is_trained_and_deployed_imports_its_lock_alone() -> None:
    """The closures of the stages that depend on it, and what is uploaded or travels."""
    files = {
        ROOT / name for stage in LOCKS for name in closure(SOURCE / f"digits/pipeline/{stage}.py")
    }
    files |= {*(SOURCE / "digits/serving").glob("*.py"), *(SOURCE / "digits/runtime").glob("*.py")}
    owners, azure, known = metadata.packages_distributions(), distributions(), served()
    checked, missing = set(), []
    for path in sorted(files):
        for name in outside(path):
            module = name
            while "." in module and module not in azure:
                module = module.rpartition(".")[0]
            found = {azure[module]} if module in azure else set(owners[module])
            checked.add(module)
            if not known & set(map(canonicalize_name, found)):
                missing.append(f"{path}: {name} of {', '.join(found)}")
    assert missing == []
    assert {"tensorflow", "mlflow", "pyarrow"} < checked


def test_the_endpoints_lock_is_closed_and_small() -> None:
    known = served()
    assert 50 < len(known) <= 100
    for name in sorted(known):
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate(ENDPOINT | {"extra": ""}):
                assert canonicalize_name(needed.name) in known, f"{name} requires {needed}"
