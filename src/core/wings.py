"""Load the commands and sections of params.yaml that `digits` and `mlops` declare.

Each of the two has a module `commands` with the tables COMMANDS and SECTIONS. They are found by
name, so core imports neither package, and a project without one of them works. Standard library
only.
"""

import importlib
import importlib.util
from typing import Any, NamedTuple

from core.errors import DigitsError

WINGS = ("digits", "mlops")


class Command(NamedTuple):
    """One command of the command line."""

    name: str
    group: str  # the heading that it is listed under
    module: str  # defines the Click command, under the same name; imports no slow package
    help: str  # one line
    requires: tuple[str, ...] = ()  # packages; the command is not listed if one is missing


class Section(NamedTuple):
    """One section of params.yaml."""

    name: str
    kind: str  # MODULE:NAME of its dataclass; with `each`, of the dataclass of every key
    required: bool = True
    each: bool = False


def installed(module: str) -> bool:
    """Return whether a module can be found; only the packages that contain it are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that contains it is missing
        return False


def declared(table: str) -> list[Any]:
    """Return the rows of a table, COMMANDS or SECTIONS, of the installed packages."""
    return [
        row
        for wing in WINGS
        if installed(module := f"{wing}.commands")
        for row in getattr(importlib.import_module(module), table)
    ]


def resolve(target: str) -> Any:
    """Import and return the object that a table names as MODULE:NAME.

    Raises DigitsError when it does not exist.
    """
    module, _, name = target.partition(":")
    if installed(module) and hasattr(imported := importlib.import_module(module), name):
        return getattr(imported, name)
    raise DigitsError(
        f"src/{module.replace('.', '/')}.py: expected {name}, found none; write it, for instance\n"
        f"  @params.strict\n  class {name}:"
    )
