"""Detect drift without labels: compare windows of requests with a reference.

Input: histograms of requests. Output: for each window, p-values, evidence and the alarm.

A signal gives each bin a weight that grows with the tail probability of the bin in the reference.
All signals are one-sided: requests that are rare in the reference count, a changed mix of frequent
ones does not.

- One window: the sum of weights is compared with its permutation distribution over the reference
  and the window together, by its three exact moments and a Pearson type III tail (Mielke and
  Berry, "Permutation Methods", 2001), which includes the finite size of the reference. Signals
  share the false alarm rate by weights (Genovese et al., Biometrika 93, 2006).
- Successive windows: p-values become e-values (Vovk and Wang, Annals of Statistics 49, 2021),
  whose maximal product over starts is the evidence (CUSUM e-detector: Shin, Ramdas and Rinaldo,
  New England Journal of Statistics in Data Science 2, 2024). Without drift it reaches
  `windows_between_false_alarms` at most once in that many windows on average, if the mean e-value
  is at most 1. Because all windows are compared with the same reference, the mean may be higher:
  on MNIST 1.2, and 2.4 with the worst of 24 redrawn references. `tolerated_share` reduces these to
  0.7 and 1.05.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.special import chdtrc, gammainc, gammaincc, gammaln, ndtr

from core.errors import DigitsError
from core.files import write_text
from core.params import strict
from digits.monitoring.histograms import (
    CLASSES_START,
    IMAGE_BINS,
    IMAGE_SIGNALS,
    IMAGES_START,
    JOINT_SHAPE,
    SIGNALS,
    Histograms,
    signal_bins,
)

FORMAT = 1  # version of reference.json
# The weight of a bin is the log-likelihood ratio of a contamination by OOD digits, whose tail
# probabilities p have the density a * p^(a - 1), a calibrator of Vovk and Wang.
CONTAMINATION, CALIBRATOR_EXPONENT = 0.05, 0.2
TAIL = 0.05  # tail probability below which the share of OOD digits is estimated
MIN_DIGITS = 10  # of a script in the reference
MIX_STEPS, ACCELERATION = 50, 4  # of expectation maximisation; the exponent of each update
SMALLEST_P = 1e-300
WINDOWS_PER_BATCH = 200  # windows: 3 MB
MIN_TAIL = 1e-3  # minimum tail probability: below it the reference has only a few digits

Share = Annotated[float, Field(ge=0, le=1)]


@strict
class Settings:
    """Settings of the drift test: params.yaml's section `monitor.alarm`."""

    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]  # of the test of a single window
    windows_between_false_alarms: Annotated[int, Field(ge=2)]  # on average, of successive windows
    tolerated_share: Annotated[float, Field(ge=0, lt=0.5)]  # of OOD requests that is no drift
    shares: dict[str, Share]  # of the false alarm rate, by signal; 0: reported, never alarms

    def __post_init__(self) -> None:
        """Raise ValueError unless the shares name all signals and sum to 1."""
        if set(self.shares) != set(SIGNALS):
            raise ValueError(f"shares must name {', '.join(SIGNALS)}")
        if not math.isclose(sum(self.shares.values()), 1):
            raise ValueError("shares must sum to 1")


def tail_probability(counts: np.ndarray) -> np.ndarray:
    """Return, for each bin (b,) of a reference, the share of its counts in that bin and above."""
    above = np.cumsum(counts[::-1])[::-1]
    return (above + 0.5) / (counts.sum() + 1)


def bin_weights(probabilities: np.ndarray) -> np.ndarray:
    """Return the weights of bins with these tail probabilities."""
    probabilities = np.maximum(probabilities, MIN_TAIL)
    return np.log1p(
        CONTAMINATION * (CALIBRATOR_EXPONENT * probabilities ** (CALIBRATOR_EXPONENT - 1) - 1)
    )


def permutation_p(
    weights: np.ndarray, reference: np.ndarray, windows: np.ndarray, tolerated_share: float
) -> np.ndarray:
    """Return the permutation p-value (...) of each window's mean weight.

    `weights` (b,) are those of the bins, `windows` (..., b) and `reference` (..., b) or (b,) the
    counts. The sum over a window is that of n draws without replacement from N, whose mean,
    variance and skewness are exact. A p-value is at least 1 / the number of possible draws. The
    share `tolerated_share` of a window may have the maximum weight without effect.
    """
    n = windows.sum(axis=-1).astype(np.float64)
    total = n + reference.sum(axis=-1)
    centred = weights - weights.min()
    within = [windows @ centred**power for power in (1, 2, 3)]
    first, second, third = (
        (inside + reference @ centred**power) / total
        for power, inside in enumerate(within, start=1)
    )
    variance = second - first**2
    third = third - 3 * first * second + 2 * first**3
    with np.errstate(all="ignore"):  # p is 1 without variance, or for an empty window or reference
        deviation = np.sqrt(n * variance * (total - n) / (total - 1))
        tolerated = n * tolerated_share * (centred.max() - first)
        z = (within[0] - n * first - tolerated) / deviation
        skewness = third / variance**1.5 * (total - 2 * n) / (total - 2)
        skewness = skewness * np.sqrt((total - 1) / (n * (total - n)))
        p = pearson_tail(z, skewness)
        ways = gammaln(total + 1) - gammaln(n + 1) - gammaln(total - n + 1)
        p = np.clip(p, np.maximum(np.exp(-ways), SMALLEST_P), 1)
    return np.where((variance > 1e-12) & (n > 0) & (n < total), p, 1.0)


def pearson_tail(z: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Return the tail probability at z of a Pearson type III distribution, mean 0, variance 1."""
    shape = 4 / np.maximum(skewness**2, 1e-8)
    above = gammaincc(shape, np.maximum(shape + z * np.sqrt(shape), 0))
    below = gammainc(shape, np.maximum(shape - z * np.sqrt(shape), 0))
    return np.where(np.abs(skewness) < 1e-4, ndtr(-z), np.where(skewness > 0, above, below))


def log_e_value(p: float) -> float:
    """Return the log e-value of a p-value, by Vovk and Wang's parameter-free calibrator."""
    if p > 1 - 1e-6:
        return math.log(0.5)
    log_p = math.log(p)
    return math.log((1 - p + p * log_p) / (p * log_p**2))


@dataclass(frozen=True)
class WindowResult:
    """The result of the drift test of a window.

    p: p-value of each signal
    p_value: combined p-value of the window
    window_alert: whether it is at most the false alarm rate, for this window alone
    evidence: for drift, of this and the preceding windows; from 1 to the limit of an alarm
    drift: whether the alarm is active: from reaching the limit until the evidence is 1 again
    onset: whether the evidence starts to grow from 1 in this window
    ood_share: estimated share of out-of-distribution requests
    accuracy: estimated without labels
    """

    p: dict[str, float]
    p_value: float
    window_alert: bool
    evidence: float
    drift: bool
    onset: bool
    ood_share: float
    accuracy: float


@dataclass(frozen=True)
class Reference:
    """The in-distribution data: histograms of the validation split, by script.

    The mix of scripts in production may differ from that of the split, so a window is compared with
    the mix that matches it best.
    """

    scripts: dict[str, Histograms]
    model_version: str

    @classmethod
    def fit(cls, scripts: dict[str, Histograms], model_version: str) -> "Reference":
        """Return the reference; raise DigitsError when a script has too few digits."""
        few = [name for name, histograms in scripts.items() if len(histograms) < MIN_DIGITS]
        if few or not scripts:
            raise DigitsError(
                f"the reference: expected at least {MIN_DIGITS} digits of each script, found fewer "
                f"of {', '.join(few) or 'all'}. Increase prepare.validation_share."
            )
        return cls(scripts, model_version)

    @cached_property
    def histograms(self) -> Histograms:
        """The histograms of all scripts together."""
        return Histograms(
            np.sum([histograms.counts for histograms in self.scripts.values()], axis=0)
        )

    def matched_reference(self, windows: np.ndarray) -> np.ndarray:
        """Return the reference's counts (..., bins), with scripts mixed as in windows (..., bins).

        The shares maximise the composite likelihood of the marginal statistics by expectation
        maximisation. The counts are scaled to the effective sample size of the mix.
        """
        counts = np.stack([histograms.counts for histograms in self.scripts.values()])
        digits = np.array([len(histograms) for histograms in self.scripts.values()])
        if len(digits) == 1:
            return counts[0]
        marginal, seen = _marginals(counts), _marginals(windows)
        pooled = (marginal.sum(axis=0) + 1e-9) / digits.sum()
        density = (marginal + pooled) / (digits[:, None] + 1)  # (scripts, bins)
        shares = np.broadcast_to(digits / digits.sum(), (*windows.shape[:-1], len(digits)))
        total = np.maximum(seen.sum(axis=-1, keepdims=True), 1)
        for _ in range(MIX_STEPS):
            likelier = (seen / (shares @ density)) @ density.T / total
            found = shares * likelier**ACCELERATION
            shares = found / np.maximum(found.sum(axis=-1, keepdims=True), 1e-12)
        effective_size = 1 / np.maximum((shares**2 / digits).sum(axis=-1, keepdims=True), 1e-12)
        return np.asarray((shares * effective_size) @ (counts / digits[:, None]))

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights of each signal's bins: (40, 24) for `ood_confidence`, otherwise (b,)."""
        return {signal: self._weights(signal) for signal in SIGNALS if signal != "classes"}

    def _weights(self, signal: str) -> np.ndarray:
        looks = self.histograms.joint
        ood, uncertainty = tail_probability(looks.sum(axis=1)), tail_probability(looks.sum(axis=0))
        if signal == "ood_score":
            return bin_weights(ood)
        if signal == "confidence":
            return bin_weights(uncertainty)
        if signal == "ood_confidence":  # joint, by Fisher's method of combining p-values
            product = np.multiply.outer(ood, uncertainty).ravel()
            order = np.argsort(-product, kind="stable")
            joint = np.empty(len(order))
            joint[order] = tail_probability(looks.ravel()[order])
            return bin_weights(joint).reshape(JOINT_SHAPE)
        counts = self.histograms.image[IMAGE_SIGNALS.index(signal)]
        sides = np.minimum(tail_probability(counts), tail_probability(counts[::-1])[::-1])
        return bin_weights(np.minimum(2 * sides, 1))

    def p_values(
        self, windows: np.ndarray, matched: np.ndarray, tolerated_share: float
    ) -> dict[str, np.ndarray]:
        """Return the p-value (...) of each signal for windows and their matched references."""
        found = {
            signal: permutation_p(
                weights.ravel(),
                signal_bins(matched, signal),
                signal_bins(windows, signal),
                tolerated_share,
            )
            for signal, weights in self.weights.items()
        }
        found["classes"] = _class_mix_p(matched[..., CLASSES_START:], windows[..., CLASSES_START:])
        return found

    def evaluate_windows(
        self, windows: np.ndarray, settings: Settings, before: WindowResult | None = None
    ) -> Iterator[WindowResult]:
        """Yield the result of each of n successive windows, given their counts (n, b)."""
        for start in range(0, len(windows), WINDOWS_PER_BATCH):
            counts = windows[start : start + WINDOWS_PER_BATCH]
            matched = np.broadcast_to(self.matched_reference(counts), counts.shape)
            found = self.p_values(counts, matched, settings.tolerated_share)
            for number, count in enumerate(counts):
                p = {signal: float(values[number]) for signal, values in found.items()}
                before = self._evaluate(Histograms(count), matched[number], p, settings, before)
                yield before

    def _evaluate(
        self,
        window: Histograms,
        matched: np.ndarray,
        p: dict[str, float],
        settings: Settings,
        before: WindowResult | None,
    ) -> WindowResult:
        used = {name: share for name, share in settings.shares.items() if share > 0}
        p_value = min(1.0, min(p[name] / share for name, share in used.items()))
        log_e = [math.log(share) + log_e_value(p[name]) for name, share in used.items()]
        step = float(np.logaddexp.reduce(log_e)) if len(window) else 0.0
        evidence, drift = (before.evidence, before.drift) if before else (1.0, False)
        limit = math.log(settings.windows_between_false_alarms)
        level = min(max(math.log(evidence) + step, 0.0), limit)
        return WindowResult(
            p=p,
            p_value=p_value,
            window_alert=p_value <= settings.false_alarm_rate,
            evidence=math.exp(level),
            drift=level >= limit or (drift and level > 0),
            onset=evidence <= 1 and level > 0,
            ood_share=self.excess_tail_share(window, matched, "ood_confidence"),
            accuracy=self.accuracy(window, matched),
        )

    def excess_tail_share(self, window: Histograms, matched: np.ndarray, signal: str) -> float:
        """Return an estimate of the share of OOD requests, by the tail of one signal.

        It is the excess of the window over the reference in the reference's tail, assuming that all
        OOD requests are there, and so a lower bound on average (Blanchard, Lee and Scott,
        "Semi-Supervised Novelty Detection", JMLR 11, 2010).
        """
        tail = self.weights[signal].ravel() >= bin_weights(np.array(TAIL))
        expected = signal_bins(matched, signal)
        known = float(expected[tail].sum() / max(expected.sum(), 1))
        found = float(signal_bins(window.counts, signal)[tail].sum()) / max(len(window), 1)
        return max(0.0, (found - known) / (1 - known))

    def accuracy(self, window: Histograms, matched: np.ndarray) -> float:
        """Return an estimate of a window's accuracy without labels.

        For in-distribution requests it is the mean confidence of the reference. For OOD requests it
        is chance level, because the model is overconfident on unknown scripts, unless images are
        altered (dimmed or shifted): these may be known digits, and their confidence is used.
        """
        ood_share = self.excess_tail_share(window, matched, "ood_confidence")
        altered = max(
            self.excess_tail_share(window, matched, name)
            for name in ("brightness", "row", "column")
        )
        ood_accuracy = altered * window.mean_confidence + (1 - altered) / len(window.classes)
        return (1 - ood_share) * Histograms(matched).mean_confidence + ood_share * ood_accuracy

    def anomaly_weights(self, places: np.ndarray) -> np.ndarray:
        """Return the maximum weight of each request over all signals, float (n,).

        `places` are the indices that `bins` returns. Requests of high weight explain an alarm.
        """
        image = [self.weights[signal] for signal in IMAGE_SIGNALS]
        rows = [self.weights["ood_confidence"].ravel()[places[:, 0]]]
        for number, weights in enumerate(image):
            rows.append(weights[places[:, 1 + number] - IMAGES_START - number * IMAGE_BINS])
        return np.max(rows, axis=0)

    def write(self, path: Path) -> None:
        """Write the non-zero counts, by script and index."""
        content: dict[str, Any] = {"format": FORMAT, "model_version": self.model_version}
        content["classes"] = len(self.histograms.classes)
        content["scripts"] = {
            name: {
                "digits": len(histograms),
                "counts": {
                    str(n): int(count) for n, count in enumerate(histograms.counts) if count
                },
            }
            for name, histograms in self.scripts.items()
        }
        write_text(path, json.dumps(content, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Return the reference; raise DigitsError when it is missing, corrupted or outdated."""
        fix = "Run `dvc repro` or `dvc pull`."
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"it has format {content['format']}, this code reads {FORMAT}")
            scripts = {}
            for name, written in content["scripts"].items():
                counts = np.zeros(CLASSES_START + int(content["classes"]), np.int64)
                for place, count in written["counts"].items():
                    counts[int(place)] = int(count)
                scripts[name] = Histograms(counts)
                if counts.min() < 0 or len(scripts[name]) != written["digits"]:
                    raise ValueError("its counts do not add up")
            return cls.fit(scripts, str(content["model_version"]))
        except FileNotFoundError:
            raise DigitsError(f"{path}: not found. {fix}") from None
        except Exception as error:  # a corrupted file may raise anything
            raise DigitsError(f"{path}: is corrupted ({error!r}). {fix}") from None


def _marginals(counts: np.ndarray) -> np.ndarray:
    """Return counts with the two marginals of the joint histogram in place of it."""
    marginals = [signal_bins(counts, name) for name in ("ood_score", "confidence")]
    return np.concatenate([*marginals, counts[..., IMAGES_START:]], axis=-1)


def _class_mix_p(reference: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the p-value (...) of Pearson's chi-squared test of equal class frequencies."""
    table = np.stack([np.broadcast_to(reference, windows.shape), windows], axis=-2)
    joint = table.sum(axis=-2, keepdims=True)
    total = np.maximum(joint.sum(axis=-1, keepdims=True), 1)
    expected = table.sum(axis=-1, keepdims=True) * joint / total
    with np.errstate(all="ignore"):  # a class may occur in neither
        terms = np.where(expected > 0, (table - expected) ** 2 / expected, 0.0)
    freedom = (joint > 0).sum(axis=(-2, -1)) - 1
    p = chdtrc(np.maximum(freedom, 1), terms.sum(axis=(-2, -1)))
    return np.where((freedom > 0) & (windows.sum(axis=-1) > 0), np.maximum(p, SMALLEST_P), 1.0)
