"""Requests as counts: what is counted, and that the parts sum to the whole."""

import numpy as np
import pytest
from conftest import random_digits
from histogram import histograms

from digits.monitoring.histograms import (
    CLASSES_START,
    IMAGE_SIGNALS,
    JOINT_SHAPE,
    SIGNALS,
    Histograms,
    bins,
    signal_bins,
    statistics,
)


def answers(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return images, labels, confidence and foreign of requests that differ."""
    rng = np.random.default_rng(seed)
    images = random_digits(count).images
    return images, rng.integers(0, 10, count), rng.random(count), rng.random(count)


def counted(columns: tuple[np.ndarray, ...], part: np.ndarray | slice = slice(None)) -> Histograms:
    """Return the summary of some of the requests."""
    images, labels, confidence, foreign = (column[part] for column in columns)
    return histograms(images, labels, confidence, foreign)


def test_parts_sum_to_the_whole_in_any_order() -> None:
    columns = answers(300)
    whole = counted(columns)
    rng = np.random.default_rng(1)
    for _ in range(5):
        parts = np.split(rng.permutation(300), np.sort(rng.integers(0, 300, 4)))
        one, two, three, four, five = (counted(columns, part) for part in parts)
        for total in (one + two + three + four + five, (five + (three + one)) + (four + two)):
            assert (total.counts == whole.counts).all()
    assert len(whole) == 300


def test_a_summary_has_one_size_whatever_its_requests() -> None:
    assert {counted(answers(count)).counts.nbytes for count in (1, 5000)} == {11_152}


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.5, 1.0])
def test_every_value_has_a_bin(value: float) -> None:
    images = np.zeros((1, 28, 28), np.uint8)
    place = bins(images, np.array([9]), np.array([value]), np.array([value]))
    assert (place >= 0).all()
    assert place[0, 0] < JOINT_SHAPE[0] * JOINT_SHAPE[1]
    assert place[0, -1] == CLASSES_START + 9


def test_statistics_of_known_images() -> None:
    images = np.zeros((3, 28, 28), np.uint8)
    images[0, 10, 4:8] = 128  # a dim line, high and to the left
    images[1] = 255
    line, full, blank = statistics(images)
    named = dict(zip(IMAGE_SIGNALS, line, strict=True))
    assert named["brightness"] == pytest.approx(128 / 255)
    assert named["column"] == pytest.approx(6 / 28)
    assert named["row"] == pytest.approx(10.5 / 28)
    assert named["height"] == 0
    assert 0.1 < named["width"] < 0.2
    assert named["ink"] == pytest.approx(4 * 4 * 128 / (255 * 784))
    assert full.max() == 1
    assert not blank.any()


def test_each_signal_counts_every_request() -> None:
    counts = counted(answers(70)).counts
    for signal in SIGNALS[:-1]:
        assert signal_bins(counts, signal).sum() == 70
        assert signal_bins(np.stack([counts, counts]), signal).shape[0] == 2


def test_no_request_is_an_empty_summary() -> None:
    nothing = np.zeros(0)
    images = np.zeros((0, 28, 28), np.uint8)
    assert len(histograms(images, nothing.astype(int), nothing, nothing)) == 0
