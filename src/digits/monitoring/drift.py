"""Drift without labels: windows of requests as small counts, judged against a reference.

    summary = Summary.of(images, labels, confidence, foreign, class_count)   # of any requests
    both = summary + other                                  # of both, in any order
    reference = Reference.fit({script: summary}, version)   # of digits that the model knows
    verdict = reference.judge(window, settings, verdict)    # of each window, given the one before

A summary counts in fixed bins: how foreign an image looks by how sure the answer is, six simple
statistics of the image, and the answers. A signal weighs each bin by how rare it and those more
extreme are in the reference, so that all signals are one-sided: only what the reference hardly
shows counts, not a change in the mix of what it does.

- One window: the sum of the weights is compared with its distribution over all ways to draw the
  window from the reference and the window together, by its three exact moments and a Pearson
  type III tail (Mielke and Berry, "Permutation Methods", 2001). The reference's finite size is
  part of that. Signals share the false alarms (Genovese et al., Biometrika 93, 2006).
- Looking again and again: the p-values become e-values (Vovk and Wang, Annals of Statistics 49,
  2021), whose product since the best start is the evidence (the CUSUM e-detector of Shin, Ramdas
  and Rinaldo, New England Journal of Statistics in Data Science 2, 2024). Without drift it reaches
  `windows_between_false_alarms` once in that many windows on average, or more seldom, if an e-value
  is worth at most 1 on average. That of one reference, which all windows are compared with, may be
  worth more: on MNIST 1.2, with the worst of 24 redrawn references 2.4. `tolerated_share` brings
  that to 0.7 and 1.05.
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
from core.params import STRICT
from digits.monitoring.histograms import (
    CLASSES_START,
    IMAGE_BINS,
    IMAGE_SIGNALS,
    IMAGES_START,
    LOOKS,
    SIGNALS,
    Summary,
    of_signal,
)

FORMAT = 1  # of reference.json; another number needs other code
# The weight of a bin is the log-likelihood ratio of a few strangers among known digits: their
# rarities p have the density STEEP * p^(STEEP - 1), one of Vovk and Wang's calibrators.
FEW, STEEP = 0.05, 0.2
TAIL = 0.05  # of the reference: what looks rarer shows the share of strangers
FEWEST = 10  # digits of a script that it can be told by
MIX_STEPS, FASTER = 50, 4  # of expectation and maximisation, each taken to that power
SMALLEST_P = 1e-300
AT_ONCE = 200  # windows: 3 MB
RAREST = 1e-3  # rarities below are not told apart: in the reference they are a handful of digits

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Settings:
    """How windows are judged; a block of params.yaml's section `monitor`."""

    __pydantic_config__ = STRICT

    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]  # of one window looked at by itself
    windows_between_false_alarms: Annotated[int, Field(ge=2)]  # on average, looked at in a row
    tolerated_share: Annotated[float, Field(ge=0, lt=0.5)]  # of requests that may look strange
    shares: dict[str, Share]  # of the false alarms, by signal; 0: shown, but never alarms

    def __post_init__(self) -> None:
        """The shares must name the signals and sum to one."""
        if set(self.shares) != set(SIGNALS):
            raise ValueError(f"shares must name {', '.join(SIGNALS)}")
        if not math.isclose(sum(self.shares.values()), 1):
            raise ValueError("shares must sum to 1")


def rarity(counts: np.ndarray) -> np.ndarray:
    """Return for each bin (b,) of a reference the share of it in this bin and those above."""
    above = np.cumsum(counts[::-1])[::-1]
    return (above + 0.5) / (counts.sum() + 1)


def weigh(rarities: np.ndarray) -> np.ndarray:
    """Return the weight of bins by their rarity."""
    rarities = np.maximum(rarities, RAREST)
    return np.log1p(FEW * (STEEP * rarities ** (STEEP - 1) - 1))


def permutation_p(
    weights: np.ndarray, reference: np.ndarray, windows: np.ndarray, tolerated_share: float
) -> np.ndarray:
    """Return the p-value of each window's mean weight being as large as it is, (...).

    `weights` (b,) of the bins; `windows` (..., b): their counts; `reference` (..., b) or (b,): the
    reference's. The sum over a window is that of n draws without replacement from N: its mean,
    variance and skewness are exact. No p-value is below one over the number of ways to draw.
    `tolerated_share` of a window may have the largest weight for nothing.
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
    with np.errstate(all="ignore"):  # where nothing varies, or a side is empty: p is 1
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
    """Return the share of a Pearson type III distribution above z; mean 0, variance 1."""
    shape = 4 / np.maximum(skewness**2, 1e-8)
    above = gammaincc(shape, np.maximum(shape + z * np.sqrt(shape), 0))
    below = gammainc(shape, np.maximum(shape - z * np.sqrt(shape), 0))
    return np.where(np.abs(skewness) < 1e-4, ndtr(-z), np.where(skewness > 0, above, below))


def log_e_value(p: float) -> float:
    """Return the logarithm of Vovk and Wang's mixture of calibrators, which needs no setting."""
    if p > 1 - 1e-6:
        return math.log(0.5)
    log_p = math.log(p)
    return math.log((1 - p + p * log_p) / (p * log_p**2))


@dataclass(frozen=True)
class Verdict:
    """What a window says.

    p: p-value of each signal
    p_value: of the window, all signals together
    unusual: whether it is at most the false alarm rate: a glance at this window alone
    evidence: for drift, of this window and those before it; from 1 to the limit of an alarm
    drift: whether the alarm is on: since the evidence reached the limit, until it is 1 again
    began: whether the evidence starts anew with this window
    strangers: the share of requests that look like nothing the model knows, estimated
    accuracy: estimated without labels
    """

    p: dict[str, float]
    p_value: float
    unusual: bool
    evidence: float
    drift: bool
    began: bool
    strangers: float
    accuracy: float


@dataclass(frozen=True)
class Reference:
    """What the model knows: the summary of its validation pool, for each script by itself.

    Production may mix the scripts otherwise than the pool does, so a window is compared with the
    mix of them that is most like it.
    """

    scripts: dict[str, Summary]
    model_version: str

    @classmethod
    def fit(cls, scripts: dict[str, Summary], model_version: str) -> "Reference":
        """Return the reference; raise DigitsError when it has too few digits to judge by."""
        few = [name for name, summary in scripts.items() if len(summary) < FEWEST]
        if few or not scripts:
            raise DigitsError(
                f"the reference has fewer than {FEWEST} digits ({', '.join(few) or 'none'}); "
                "validate on more"
            )
        return cls(scripts, model_version)

    @cached_property
    def summary(self) -> Summary:
        """The scripts together."""
        return Summary(np.sum([summary.counts for summary in self.scripts.values()], axis=0))

    def like(self, windows: np.ndarray) -> np.ndarray:
        """Return counts (..., bins) of the scripts, mixed as in windows (..., bins).

        The shares maximise the likelihood of all statistics, each by itself (a composite
        likelihood), by expectation and maximisation; the counts are as many as have the same
        variance.
        """
        counts = np.stack([summary.counts for summary in self.scripts.values()])
        digits = np.array([len(summary) for summary in self.scripts.values()])
        if len(digits) == 1:
            return counts[0]
        coarse, seen = _coarse(counts), _coarse(windows)
        pooled = (coarse.sum(axis=0) + 1e-9) / digits.sum()
        density = (coarse + pooled) / (digits[:, None] + 1)  # (scripts, bins)
        shares = np.broadcast_to(digits / digits.sum(), (*windows.shape[:-1], len(digits)))
        total = np.maximum(seen.sum(axis=-1, keepdims=True), 1)
        for _ in range(MIX_STEPS):
            likelier = (seen / (shares @ density)) @ density.T / total
            found = shares * likelier**FASTER
            shares = found / np.maximum(found.sum(axis=-1, keepdims=True), 1e-12)
        as_many = 1 / np.maximum((shares**2 / digits).sum(axis=-1, keepdims=True), 1e-12)
        return np.asarray((shares * as_many) @ (counts / digits[:, None]))

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights of each signal's bins: (40, 24) for looks, otherwise (b,)."""
        return {signal: self._weights(signal) for signal in SIGNALS if signal != "classes"}

    def _weights(self, signal: str) -> np.ndarray:
        looks = self.summary.looks
        foreign, doubt = rarity(looks.sum(axis=1)), rarity(looks.sum(axis=0))
        if signal == "foreign":
            return weigh(foreign)
        if signal == "confidence":
            return weigh(doubt)
        if signal == "looks":  # both together, as Fisher combines p-values
            product = np.multiply.outer(foreign, doubt).ravel()
            order = np.argsort(-product, kind="stable")
            both = np.empty(len(order))
            both[order] = rarity(looks.ravel()[order])
            return weigh(both).reshape(LOOKS)
        counts = self.summary.image[IMAGE_SIGNALS.index(signal)]
        sides = np.minimum(rarity(counts), rarity(counts[::-1])[::-1])
        return weigh(np.minimum(2 * sides, 1))

    def p_values(
        self, windows: np.ndarray, like: np.ndarray, tolerated_share: float
    ) -> dict[str, np.ndarray]:
        """Return the p-value (...) of each signal for counts of windows and those like them."""
        found = {
            signal: permutation_p(
                weights.ravel(),
                of_signal(like, signal),
                of_signal(windows, signal),
                tolerated_share,
            )
            for signal, weights in self.weights.items()
        }
        found["classes"] = _same_classes(like[..., CLASSES_START:], windows[..., CLASSES_START:])
        return found

    def judge(self, window: Summary, settings: Settings, before: Verdict | None = None) -> Verdict:
        """Return the verdict on a window, given that on the window before it."""
        return next(self.verdicts(window.counts[None], settings, before))

    def verdicts(
        self, windows: np.ndarray, settings: Settings, before: Verdict | None = None
    ) -> Iterator[Verdict]:
        """Yield the verdict on each of the counts (n, b) of windows that follow each other."""
        for start in range(0, len(windows), AT_ONCE):
            counts = windows[start : start + AT_ONCE]
            like = np.broadcast_to(self.like(counts), counts.shape)
            found = self.p_values(counts, like, settings.tolerated_share)
            for number, count in enumerate(counts):
                p = {signal: float(values[number]) for signal, values in found.items()}
                before = self._verdict(Summary(count), like[number], p, settings, before)
                yield before

    def _verdict(
        self,
        window: Summary,
        like: np.ndarray,
        p: dict[str, float],
        settings: Settings,
        before: Verdict | None,
    ) -> Verdict:
        used = {name: share for name, share in settings.shares.items() if share > 0}
        p_value = min(1.0, min(p[name] / share for name, share in used.items()))
        log_e = [math.log(share) + log_e_value(p[name]) for name, share in used.items()]
        step = float(np.logaddexp.reduce(log_e)) if len(window) else 0.0
        evidence, drift = (before.evidence, before.drift) if before else (1.0, False)
        limit = math.log(settings.windows_between_false_alarms)
        level = min(max(math.log(evidence) + step, 0.0), limit)
        return Verdict(
            p=p,
            p_value=p_value,
            unusual=p_value <= settings.false_alarm_rate,
            evidence=math.exp(level),
            drift=level >= limit or (drift and level > 0),
            began=evidence <= 1 and level > 0,
            strangers=self.beyond(window, like, "looks"),
            accuracy=self.accuracy(window, like),
        )

    def beyond(self, window: Summary, like: np.ndarray, signal: str) -> float:
        """Return an estimate of the share of requests that only this signal's tail can hold.

        It is what the window has beyond the reference in the reference's rare tail, as if all
        that is new fell there: on average too low rather than too high (Blanchard, Lee and Scott,
        "Semi-Supervised Novelty Detection", JMLR 11, 2010).
        """
        tail = self.weights[signal].ravel() >= weigh(np.array(TAIL))
        expected = of_signal(like, signal)
        known = float(expected[tail].sum() / max(expected.sum(), 1))
        found = float(of_signal(window.counts, signal)[tail].sum()) / max(len(window), 1)
        return max(0.0, (found - known) / (1 - known))

    def accuracy(self, window: Summary, like: np.ndarray) -> float:
        """Return an estimate of a window's accuracy before its labels come, given those like it.

        What the model knows it reads as well as its confidence in the reference says; strangers
        it reads by chance, since it is sure of its mistakes in a script that it has never seen:
        the mean confidence of the window would be far too high. Where the images themselves are
        altered (dimmed or moved), they may still be digits that it knows, and confidence counts.
        """
        strangers = self.beyond(window, like, "looks")
        altered = max(self.beyond(window, like, name) for name in ("brightness", "row", "column"))
        strange = altered * window.sureness + (1 - altered) / len(window.classes)
        return (1 - strangers) * Summary(like).sureness + strangers * strange

    def strangeness(self, places: np.ndarray) -> np.ndarray:
        """Return how much each request adds to its strongest signal, float (n,).

        `places` as `bins` returns them; the largest are examples of what caused an alarm.
        """
        image = [self.weights[signal] for signal in IMAGE_SIGNALS]
        rows = [self.weights["looks"].ravel()[places[:, 0]]]
        for number, weights in enumerate(image):
            rows.append(weights[places[:, 1 + number] - IMAGES_START - number * IMAGE_BINS])
        return np.max(rows, axis=0)

    def write(self, path: Path) -> None:
        """Write the counts that are not zero, by script and place."""
        content: dict[str, Any] = {"format": FORMAT, "model_version": self.model_version}
        content["classes"] = len(self.summary.classes)
        content["scripts"] = {
            name: {
                "digits": len(summary),
                "counts": {str(n): int(summary.counts[n]) for n in np.flatnonzero(summary.counts)},
            }
            for name, summary in self.scripts.items()
        }
        write_text(path, json.dumps(content, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Return the reference; raise DigitsError when it is absent, damaged or another format."""
        mend = "run `dvc repro` first, or `dvc pull`"
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"it has format {content['format']}, this code reads {FORMAT}")
            scripts = {}
            for name, written in content["scripts"].items():
                counts = np.zeros(CLASSES_START + int(content["classes"]), np.int64)
                for place, count in written["counts"].items():
                    counts[int(place)] = int(count)
                scripts[name] = Summary(counts)
                if counts.min() < 0 or len(scripts[name]) != written["digits"]:
                    raise ValueError("its counts do not add up")
            return cls.fit(scripts, str(content["model_version"]))
        except FileNotFoundError:
            raise DigitsError(f"{path}: not found: no reference to judge by; {mend}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DigitsError(f"{path}: is damaged ({error!r}); {mend}") from None


def _coarse(counts: np.ndarray) -> np.ndarray:
    """Return counts with how foreign and how unsure beside each other, not one by the other."""
    apart = [of_signal(counts, name) for name in ("foreign", "confidence")]
    return np.concatenate([*apart, counts[..., IMAGES_START:]], axis=-1)


def _same_classes(reference: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the p-value of Pearson's chi-squared test that both have the same mix, (...)."""
    table = np.stack([np.broadcast_to(reference, windows.shape), windows], axis=-2)
    both = table.sum(axis=-2, keepdims=True)
    total = np.maximum(both.sum(axis=-1, keepdims=True), 1)
    expected = table.sum(axis=-1, keepdims=True) * both / total
    with np.errstate(all="ignore"):  # a class that neither has
        terms = np.where(expected > 0, (table - expected) ** 2 / expected, 0.0)
    freedom = (both > 0).sum(axis=(-2, -1)) - 1
    p = chdtrc(np.maximum(freedom, 1), terms.sum(axis=(-2, -1)))
    return np.where((freedom > 0) & (windows.sum(axis=-1) > 0), np.maximum(p, SMALLEST_P), 1.0)
