"""The params.yaml that tests run on: frozen values, so that no test depends on a team's own.

The file beside this one has the shipped values. Its shape follows the project's: a section that a
team adds, and a key that it adds to a section, come from its own params.yaml; a section that no
wing declares any longer is left out.
"""

import copy
import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from core import params, wings

OWN = Path(__file__).resolve().parents[2] / "params.yaml"
FROZEN = Path(__file__).with_name("params.yaml")
SCRIPTS = "foreign"  # the keys of this section are data, not parameters


@functools.cache
def text() -> str:
    """Return the file's text, with its comments."""
    own, frozen = read(OWN), FROZEN.read_text("utf-8")
    header, *blocks = re.split(r"(?m)^(?=\w+:)", frozen)
    known = {"task", *(field.name for field in dataclasses.fields(params.Task))}
    known |= {section.name for section in wings.declared("SECTIONS")}
    found = [header]
    shipped = read(FROZEN)
    for block in blocks:
        name = block.partition(":")[0]
        first, rest = block.split("\n", 1)
        if name in known:
            added = new_keys(own.get(name), shipped[name]) if name != SCRIPTS else {}
            found.append("\n".join([first, *(f"  {line}" for line in lines(added)), rest]))
    added = new_keys(own, shipped)
    return "".join(found) + "".join(f"{line}\n" for line in lines(added))


def values() -> dict[str, Any]:
    """Return the file's values."""
    return copy.deepcopy(loaded(text()))


def section(kind: type[params.Section], name: str) -> params.Section:
    """Return a section of it; dots in `name` go deeper."""
    return params.section(kind, values(), name)


def difference() -> str:
    """Return why this project's model is not the shipped one; nothing when it may be."""
    own, frozen = read(OWN), read(FROZEN)
    model = [field.name for field in dataclasses.fields(params.Task)]
    model += [name for name in frozen if name not in (*model, "task", "azure", "review")]
    changed = [name for name in model if own.get(name) != frozen.get(name)]
    return f"params.yaml has other values than the shipped ones: {', '.join(changed)}" * bool(
        changed
    )


def read(path: Path) -> dict[str, Any]:
    """Return the values of a file, which nobody changes."""
    return loaded(path.read_text("utf-8"))


@functools.cache
def loaded(text: str) -> dict[str, Any]:
    """Return the values in a text."""
    return dict(YAML(typ="safe").load(text))


def new_keys(own: Any, shipped: Any) -> dict[str, Any]:
    """Return what a mapping has beyond the shipped one."""
    if not isinstance(own, dict) or not isinstance(shipped, dict):
        return {}
    return {key: value for key, value in own.items() if key not in shipped}


def lines(added: dict[str, Any]) -> list[str]:
    """Return a line of YAML for each value."""
    return [f"{key}: {json.dumps(one, default=str)}" for key, one in added.items()]
