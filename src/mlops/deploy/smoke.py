"""The smoke test: requests with known answers, sent to a deployment before it gets traffic.

They come from the model folder's `smoke.jsonl`, one JSON object a line:

    {"request": {...}, "answer": {"pointer": "/predictions/0/digit", "value": "7"}}

`request` is what a client sends. `pointer` is a JSON Pointer (RFC 6901) into the answer, `value`
the value there in a correct answer. An answer that has the key `model_version` must name the model.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core.errors import DigitsError
from mlops.azure.endpoint import Answer, Target
from mlops.azure.settings import Smoke

FIX = "run `dvc repro`, or `dvc pull data/package`"


@dataclass(frozen=True)
class Expected:
    """The expected value at a JSON Pointer into the answer."""

    pointer: str
    value: Any


@dataclass(frozen=True)
class Item:
    """A line of the file."""

    request: Any
    answer: Expected

    def value_in(self, answer: Answer) -> Any:
        """Return what an answer has at the pointer; raise DigitsError when it has nothing there."""
        try:
            return resolve(answer.body, self.answer.pointer)
        except LookupError:
            text = json.dumps(answer.body)[:200]
            raise DigitsError(
                f"smoke test: the answer has no {self.answer.pointer}: {text}"
            ) from None


LINE = TypeAdapter(Item)


def resolve(document: Any, pointer: str) -> Any:
    """Return the value that a JSON Pointer names; raise LookupError when there is none."""
    if pointer and not pointer.startswith("/"):
        raise LookupError(pointer)
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(document, list) and re.fullmatch("0|[1-9][0-9]*", name):
            document = document[int(name)]
        elif isinstance(document, dict):
            document = document[name]
        else:
            raise LookupError(pointer)
    return document


def read(path: Path, count: int) -> list[Item]:
    """Return the first items of a file; raise DigitsError when it is missing, empty or invalid."""
    items: list[Item] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, count):
                items.append(LINE.validate_json(line))
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found; {FIX}") from None
    except UnicodeDecodeError:
        raise DigitsError(f"{path}: expected UTF-8 text; {FIX}") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = " ".join([".".join(map(str, first["loc"])), first["msg"]]).strip()
        raise DigitsError(f"{path}:{len(items) + 1}: {what}; {FIX}") from None
    if not items:
        raise DigitsError(f"{path}: expected one request per line, found none; {FIX}")
    return items


def check(
    target: Target, deployment: str, items: Sequence[Item], wanted: Smoke, version: str | None
) -> list[Any]:
    """Send the requests to a deployment by name; return what its answers have at the pointers.

    Raises DigitsError when the share of right answers or the slowest answer is out of bounds, or
    when another model answers than `version`.
    """
    answers = [target.ask(item.request, deployment) for item in items]
    for answer in answers:
        require_version(answer, version)
    values = [item.value_in(answer) for item, answer in zip(items, answers, strict=True)]
    right = sum(value == item.answer.value for value, item in zip(values, items, strict=True))
    if right < wanted.accuracy * len(items):
        raise DigitsError(
            f"smoke test: {right} of {len(items)} answers correct, expected {wanted.accuracy:.0%} "
            "(azure.smoke.accuracy); do not deploy this model"
        )
    slowest = max(answer.seconds for answer in answers)
    if slowest > wanted.latency_seconds:
        raise DigitsError(
            f"smoke test: the slowest answer took {slowest:.2f} s, "
            f"{wanted.latency_seconds:g} s are allowed (azure.smoke.latency_seconds)"
        )
    return values


def require_version(answer: Answer, version: str | None) -> None:
    """Raise DigitsError when an answer names another model; one that names none is accepted."""
    named = answer.body.get("model_version") if isinstance(answer.body, dict) else None
    if version and named is not None and not (named and version.startswith(str(named))):
        raise DigitsError(f"smoke test: model {named or 'unnamed'} answered, not {version[:12]}")
