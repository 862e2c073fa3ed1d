"""The benchmark: what it counts, and that it runs."""

import pytest
from conftest import ROOT, Project

from benchmarks.bench import Clock, step_operations, until_goal
from digits.model import network

pytestmark = pytest.mark.slow


def test_the_operations_are_those_of_the_convolutions() -> None:
    convolutions = [
        2 * 13**2 * 4**2 * 24,
        2 * 11**2 * 3**2 * 24 * 48,
        2 * 5**2 * 3**2 * 48 * 64,
        2 * 3**2 * 3**2 * 64 * 96,
    ]
    dense = 2 * 3**2 * 96 * 10
    expected = 3 * (sum(convolutions) + dense) - convolutions[0]
    assert step_operations(network.build(28, 10)) == expected


def test_the_goal_is_reached_by_the_first_epoch_above_it() -> None:
    result = {"epochs": [(1.0, 0.98), (2.0, 0.99), (3.0, 0.991), (4.0, 0.989), (5.0, 0.995)]}
    assert until_goal(result) == (3.0, 3)
    assert until_goal({"epochs": [(1.0, 0.5)]}) == (float("inf"),) * 2


def test_scoring_takes_no_time_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("benchmarks.bench.time.perf_counter", lambda: now)

    def score() -> float:
        nonlocal now
        now += 50
        return 0.5

    clock = Clock(score)
    for _ in range(2):
        now += 3
        clock.epoch()
    assert clock.epochs == [(3.0, 0.5), (6.0, 0.5)]


@pytest.mark.prove
def test_it_runs_and_prints_the_figures(project: Project) -> None:
    output = project.run("python", str(ROOT / "tests/benchmarks"), "bench", "--repetitions", "1")
    for name, epochs in (("fast", 1), ("default", 1), ("convnet", 15), ("pinned", 15)):
        assert f"1 of 1: {name}" in output
        row = next(line for line in output.splitlines() if line.startswith(name))
        assert row.split()[-2] == f"{epochs}"
    for goal in ("convnet to 99.0%", "default, share of", "share of the peak"):
        assert any(line.startswith(goal) for line in output.splitlines()), goal
    assert "model folder 1." in output  # MB, smoke.jsonl among it
