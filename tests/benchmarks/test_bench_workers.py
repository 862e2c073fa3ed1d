"""What more machines bring: the arithmetic, and a run that is too short to mean anything."""

import os
import re

import pytest
from conftest import ROOT, Project

from benchmarks import bench_workers

pytestmark = pytest.mark.slow


def test_bytes_and_turns_are_those_of_a_ring() -> None:
    alone = bench_workers.reduced(0.01, 125_000, 1, "1 Gbit/s")
    assert alone == 0.01
    # 125,000 weights are 4 Mbit: two machines send them once, four 1.5 times.
    two, four = (bench_workers.reduced(0.01, 125_000, n, "1 Gbit/s") for n in (2, 4))
    assert two == pytest.approx(0.01 + 0.004 + 2 * 2e-4)
    assert four == pytest.approx(0.01 + 0.006 + 6 * 2e-4)
    assert bench_workers.reduced(0.01, 125_000, 4, "10 Gbit/s") < two


@pytest.mark.prove
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a core each needs Linux")
def test_a_short_run(reproduced: Project) -> None:
    said = reproduced.run(
        "python", str(ROOT / "tests/benchmarks"), "bench_workers", "--runs", "1", "--steps", "10"
    )
    assert len(re.findall(r"ms a step, +[\d,]+ a second", said)) == 4
    assert len(re.findall(r"times the digits of one", said)) == 6
