"""Read and validate params.yaml, the only place for settings.

Input: the file, and the frozen dataclass of a section, defined by the module that uses it. Output:
an instance of that dataclass. The modules `commands` of `digits` and `mlops` list all sections; a
key that is not listed is an error. The file is parsed with ruamel.yaml, as DVC does, so that both
read the same values.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from core import wings
from core.errors import DigitsError

PATH = Path("params.yaml")
Section = TypeVar("Section")
ScriptName = Annotated[str, Field(pattern="^[a-z][a-z0-9]*$")]
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True)
def strict(section: type[Section]) -> type[Section]:
    """Make a class a frozen dataclass; `section` rejects unknown keys and wrong types for it."""
    section.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True)(section)


@strict
class Task:
    """The values that all stages share: the top level of params.yaml."""

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    image_size: Annotated[int, Field(ge=20, le=256)]  # pixels per side; the network needs 20
    classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]

    def __post_init__(self) -> None:
        """Raise ValueError unless class names are unique and their indices fit in one byte."""
        twice = [name for name in self.classes if self.classes.count(name) > 1]
        if twice or len(self.classes) > 256:
            raise ValueError(f"classes must be unique and at most 256; found twice: {twice[:1]}")


@strict
class Names:
    """params.yaml's section `task`: names of the known images for titles, reports and the page."""

    name: Annotated[str, Field(pattern=r"^\S(.{0,38}\S)?$")]  # of the data set
    item: Annotated[str, Field(pattern=r"^\S(.{0,38}\S)?$")]  # one image; its plural ends in s

    @property
    def items(self) -> str:
        """The plural of `item`."""
        return f"{self.item}s"


class _Reader(BaseModel):
    format: str


class _Block(BaseModel):
    reader: _Reader


def load(path: Path = PATH) -> dict[str, Any]:
    """Return params.yaml as plain Python values; the content of its sections is not validated.

    Raises DigitsError when the file is missing or not a YAML mapping, when a key occurs twice, and
    when a top-level key is missing, or is neither known nor a stage.
    """
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found; run from the project's root") from None
    except (YAMLError, ValueError, AssertionError, RecursionError) as error:  # what ruamel raises
        raise DigitsError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DigitsError(f"{path}: is not a mapping of keys to values; see params.yaml in git")
    needed = [*(field.name for field in dataclasses.fields(Task)), "task"]
    sections = wings.declared("SECTIONS")
    known = [*needed, *(section.name for section in sections)]
    needed += [section.name for section in sections if section.required]
    for key in values:
        # An unfinished stage's section must not stop the others.
        stages = [f"{wing}.pipeline.{key}" for wing in wings.WINGS]
        if key not in known and not any(map(wings.installed, stages)):
            raise DigitsError(f"{path}: {key}: unknown key; the known keys are {', '.join(known)}")
    for key in needed:
        if key not in values:
            raise DigitsError(f"{path}: {key}: missing; see the params.yaml in git")
    return values


def section(kind: type[Section], values: dict[str, Any], name: str) -> Section:
    """Return one section of params.yaml as the dataclass `kind`; `name` may be a dotted path.

    Raises DigitsError with the key, its value and what is allowed when a value is unknown,
    missing, of another type or out of range.
    """
    block: Any = values
    for key in name.split("."):
        if not isinstance(block, dict) or key not in block:
            raise DigitsError(f"{PATH}: {name}: missing; see the params.yaml in git")
        block = block[key]
    return _parse(kind, block, name)


def foreign_scripts(values: dict[str, Any]) -> dict[str, bool]:
    """Return the scripts of section `foreign` in their order, and whether each is rendered.

    Only the format of a script's reader is used; stage foreign validates the rest. An empty list
    means no script. Raises DigitsError as `section` does.
    """
    if values.get("foreign") == []:
        return {}
    blocks = section(dict[ScriptName, _Block], values, "foreign")
    if "mnist" in blocks:
        raise DigitsError(f"{PATH}: foreign.mnist: the name mnist is reserved; rename the script")
    return {script: block.reader.format == "fonts" for script, block in blocks.items()}


def task(values: dict[str, Any]) -> Task:
    """Return the top-level values; raises DigitsError as `section` does."""
    names = [field.name for field in dataclasses.fields(Task)]
    return _parse(Task, {name: values[name] for name in names if name in values}, "")


def names(values: dict[str, Any]) -> Names:
    """Return the section `task`; raises DigitsError as `section` does."""
    return section(Names, values, "task")


def ordered(pair: tuple[float, float]) -> tuple[float, float]:
    """Return a range unchanged; raise ValueError when its first number is above its second."""
    if pair[0] > pair[1]:
        raise ValueError("the first number must not be above the second")
    return pair


def _parse(kind: type[Section], values: Any, name: str) -> Section:
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        unknown = "unexpected_keyword_argument"  # first: a misspelt key is also a missing one
        first = min(error.errors(), key=lambda found: found["type"] != unknown)
        if first["type"] == "value_error" and not first["loc"]:  # a rule about several values
            where = f"{PATH}: {name}" if name else str(PATH)
            raise DigitsError(f"{where}: {first['msg']}; correct the values") from None
        key = ".".join([name, *_keys(values, first["loc"])]).removeprefix(".")
        if first["type"] == unknown:
            raise DigitsError(f"{PATH}: {key}: unknown key; remove or rename it") from None
        wrong = "" if first["type"] == "missing" else f" is {first['input']!r}"
        fix = "correct the value" if wrong else "add it"
        raise DigitsError(f"{PATH}: {key}{wrong}: {first['msg']}; {fix}") from None
    except (ValueError, RecursionError) as error:
        raise DigitsError(f"{PATH}: {name}: {error}; write the values without aliases") from None


def _keys(values: Any, place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that lead to an error in the file, without the parts that pydantic adds."""
    keys = []
    for number, part in enumerate(place, start=1):
        inside = part in values if isinstance(values, dict) else isinstance(values, list)
        if inside or number == len(place):
            keys.append(str(part))
        values = values[part] if inside else values
    return keys
