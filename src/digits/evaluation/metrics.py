"""Evaluation metrics: pure functions of predicted probabilities and true labels."""

import numpy as np
from sklearn.metrics import roc_auc_score

from core.statistics import wilson

MIN_PROBABILITY = 1e-12  # so that the loss is finite for a probability of 0


def accuracy(correct: np.ndarray) -> tuple[float, float, float]:
    """Return the share of True in bool (n,) and its 95 % interval, as `wilson` gives it."""
    return wilson(int(correct.sum()), len(correct))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood of (n,) labels under (n, classes), in nats."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, MIN_PROBABILITY)).mean())


def reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int
) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and count of each non-empty bin of equal width."""
    index = np.minimum((confidence.astype(np.float64) * bins).astype(int), bins - 1)
    return [
        (
            float(confidence[inside].mean(dtype=np.float64)),
            float(correct[inside].mean()),
            int(inside.sum()),
        )
        for inside in (index == number for number in range(bins))
        if inside.any()
    ]


def calibration_error(table: list[tuple[float, float, int]]) -> float:
    """Return the expected calibration error of a reliability table (Guo et al., ICML 2017)."""
    total = sum(count for _, _, count in table)
    return sum(count * abs(confidence - right) for confidence, right, count in table) / total


def auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """Return the AUROC of a score that should be higher for known digits than for foreign ones."""
    truth = np.repeat([1, 0], [len(known), len(foreign)])
    return float(roc_auc_score(truth, np.concatenate([known, foreign])))
