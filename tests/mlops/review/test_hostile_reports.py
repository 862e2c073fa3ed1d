"""report.json as an attacker writes it: refused, or rendered as nothing but text."""

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reports import report

from core.errors import DigitsError
from mlops.bot.comment import COMMENT_CHARACTERS
from mlops.review import render, schema

EVIL = [
    *("<img src=x onerror=alert(1)>", "</details>", "<!-- digits-review run=9 attempt=9 -->"),
    *("@octo/everybody", "#1", "GH-1", "octo/other#2", "\n# Heading", "\r\n\r\n", "|", "||\n|"),
    *("[a](https://evil.example)", "![b](https://evil.example/x.png)", "[a]: https://evil.example"),
    *("www.evil.example", "```", "~~~", "`", "```mermaid\nflowchart LR\n", "&#64;everybody", "\\"),
    *("\u202edesrever", "\u2066", "\x00", "\x1b[31m", "\ud800", "$\\href{x}{y}$", "**", "* * *"),
    *(
        "javascript:alert(1)",
        "mailto:a@b.example",
        "a@b.example",
        "::error::x",
        "\u2028",
        "=====\n",
    ),
]
TEXTS = st.lists(st.sampled_from(EVIL) | st.text(max_size=20), max_size=4).map("".join)
NUMBERS = st.sampled_from([0, -1, 10**400, 1e308, -0.0, 0.5, 2**63, True])
VALUES = TEXTS | NUMBERS | st.none() | st.sampled_from([[], {}, [[]], [{}], {"a": []}])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path]
    for key, item in inner:
        found += places(item, (*path, key)) if isinstance(item, dict | list) else [(*path, key)]
    return found


def put(values: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replace a value, unless what held it was replaced before."""
    with contextlib.suppress(LookupError, TypeError):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = new


WHOLE = json.loads(schema.dump(report()))
PLACES = [path for path in places(WHOLE) if path]
STRINGS = [
    path
    for path in PLACES
    if isinstance(eval("w" + "".join(f"[{key!r}]" for key in path), {"w": WHOLE}), str)
]


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """Generate a report: texts at will wherever a text may stand, and sometimes anything else."""
    values = json.loads(schema.dump(report()))
    for path in draw(st.lists(st.sampled_from(STRINGS), max_size=8)):
        put(values, path, draw(TEXTS))
    if draw(st.booleans()):
        values["gate"] = {"passed": draw(st.booleans()), "reasons": draw(st.lists(TEXTS))}
        values["last_lines"] = draw(st.lists(TEXTS))
        values["failed"] = draw(TEXTS)
    if draw(st.booleans()):
        values[draw(st.sampled_from(["curves_before", "curves_after"]))] = draw(
            st.dictionaries(TEXTS | st.sampled_from(["validation_loss"]), st.lists(NUMBERS))
        )
    if draw(st.integers(0, 3)) == 0:
        put(values, draw(st.sampled_from(PLACES)), draw(VALUES))
    content = json.dumps(values).encode()
    return (
        content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content
    )


def check(content: bytes) -> None:
    """Fail unless a report is refused with one line, or rendered as text that does no harm."""
    facts = "[Run 1](https://github.com/octo/digits/actions/runs/1) ended with **success**."
    try:
        text = render.write(schema.parse(content), facts=facts)
    except DigitsError as error:
        assert "\n" not in str(error)
        text = f"## No report: {render.plain(error, 300)}\n\n{facts}\n"
    own = text.replace(facts, "", 1)
    assert text.count(facts) >= 1
    assert facts in text.split("```")[0]  # no block of code hides how the run ended
    assert "<details>" not in text.split(facts)[0]
    blocks = re.findall(r"^```(\w*)$", own, flags=re.M)
    assert "" not in blocks[::2] and set(blocks[1::2]) <= {""}  # opened, closed, opened ...
    own = "".join(own.split("```")[::2])  # what stands in a block of code is shown as it is
    for tag in ("<details>", "</details>"):
        own = own.replace(tag, "")
    own = re.sub(r"<summary>[\w: ]*</summary>", "", own)
    assert not re.search(r"[<>]", own), own
    assert not re.search(r"\]\(|\]:|@(?=\w)|://|(?<!\w)#\d|www\.|GH-\d", own), own
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", own)
    for line in own.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (3, 4, 5, 6, 7, 8), line
        assert re.match(r"(\||- |#{2,3} |\S|$)", line)
        assert not re.match(r"# |=+$|>|~~~|\* ", line), line


BASIC = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@settings(BASIC, max_examples=200)
@given(hostile())
def test_a_hostile_report_is_nothing_but_text(content: bytes) -> None:
    check(content)


@pytest.mark.prove
@settings(BASIC, max_examples=4500)
@given(hostile())
def test_4500_hostile_reports_are_nothing_but_text(content: bytes) -> None:
    check(content)


def test_an_honest_report_survives() -> None:
    assert schema.parse(schema.dump(report()).encode()) == report()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b'{"\xff": 1}', "codec can't decode"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "report.json: expected Report"),
        (b'{"schema": 1}', "report.json: expected the keys verdict, gate, schema"),
        (schema.dump(report(schema=2)).encode(), "schema: expected 1, found 2"),
        (schema.dump(report()).replace("0.995", "NaN").encode(), "before: expected float"),
        (schema.dump(report()).replace("0.995", "1e999").encode(), "before: expected float"),
        (schema.dump(report()).replace('"ran"', '"<b>"').encode(), "report.json.stages[].what"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(DigitsError) as refused:
        schema.parse(content)
    assert message.lower() in str(refused.value).lower()
    assert "\n" not in str(refused.value)


def test_long_texts_and_lists_are_cut_so_that_an_own_report_is_always_valid() -> None:
    long = report(problems=["x" * 10_000] * 5_000, last_lines=["é" * 3_000], head=None)
    found = schema.parse(schema.dump(long).encode())
    assert len(found.problems) == schema.ITEMS and len(found.problems[0]) == schema.TEXT
    assert len(render.write(found)) < COMMENT_CHARACTERS
