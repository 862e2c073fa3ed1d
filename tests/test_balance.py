"""balance.py: what shares set-up stays together, and the longest begins first."""

from types import SimpleNamespace
from typing import Any

import balance
import pytest


class Item:
    """As much of a test as is asked for."""

    def __init__(self, nodeid: str, mark: Any = None, *fixtures: str, scope: str = "function"):
        """Make a test with a marker and fixtures of a scope."""
        self.nodeid, self.mark, self.fixturenames = nodeid, mark, fixtures
        known = {name: [SimpleNamespace(scope=scope)] for name in fixtures}
        self._fixtureinfo = SimpleNamespace(name2fixturedefs=known)
        self.groups: list[str] = []

    def get_closest_marker(self, name: str) -> Any:
        """Return its marker, if it is that one."""
        return self.mark if self.mark and self.mark.name == name else None

    def add_marker(self, mark: Any) -> None:
        """Take a group."""
        self.groups.append(mark.mark.args[0])


def test_units_begin_by_their_length_and_stay_together() -> None:
    slow, prove = pytest.mark.slow.mark, pytest.mark.prove.mark
    items: list[Any] = [
        Item("quick.py::one"),
        Item("mixed.py::quick"),
        Item("mixed.py::slow", slow),
        Item("mixed.py::project", slow, "reproduced", scope="session"),
        Item("shared.py::one", prove, "hub", scope="module"),
        Item("shared.py::two", prove, "hub", scope="module"),
        Item("longest.py::one", pytest.mark.prove(minutes=5).mark, "page", scope="module"),
        Item(
            "longest.py::two",
            pytest.mark.prove(minutes=5).mark,
            "page",
            "reproduced",
            scope="module",
        ),
        Item("long.py::one", pytest.mark.prove(minutes=9).mark, "reproduced", scope="session"),
        Item("long.py::two", pytest.mark.prove(minutes=8).mark),
    ]
    balance.group(items)
    balance.arrange(items)
    assert [(item.nodeid, item.groups) for item in items] == [
        ("long.py::one", []),  # makes the small project
        ("long.py::two", []),
        ("shared.py::one", ["shared.py"]),
        ("shared.py::two", ["shared.py"]),
        ("mixed.py::slow", []),
        ("longest.py::one", ["longest.py"]),
        ("longest.py::two", ["longest.py"]),
        ("mixed.py::project", []),  # would have to wait for it
        ("quick.py::one", ["quick.py"]),
        ("mixed.py::quick", ["mixed.py"]),
    ]
