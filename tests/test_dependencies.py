"""Imports of the namespaces azure and azureml, which deptry takes for one distribution each."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from conftest import ROOT

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
