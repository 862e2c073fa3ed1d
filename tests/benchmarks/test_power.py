"""`make drift-power`: its windows are judged as production's are, and its words are checked."""

from pathlib import Path

import frozen
import numpy as np
import pytest
from conftest import Project

from benchmarks import power
from core.dataset import Digits
from core.errors import DigitsError
from digits.monitoring.analysis import Params
from digits.monitoring.drift import Reference
from digits.monitoring.histograms import CLASSES_START, Histograms, bins

pytestmark = pytest.mark.slow

OWN = frozen.section(Params, "monitor")
WIDTH = CLASSES_START + 10


def places(count: int, seed: int, foreign: bool = False) -> np.ndarray:
    """Return places (count, 8) of digits, known or foreign."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 10:18, 10:18] = 255
    uncertainty = rng.beta(2, 5, count) if foreign else rng.beta(0.3, 60, count)
    scores = rng.beta(6, 3, count) if foreign else rng.beta(2, 20, count)
    return bins(images, rng.integers(0, 10, count), 1 - uncertainty, scores)


def summary(rows: np.ndarray) -> Histograms:
    """Return the counts of places."""
    return Histograms(np.bincount(rows.ravel(), minlength=WIDTH))


@pytest.fixture(scope="module", name="reference")
def a_reference() -> Reference:
    """A reference of 4,000 digits."""
    return Reference.fit({"mnist": summary(places(4000, 0))}, "v1")


def test_a_window_is_judged_as_in_production(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "WINDOWS_PER_BATCH", 7)  # in several parts
    known, foreign = places(2000, 1), places(300, 2, foreign=True)
    drawn = power.draw(2000, 300, OWN.window, 0.01, 20, np.random.default_rng(3))
    assert [part.shape for part in drawn] == [(20, 495), (20, 5)]
    raised = power.alarms(known, foreign, drawn, OWN, reference)
    windows = np.stack(
        [
            summary(np.concatenate([known[ours], foreign[theirs]])).counts
            for ours, theirs in zip(*drawn, strict=True)
        ]
    )
    verdicts = [found.window_alert for found in reference.evaluate_windows(windows, OWN.alarm)]
    assert raised.tolist() == verdicts
    assert 0 < raised.mean() < 1  # or the comparison would say nothing


def test_the_interval_knows_that_a_pool_is_small(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "REDRAWS", 30)
    monkeypatch.setattr(power, "WINDOWS_A_REDRAW", 40)
    known = places(2000, 1)

    def width(count: int) -> float:
        mixed = np.concatenate([places(count // 2, 2), places(count // 2, 3, foreign=True)])
        rng = np.random.default_rng(4)
        low, high = power.interval(known, mixed, 0.02, OWN, reference, rng)
        assert low <= high
        return high - low

    assert width(10) > 1.5 * width(1000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.npz"], "absent.npz: not found"),
        (["params.yaml"], "params.yaml: cannot be used"),
    ],
)
def test_handwriting_that_cannot_be_used_is_reported(
    words: list[str], message: str, reproduced: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reproduced.root)
    with pytest.raises(DigitsError, match=message):
        power.main(words)


def test_the_table(
    reproduced: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(reproduced.root)
    for name, value in {"WINDOWS": 20, "REDRAWS": 3, "WINDOWS_A_REDRAW": 5}.items():
        monkeypatch.setattr(power, name, value)
    shapes = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
    np.savez(tmp_path / "klingon.npz", images=shapes, labels=np.zeros(30, np.uint8))
    power.main([str(tmp_path / "klingon.npz")])
    said = capsys.readouterr().out.splitlines()
    rows = [line for line in said if "Evidently is not" in line]
    assert [line.split("  ")[0] for line in rows] == [
        "mnist alone",
        *["devanagari_rendered"] * 3,
        *["japanese_rendered"] * 3,
        *["klingon, real handwriting"] * 3,
    ]
    assert "100.00% [100.00%, 100.00%]" in rows[-1]
    table = said[said.index(rows[-1]) + 1 :]
    assert [line.count("[") for line in table if "[" in line] == [1, 3, 3, 3]


def test_a_reference_of_another_pool_is_reported(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "REFERENCE", tmp_path / "reference.json")
    reference.write(tmp_path / "reference.json")
    few = Digits(np.zeros((20, 28, 28), np.uint8), np.zeros(20, np.uint8), "mnist", False, 10)
    monkeypatch.setattr(power, "read_split", lambda *_: [few])
    with pytest.raises(DigitsError, match="another validation pool"):
        power.main([])


def test_a_script_in_two_parts_is_one(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "REFERENCE", tmp_path / "reference.json")
    monkeypatch.setattr(power, "MODEL", tmp_path / "absent.keras")
    reference.write(tmp_path / "reference.json")
    images, labels = np.zeros((4000, 28, 28), np.uint8), np.zeros(4000, np.uint8)
    parts = [Digits(images[:5], labels[:5], "mnist", True, 10)]
    parts.append(Digits(images[5:], labels[5:], "mnist", False, 10))
    monkeypatch.setattr(power, "read_split", lambda *_: parts)
    with pytest.raises(DigitsError, match=r"absent\.keras"):
        power.main([])
