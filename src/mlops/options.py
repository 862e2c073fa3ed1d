"""Options that several commands share. Click is the only library it imports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from core.errors import DigitsError

Decorator = Callable[[Any], Any]
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def example(*lines: str) -> str:
    """Return the epilogue of a command's help: an example to copy."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def workspace(default: str | None) -> Decorator:
    """Return the option --workspace."""
    text = "local: the emulator of `digits local`; azure: the connected one; or another name"
    return click.option("--workspace", metavar="NAME", default=default, help=text)


repository = click.option("--repository", metavar="OWNER/NAME", help="[default: origin on GitHub]")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")  # of a command that deletes


def confirm(kind: str, name: str) -> None:
    """Ask for the name as confirmation of a deletion; raise DigitsError for any other answer."""
    try:
        answer = input(f"To delete {kind} {name}, type its name: ")
    except EOFError:
        answer = ""
    if answer != name:
        raise DigitsError("Nothing was deleted. To delete it without being asked: --yes")


def show(answer: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(answer, indent=2, ensure_ascii=False))
