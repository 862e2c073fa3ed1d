"""What the wings declare in their modules `commands`: commands and sections of params.yaml.

The tables are plain data and are found by name: the floor imports no wing, and a project without
one of them works with what is left. Standard library only.
"""

import importlib
import importlib.util
from typing import Any, NamedTuple

WINGS = ("digits", "mlops")


class Command(NamedTuple):
    """One command of the command line."""

    name: str
    group: str  # the heading that it is listed under
    module: str  # holds its Click command, of the same name, and imports nothing that is slow
    help: str  # one line
    requires: tuple[str, ...] = ()  # packages without which it is left out


class Section(NamedTuple):
    """One section of params.yaml."""

    name: str
    kind: str  # MODULE:NAME of its dataclass; of each of its keys, if `each`
    required: bool = True
    each: bool = False


def installed(module: str) -> bool:
    """Return whether a module can be found; of dotted names only the packages are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it lies in
        return False


def declared(table: str) -> list[Any]:
    """Return the rows of a table, COMMANDS or SECTIONS, of all wings that are there."""
    modules = [f"{wing}.commands" for wing in WINGS]
    return [
        row
        for module in modules
        if installed(module)
        for row in getattr(importlib.import_module(module), table)
    ]


def resolve(target: str) -> Any:
    """Import what a table names as MODULE:NAME."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
