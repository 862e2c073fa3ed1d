"""The endpoint's benchmark: it runs, and prints every figure with its goal."""

import pytest
from conftest import ROOT, Project

from benchmarks.bench_serve import GOALS, SERVERS

pytestmark = pytest.mark.slow


@pytest.mark.prove
def test_it_runs_and_prints_the_figures(project: Project) -> None:
    short = ("--seconds", "0.3", "--repetitions", "1", "--requests", "20", "--images", "9000")
    output = project.run("python", str(ROOT / "tests/benchmarks"), "bench_serve", *short)
    lines = output.splitlines()
    for name in SERVERS:
        assert any(line.startswith(name) for line in lines), name
    for name, *_ in GOALS:
        assert any(line.startswith(name) for line in lines), name
