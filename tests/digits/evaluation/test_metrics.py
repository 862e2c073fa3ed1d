"""Figures on cases whose value is known."""

import numpy as np
import pytest

from digits.evaluation import metrics


def test_accuracy_and_wilsons_interval() -> None:
    share, low, high = metrics.accuracy(np.repeat([True, False], [95, 5]))
    # Wilson's interval of 95 in 100 (R: binom.confint(95, 100, method = "wilson")).
    assert (share, low, high) == pytest.approx((0.95, 0.8882, 0.9785), abs=1e-4)


def test_log_loss() -> None:
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75]], np.float32)
    expected = -(np.log(0.5) + np.log(0.75)) / 2
    assert metrics.log_loss(probabilities, np.array([0, 1])) == pytest.approx(expected)
    assert np.isfinite(metrics.log_loss(np.array([[1.0, 0.0]]), np.array([1])))


def test_calibration_error() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False, True, False])
    table = metrics.reliability(confidence, correct, bins=10)
    assert [count for _, _, count in table] == [2, 4]
    assert metrics.calibration_error(table) == pytest.approx((4 * 0.20 + 2 * 0.05) / 6)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    assert metrics.reliability(np.ones(3), np.ones(3, bool), bins=15) == [(1.0, 1.0, 3)]


def test_separation() -> None:
    assert metrics.auroc(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 1
    assert metrics.auroc(np.array([0.9, 0.1]), np.array([0.9, 0.1])) == 0.5
