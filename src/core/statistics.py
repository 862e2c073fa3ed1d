"""The confidence interval of a share, as all reports show it."""

from scipy.stats import binomtest


def wilson(successes: int, total: int) -> tuple[float, float, float]:
    """Return the share of successes and the bounds of its 95 % interval; `total` is at least 1.

    Wilson's score interval (Journal of the American Statistical Association 22, 1927). It assumes
    independent trials: it is too narrow for simulated production, which repeats images.
    """
    interval = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return successes / total, float(interval.low), float(interval.high)
