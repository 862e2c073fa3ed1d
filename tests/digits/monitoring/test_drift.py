"""The detector: its false alarms, its power, its evidence over many windows, its file."""

import dataclasses
from pathlib import Path

import frozen
import numpy as np
import pytest
from scipy.integrate import quad

from core.errors import DigitsError
from digits.monitoring.analysis import Params
from digits.monitoring.drift import Reference, Settings, WindowResult, log_e_value, permutation_p
from digits.monitoring.histograms import CLASSES_START, IMAGE_SIGNALS, Histograms, bins

SETTINGS = frozen.section(Params, "monitor").alarm
WIDTH = CLASSES_START + 10


def requests(count: int, rng: np.random.Generator, foreign: float = 0.0) -> np.ndarray:
    """Return places (count, 8) of requests like MNIST's, a share of them foreign."""
    is_ood = rng.random(count) < foreign
    uncertainty = np.where(is_ood, rng.beta(2, 5, count), rng.beta(0.3, 60, count))
    distance = np.where(is_ood, rng.beta(6, 3, count), rng.beta(2, 20, count))
    images = np.zeros((count, 28, 28), np.uint8)
    images[np.arange(count), 12 + rng.integers(0, 4, count), 10:18] = rng.integers(
        250, 256, (count, 1), np.uint8
    )
    return bins(images, rng.integers(0, 10, count), 1 - uncertainty, distance)


def evaluate(
    reference: Reference, window: Histograms, settings: Settings, before: WindowResult | None = None
) -> WindowResult:
    """Return the result of one window, given that of the window before it."""
    return next(reference.evaluate_windows(window.counts[None], settings, before))


def summary(places: np.ndarray) -> Histograms:
    """Return the counts of places."""
    return Histograms(np.bincount(places.ravel(), minlength=WIDTH))


@pytest.fixture(scope="module", name="reference")
def a_reference() -> Reference:
    """A reference of 5,000 requests."""
    return Reference.fit({"mnist": summary(requests(5000, np.random.default_rng(0)))}, "v1")


def test_p_values_are_those_of_drawing_again_and_again() -> None:
    """The closed form against permutations by hand, without tolerance."""
    rng = np.random.default_rng(0)
    weights = rng.exponential(1, 40) ** 2
    reference, window = rng.integers(0, 40, 40), rng.integers(0, 6, 40)
    window[weights.argmax()] += 3
    pooled = np.repeat(weights, reference + window)
    n = int(window.sum())
    drawn = np.array([rng.permutation(pooled)[:n].sum() for _ in range(20_000)])
    by_hand = (drawn >= (window * weights).sum() - 1e-9).mean()
    found = float(permutation_p(weights, reference, window, 0.0))
    assert 0.01 < by_hand < 0.5
    assert found == pytest.approx(by_hand, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [50, 500])
def test_false_alarms_are_as_rare_as_promised(size: int) -> None:
    """Over many references: the promise holds on average over what is drawn."""
    rng = np.random.default_rng(2)
    pool = requests(20_000, rng)
    window_alert = []
    for _ in range(20):
        reference = Reference.fit({"mnist": summary(rng.choice(pool, 2500))}, "v1")
        windows = [summary(rng.choice(pool, size)) for _ in range(50)]
        window_alert += [evaluate(reference, window, SETTINGS).window_alert for window in windows]
    assert np.mean(window_alert) <= 0.015


def test_few_strangers_are_seen(reference: Reference) -> None:
    rng = np.random.default_rng(3)
    windows = [summary(requests(500, rng, foreign=0.05)) for _ in range(50)]
    assert (
        np.mean([evaluate(reference, window, SETTINGS).window_alert for window in windows]) > 0.95
    )


@pytest.mark.parametrize("signal", [*IMAGE_SIGNALS, "ood_score", "confidence"])
def test_each_signal_sees_its_own_change(reference: Reference, signal: str) -> None:
    rng = np.random.default_rng(4)
    images = np.zeros((300, 28, 28), np.uint8)
    rows, columns = slice(13, 14), slice(10, 18)
    strong = 250
    if signal in ("row", "column"):
        rows, columns = (slice(3, 4), columns) if signal == "row" else (rows, slice(0, 8))
    if signal in ("height", "width"):
        rows, columns = (slice(4, 24), columns) if signal == "height" else (rows, slice(0, 27))
    if signal == "brightness":
        strong = 90
    images[:, rows, columns] = 255 if signal == "ink" else strong
    if signal == "ink":
        images[:, 6:22, 6:22] = 255
    confidence = rng.uniform(0.2, 0.4, 300) if signal == "confidence" else np.full(300, 0.999)
    foreign = rng.uniform(0.9, 1, 300) if signal == "ood_score" else np.full(300, 0.05)
    window = summary(bins(images, rng.integers(0, 10, 300), confidence, foreign))
    assert evaluate(reference, window, SETTINGS).p[signal] < 1e-6


def test_a_change_in_the_mix_of_known_digits_is_no_alarm(reference: Reference) -> None:
    """Signals are one-sided: what looks more usual than usual is no drift; nor are all sevens."""
    rng = np.random.default_rng(5)
    places = requests(5000, rng)
    usual = places[places[:, 0] <= np.median(places[:, 0])][:500]
    usual[:, -1] = CLASSES_START + 7
    found = evaluate(reference, summary(usual), SETTINGS)
    assert found.p["classes"] < 1e-6
    assert not found.window_alert


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_another_mix_of_known_scripts_is_no_alarm(share: float) -> None:
    """Two scripts, one of which looks strange by itself; only a third would be drift."""
    rng = np.random.default_rng(10)
    known = {"mnist": requests(4000, rng), "devanagari": requests(1000, rng, 0.3)}
    reference = Reference.fit({name: summary(places) for name, places in known.items()}, "v1")
    mixed = [requests(500, rng, 0.3 * share) for _ in range(20)]
    assert not any(evaluate(reference, summary(places), SETTINGS).window_alert for places in mixed)
    is_ood = summary(requests(500, rng, 0.6))
    assert evaluate(reference, is_ood, SETTINGS).window_alert


def test_no_request_and_one_request_are_no_drift(reference: Reference) -> None:
    nothing = evaluate(reference, Histograms(np.zeros(WIDTH, np.int64)), SETTINGS)
    assert set(nothing.p.values()) == {1.0}
    assert nothing.evidence == 1
    is_ood = summary(requests(1, np.random.default_rng(6), foreign=1.0))
    one = evaluate(reference, is_ood, SETTINGS)
    assert min(one.p.values()) >= 1 / 5001
    assert not one.drift


def test_only_foreign_digits_from_the_start_are_drift_at_once(reference: Reference) -> None:
    window = summary(requests(500, np.random.default_rng(7), foreign=1.0))
    first = evaluate(reference, window, SETTINGS)
    assert first.drift
    assert first.onset
    assert first.ood_share > 0.9
    assert first.accuracy < 0.25


def test_an_e_value_is_worth_one_on_average() -> None:
    """The integral over p from 0 to 1, in u = -log(p); what lies beyond u = 600 is 1/600."""
    expected = quad(lambda u: np.exp(log_e_value(np.exp(-u)) - u), 0, 600, limit=500)[0]
    assert 0.99 < expected <= 1


def without_drift(references: int, windows: int, settings: Settings) -> list[float]:
    """Return alarms a window, the share of windows in one, and what an e-value is worth on average.

    All over some references, each with clean windows of its own.
    """
    rng = np.random.default_rng(8)
    rises, alarmed, e_values = 0, 0, []
    for _ in range(references):
        reference = Reference.fit({"mnist": summary(requests(2500, rng))}, "v1")
        clean = np.stack([summary(requests(500, rng)).counts for _ in range(windows)])
        on = False
        for verdict in reference.evaluate_windows(clean, settings):
            rises += verdict.drift and not on
            alarmed += verdict.drift
            on = verdict.drift
            shares = {name: share for name, share in settings.shares.items() if share}
            parts = [share * np.exp(log_e_value(verdict.p[name])) for name, share in shares.items()]
            e_values.append(sum(parts))
    count = len(e_values)
    return [rises / count, alarmed / count, sum(e_values) / count]


@pytest.mark.slow
def test_alarms_without_drift_are_seldom() -> None:
    """What makes it so: e-values are worth less than 1, with something to spare."""
    settings = dataclasses.replace(SETTINGS, windows_between_false_alarms=50)
    _, alarmed, worth = without_drift(8, 150, settings)
    assert alarmed <= 1 / 50
    assert 0.5 < worth < 0.7


@pytest.mark.prove
def test_alarms_without_drift_are_as_seldom_as_promised() -> None:
    alarms, _, worth = without_drift(12, 1500, SETTINGS)
    assert alarms <= 1 / SETTINGS.windows_between_false_alarms
    assert worth < 0.7


def test_the_alarm_rises_stays_and_ends(reference: Reference) -> None:
    rng = np.random.default_rng(9)
    shares = [0.0] * 5 + [0.2] * 5 + [0.0] * 30
    verdicts: list[WindowResult] = []
    for share in shares:
        window = summary(requests(500, rng, share))
        verdicts.append(evaluate(reference, window, SETTINGS, verdicts[-1] if verdicts else None))
    drift = [verdict.drift for verdict in verdicts]
    assert drift[:5] == [False] * 5
    assert drift[5:10] == [True] * 5
    assert verdicts[5].onset
    assert drift[11]  # one clean window ends no alarm
    assert not drift[-1]


def test_a_reference_comes_back_from_its_file(reference: Reference, tmp_path: Path) -> None:
    reference.write(tmp_path / "reference.json")
    again = Reference.read(tmp_path / "reference.json")
    assert (again.histograms.counts == reference.histograms.counts).all()
    assert again.model_version == "v1"


def test_a_reference_that_is_no_use_is_reported(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    with pytest.raises(DigitsError, match=r"not found\. Run"):
        Reference.read(path)
    reference.write(path)
    whole = path.read_text()
    for damaged in (
        whole[:200],
        whole.replace('"format":1', '"format":2'),
        whole.replace('"digits":5000', '"digits":4999'),
        whole.replace('"counts":{', '"counts":{"99999":1,'),
        whole.replace('"mnist":', '"mnist":3,"other":'),
        "[]",
        "",
    ):
        assert damaged != whole
        path.write_text(damaged)
        with pytest.raises(DigitsError, match=r"reference\.json: is corrupted .*dvc repro"):
            Reference.read(path)
    with pytest.raises(DigitsError, match="at least 10 digits of each script, found fewer"):
        Reference.fit({"mnist": summary(requests(3, np.random.default_rng(0)))}, "v1")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ood_confidence": 0.9}, "sum to 1"), ({"lokks": 0.0}, "must name")],
)
def test_shares_that_do_not_fit_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        type(SETTINGS)(0.01, 1000, 0.002, SETTINGS.shares | change)
