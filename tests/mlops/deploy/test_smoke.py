"""The smoke test: which requests are sent, and which answers are accepted."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.azure.endpoint import Answer
from core.errors import DigitsError
from mlops.azure.settings import Smoke
from mlops.deploy import smoke
from mlops.deploy.smoke import Expected, Item

# RFC 6901, section 5: the document and what each pointer names.
DOCUMENT = {
    "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5,
    "k\"l": 6, " ": 7, "m~n": 8,
}  # fmt: skip
VALUES = {
    "": DOCUMENT, "/foo": ["bar", "baz"], "/foo/0": "bar", "/": 0, "/a~1b": 1, "/c%d": 2,
    "/e^f": 3, "/g|h": 4, "/i\\j": 5, "/k\"l": 6, "/ ": 7, "/m~0n": 8,
}  # fmt: skip
WANTED = Smoke(digits=3, accuracy=0.6, latency_seconds=1.0)
ITEMS = [Item({"data": [value]}, Expected("/answer", value)) for value in (1, 2, 3)]


@pytest.mark.parametrize("pointer", VALUES)
def test_a_pointer_names_what_the_standard_says(pointer: str) -> None:
    assert smoke.resolve(DOCUMENT, pointer) == VALUES[pointer]


@pytest.mark.parametrize(
    "pointer", ["foo", "/none", "/foo/2", "/foo/-", "/foo/-1", "/foo/01", "/foo/0/x"]
)
def test_a_pointer_to_nothing_is_refused(pointer: str) -> None:
    with pytest.raises(LookupError):
        smoke.resolve(DOCUMENT, pointer)


def test_the_first_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "smoke.jsonl"
    lines = [json.dumps(asdict(item)) for item in ITEMS]
    path.write_text("\n".join([*lines, "damaged"]))
    assert smoke.read(path, 2) == ITEMS[:2]
    assert smoke.read(path, 3) == ITEMS
    with pytest.raises(DigitsError, match=r"smoke\.jsonl:4: Invalid JSON"):
        smoke.read(path, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found"),
        (b"", "expected one request per line, found none"),
        (b"\xff", "expected UTF-8 text"),
        (b"[]\n", "smoke.jsonl:1: "),
        (b'{"request": 1}\n', "smoke.jsonl:1: answer Field required"),
        (
            b'{"request": 1, "answer": {"pointer": "/a"}}\n',
            "smoke.jsonl:1: answer.value Field required",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "smoke.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DigitsError, match=f"{message}.*run `dvc repro`"):
        smoke.read(path, 9)


class Endpoint:
    """An endpoint with given answers."""

    def __init__(self, *bodies: Any, seconds: float = 0.1) -> None:
        """Take the answers in their order."""
        self.bodies, self.seconds = iter(bodies), seconds

    def ask(self, content: Any, deployment: str) -> Answer:
        """Return the next answer."""
        return Answer(next(self.bodies), deployment, self.seconds)


def check(target: Any, version: str | None = None) -> list[Any]:
    return smoke.check(target, "r1", ITEMS, WANTED, version)


def test_the_share_of_right_answers_is_bounded() -> None:
    assert check(Endpoint({"answer": 1}, {"answer": 2}, {"answer": 0})) == [1, 2, 0]
    with pytest.raises(DigitsError, match="1 of 3 answers correct, expected 60%"):
        check(Endpoint({"answer": 1}, {"answer": 0}, {"answer": 0}))


def test_another_form_of_answer_is_refused() -> None:
    with pytest.raises(DigitsError, match=r'the answer has no /answer: {"predictions": \[\]}'):
        check(Endpoint({"answer": 1}, {"predictions": []}, {"answer": 3}))
    with pytest.raises(DigitsError, match="the answer has no /answer: 7"):
        check(Endpoint(7, 7, 7))


def test_a_slow_answer_is_refused() -> None:
    with pytest.raises(DigitsError, match=r"the slowest answer took 2\.00 s"):
        check(Endpoint(*[{"answer": item.answer.value} for item in ITEMS], seconds=2.0))


def test_the_model_is_recognised_by_the_version_that_its_answers_name() -> None:
    def bodies(version: Any) -> list[dict[str, Any]]:
        return [{"answer": item.answer.value, "model_version": version} for item in ITEMS]

    check(Endpoint(*bodies("abc")), "abcdef")
    check(Endpoint(*bodies("abc")), None)
    check(Endpoint(*bodies(None)), "abcdef")  # an answer need not name a model
    for version in ("abd", "", "abcdefg"):
        with pytest.raises(DigitsError, match="answered, not abcdef"):
            check(Endpoint(*bodies(version)), "abcdef")
