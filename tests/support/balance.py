"""Share tests out to the processes of pytest-xdist so that all end at about the same time.

A unit is what one process runs in a row: a test marked `slow` or `prove` alone, or, where tests
share what a fixture of their module has set up, and for quick tests, all of the module. The
processes take one unit after the other, the longest first. The small project (fixture
`reproduced`), for which a process has to wait while another makes it, is made at once by the
first one, and the other tests that need it come late.
"""

from collections.abc import Iterable

import pytest

SHARED = {"class", "module", "package"}  # scopes of fixtures that tie tests together
MINUTES = {"prove": 0.7, "slow": 0.1}  # on average, where a marker does not say how many
QUICK_MINUTES = 0.002


def unit(item: pytest.Item) -> str:
    """Return the name of the unit that a test belongs to."""
    known = getattr(item, "_fixtureinfo", None)
    fixtures = known.name2fixturedefs if known else {}
    shares = any(found.scope in SHARED for defined in fixtures.values() for found in defined)
    lasts = item.get_closest_marker("slow") or item.get_closest_marker("prove")
    return item.nodeid if lasts and not shares else item.nodeid.partition("::")[0]


def minutes(item: pytest.Item) -> float:
    """Return about how long a test takes, by its markers."""
    for name, usual in MINUTES.items():
        if marker := item.get_closest_marker(name):
            return float(marker.kwargs.get("minutes", usual))
    return QUICK_MINUTES


def needs_project(items: Iterable[pytest.Item]) -> bool:
    """Return whether any of the tests needs the small project."""
    return any("reproduced" in getattr(item, "fixturenames", ()) for item in items)


def group(items: list[pytest.Item]) -> None:
    """Name the unit of tests that share one, for `--dist loadgroup`."""
    for item in items:
        if (name := unit(item)) != item.nodeid:
            item.add_marker(pytest.mark.xdist_group(name))


def arrange(items: list[pytest.Item]) -> None:
    """Put tests in the order in which their units are to begin."""
    units: dict[str, list[pytest.Item]] = {}
    for item in items:
        units.setdefault(unit(item), []).append(item)
    longest = sorted(units, key=lambda name: -sum(map(minutes, units[name])))
    late = [name for name in longest if needs_project(units[name])]
    first = [name for name in late if needs_project(units[name][:1])][:1]
    order = [name for name in longest if name not in late] + late
    order = first + [name for name in order if name not in first]
    quick = [name for name in order if sum(map(minutes, units[name])) < MINUTES["slow"]]
    order = [name for name in order if name not in quick] + quick
    items[:] = [item for name in order for item in units[name]]
