"""balance.py: modules stay together, and the longest begins first."""

from typing import Any

import balance
import pytest


class Item:
    """As much of a test as is asked for."""

    def __init__(self, nodeid: str, mark: Any = None, *fixtures: str):
        """Make a test with a marker and fixtures."""
        self.nodeid, self.mark, self.fixturenames = nodeid, mark, fixtures

    def get_closest_marker(self, name: str) -> Any:
        """Return its marker, if it is that one."""
        return self.mark if self.mark and self.mark.name == name else None


def test_modules_stay_together_and_the_longest_begins() -> None:
    slow, prove = pytest.mark.slow.mark, pytest.mark.prove.mark
    items: list[Any] = [
        Item("quick.py::one"),
        Item("mixed.py::quick"),
        Item("mixed.py::slow", slow),
        Item("long.py::one", pytest.mark.prove(minutes=9).mark),
        Item("project.py::one", slow),
        Item("project.py::two", slow, "reproduced"),
        Item("mixed.py::prove", prove),
        Item("long.py::two", slow),
    ]
    balance.arrange(items)
    assert [item.nodeid for item in items] == [
        "project.py::one",
        "project.py::two",
        "long.py::one",
        "long.py::two",
        "mixed.py::quick",
        "mixed.py::slow",
        "mixed.py::prove",
        "quick.py::one",
    ]
