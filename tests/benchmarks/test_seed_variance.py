"""The noise of seeds: figures of a spread, and the one command that stores them."""

import json

import pytest
from conftest import ROOT, Project

from benchmarks.seed_variance import main, spread


def test_a_spread_is_that_of_the_textbook() -> None:
    runs = [{"mnist": {"accuracy": value}} for value in (0.2, 0.4, 0.9)]
    figures = spread(runs)["mnist"]["accuracy"]
    assert figures == {"mean": 0.5, "deviation": 0.360555, "least": 0.2, "most": 0.9}


@pytest.mark.prove
def test_two_seeds_are_trained_and_stored(project: Project) -> None:
    output = project.run("python", str(ROOT / "tests/benchmarks"), "seed_variance", "--seeds", "2")
    assert "seed 2: mnist" in output
    noise = json.loads((project.root / "data" / "noise.json").read_text("utf-8"))
    assert noise["seeds"] == [1, 2]
    accuracy = noise["metrics"]["mnist"]["accuracy"]
    assert accuracy["least"] < accuracy["mean"] < accuracy["most"]
    figures = json.loads((project.root / "data/evaluation/metrics.json").read_text("utf-8"))
    assert figures["mnist"]["accuracy"] in (accuracy["least"], accuracy["most"])
    assert project.git("status", "--porcelain").split() == ["M", "data/noise.json"]


def test_one_seed_is_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds", "1"])
    assert "--seeds is 1: a spread needs 2 at least" in capsys.readouterr().err
