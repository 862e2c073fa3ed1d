"""Statistics that several parts of the project report."""

from scipy.stats import binomtest


def wilson(successes: int, total: int) -> tuple[float, float, float]:
    """Return the share of successes and its 95 % interval; `total` is at least 1.

    The interval is Wilson's (Journal of the American Statistical Association 22, 1927). It takes
    each trial as independent: where simulated production repeats images of a pool, it is too
    narrow.
    """
    interval = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return successes / total, float(interval.low), float(interval.high)
