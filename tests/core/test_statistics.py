"""Wilson's interval against values of its paper's formula."""

import math

import pytest

from core.statistics import wilson


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (0, 20), (90, 100), (500, 1000)])
def test_wilson_is_the_formula(successes: int, total: int) -> None:
    z, share = 1.959963984540054, successes / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) * z / (1 + z**2 / total)
    assert wilson(successes, total) == pytest.approx((share, middle - half, middle + half))
