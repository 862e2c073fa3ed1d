"""The order of tests that two processes share: what takes longest begins first.

pytest-xdist (`--dist worksteal`) gives each process a half; a process that is done takes over half
of what the other still has, from its end. So the long tests come first, of each module in a row,
since its tests share what its fixtures set up. The modules that need the small project (fixture
`reproduced`) come before all others: one process makes it while the other runs quick tests.
"""

import pytest

MINUTES = {"prove": 0.7, "slow": 0.1}  # on average, where a marker does not say how many
QUICK_MINUTES = 0.002


def module(item: pytest.Item) -> str:
    """Return the path of the module of a test."""
    return item.nodeid.partition("::")[0]


def minutes(item: pytest.Item) -> float:
    """Return about how long a test takes, by its markers."""
    for name, usual in MINUTES.items():
        if marker := item.get_closest_marker(name):
            return float(marker.kwargs.get("minutes", usual))
    return QUICK_MINUTES


def arrange(items: list[pytest.Item]) -> None:
    """Put tests in the order in which they are to run."""
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(module(item), []).append(item)

    def rank(name: str) -> tuple[bool, float]:
        tests = modules[name]
        project = any("reproduced" in getattr(test, "fixturenames", ()) for test in tests)
        return not project, -sum(map(minutes, tests))

    items[:] = [item for name in sorted(modules, key=rank) for item in modules[name]]
