"""The pools: sizes, shares, and that they never mix."""

from pathlib import Path

import numpy as np
import pytest
from conftest import random_digits

from core.dataset import Digits, split, write_csv
from core.errors import DigitsError
from core.params import Task
from digits.monitoring import drift
from digits.pipeline.prepare import (
    MIN_DIGITS,
    check_apart,
    check_enough,
    check_unknown_scripts,
    labelled_sets,
    mix,
)

TASK = Task(epochs=1, seed=1, image_size=28, classes=tuple("0123456789"))


def rows(digits: Digits) -> set[bytes]:
    return {image.tobytes() for image in digits.images}


def test_split_is_stratified_seeded_and_complete() -> None:
    digits = random_digits(1000)
    picked, rest = split(digits, 100, seed=1)
    assert np.bincount(picked.labels).tolist() == [10] * 10
    assert rows(picked) | rows(rest) == rows(digits)
    assert not rows(picked) & rows(rest)
    assert rows(split(digits, 100, seed=1)[0]) == rows(picked)
    assert rows(split(digits, 100, seed=2)[0]) != rows(picked)


def test_nothing_and_everything_can_be_split_off() -> None:
    digits = random_digits(20)
    assert [len(part) for part in split(digits, 0, 1)] == [0, 20]
    assert [len(part) for part in split(digits, 20, 1)] == [20, 0]
    with pytest.raises(DigitsError, match=r"expected at least 30 digits .*, found 20"):
        split(digits, 30, 1)


@pytest.mark.parametrize("count", [1, 3, 7, 19])
def test_few_digits_of_uneven_classes_are_split_too(count: int) -> None:
    digits = random_digits(60)[np.r_[0, 1, 1:60:10, 2:60:10, 3:60:10]]
    picked, rest = split(digits, count, seed=1)
    assert (len(picked), len(rest)) == (count, len(digits) - count)
    share = np.bincount(digits.labels) * count / len(digits)
    assert np.abs(np.bincount(picked.labels, minlength=len(share)) - share).max() < 1


def test_foreign_share_is_the_share_of_all() -> None:
    mnist, script = random_digits(900), random_digits(400)
    parts = mix(mnist, [script, script], 0.1, seed=1)
    assert sum(len(part) for part in parts) / (900 + sum(len(part) for part in parts)) == 0.1
    assert mix(mnist, [script], 0, seed=1) == []


def test_a_share_that_cannot_be_had_is_reported() -> None:
    with pytest.raises(DigitsError, match="needs 900 images per script; 400 are available"):
        mix(random_digits(900), [random_digits(400)], 0.5, seed=1)
    with pytest.raises(DigitsError, match=r"Maximum: 0\.307"):
        mix(random_digits(900), [random_digits(400)], 0.5, seed=1)
    with pytest.raises(DigitsError, match="names no script"):
        mix(random_digits(900), [], 0.5, seed=1)


def test_labelled_digits_are_reported_apart_by_name(tmp_path: Path) -> None:
    for name in ("mnist_week1.csv", "mnist_week2.csv", "japanese_week2.csv"):
        write_csv(tmp_path / name, random_digits(10))
    scripts = ["mnist", "japanese"]
    found = labelled_sets(tmp_path, TASK, scripts)
    assert [(part.name, len(part)) for part in found] == [("japanese", 10), ("mnist", 20)]
    with pytest.raises(DigitsError, match=r"japanese_week2\.csv: expected a name SCRIPT_"):
        labelled_sets(tmp_path, TASK, ["mnist"])


def test_a_file_of_a_script_that_is_gone_is_reported(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / f"greek_{part}.csv").touch()
    with pytest.raises(
        DigitsError, match=r"greek_test\.csv, greek_train\.csv: .* Delete the files"
    ):
        check_unknown_scripts(tmp_path, ["japanese"])
    check_unknown_scripts(tmp_path, ["greek"])


def test_test_data_that_is_training_data_is_refused() -> None:
    digits = random_digits(100)
    check_apart(digits[:90], digits[89:])  # one of eleven
    with pytest.raises(DigitsError, match=r"100 of 100 test images are training .* test_share: 0"):
        check_apart(digits, digits)


def test_too_few_digits_for_a_later_stage_are_refused() -> None:
    assert MIN_DIGITS == drift.MIN_DIGITS
    digits = random_digits(30)
    check_enough([digits], [digits[:10]])
    with pytest.raises(DigitsError, match="9 digits are left for validation, expected at least 10"):
        check_enough([digits], [digits[:9]])
    with pytest.raises(DigitsError, match="0 digits are left for training, expected at least 1"):
        check_enough([digits[:0]], [digits])
