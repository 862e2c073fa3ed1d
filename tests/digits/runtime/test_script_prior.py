"""Predictions given the script: it decides between similar characters, as a prior only."""

import numpy as np

from digits.runtime.script_prior import condition_on_script


def joint(**probabilities: float) -> np.ndarray:
    """Return float32 (1, 2, 3): the probability of script s and digit d is given as s_d."""
    table = np.zeros((1, 2, 3), np.float32)
    for name, probability in probabilities.items():
        script, digit = name.removeprefix("p").split("_")
        table[0, int(script), int(digit)] = probability
    return table


def test_a_look_alike_is_read_in_the_script_that_was_told() -> None:
    found = joint(p0_1=0.9, p1_2=0.1)
    assert condition_on_script(found, 0).argmax() == 1
    assert condition_on_script(found, 1).argmax() == 2
    assert np.allclose(condition_on_script(found, 1).sum(axis=1), 1)


def test_what_hardly_looks_like_the_script_is_read_as_it_looks() -> None:
    found = joint(p0_0=0.99999, p1_1=0.00001)
    assert condition_on_script(found, 1).argmax() == 0


def test_a_model_of_one_script_changes_nothing() -> None:
    found = np.array([[[0.25, 0.75, 0.0]]], np.float32)
    assert np.array_equal(condition_on_script(found, 0), found[:, 0])
