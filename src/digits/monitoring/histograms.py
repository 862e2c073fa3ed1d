"""Fixed-bin histograms of requests.

Input: images and predictions. Output: one int64 vector of constant size with the joint histogram
of OOD score and confidence, six statistics of the image, and the predicted classes. Vectors add,
so any partition of the requests gives the same total.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from digits.production import records

MIN_SCORE = 1e-6  # as score.py rounds
OOD_EDGES = np.arange(-7.5, 12.0, 0.5)  # of log(score / (1 - score)): 40 bins
UNCERTAINTY_EDGES = np.arange(-13.3, 2.8, 0.7)  # of log((1 - confidence) / confidence): 24 bins
JOINT_SHAPE = (len(OOD_EDGES) + 1, len(UNCERTAINTY_EDGES) + 1)
IMAGE_SIGNALS = ("brightness", "ink", "width", "height", "row", "column")
IMAGE_BINS = 64  # of each, from 0 to 1
SIGNALS = ("ood_confidence", "ood_score", "confidence", *IMAGE_SIGNALS, "classes")
IMAGES_START = JOINT_SHAPE[0] * JOINT_SHAPE[1]
CLASSES_START = IMAGES_START + len(IMAGE_SIGNALS) * IMAGE_BINS


def statistics(images: np.ndarray) -> np.ndarray:
    """Return IMAGE_SIGNALS of uint8 (n, size, size) as float64 (n, 6) from 0 to 1.

    Brightness is the maximum pixel; ink is four times the mean pixel, at most 1. Width and height
    are four standard deviations of the ink's position, row and column its centre of mass, relative
    to the image size. They are 0 for an image without ink.
    """
    size = images.shape[1]
    place = (np.arange(size) + 0.5) / size
    rows = images.sum(axis=2, dtype=np.uint32).astype(np.float64)  # (n, size)
    columns = images.sum(axis=1, dtype=np.uint32).astype(np.float64)
    ink = rows.sum(axis=1)
    total = np.maximum(ink, 1)
    centres, spreads = [], []
    for mass in (columns, rows):
        centre = (mass * place).sum(axis=1) / total
        spread = (mass * place**2).sum(axis=1) / total - centre**2
        centres.append(centre)
        spreads.append(np.minimum(4 * np.sqrt(np.maximum(spread, 0)), 1))
    brightness = images.reshape(len(images), size * size).max(axis=1, initial=0) / 255
    inked = np.minimum(4 * ink / (255 * size * size), 1)
    return np.column_stack([brightness, inked, *spreads, centres[1], centres[0]])


def bins(
    images: np.ndarray, labels: np.ndarray, confidence: np.ndarray, ood_scores: np.ndarray
) -> np.ndarray:
    """Return the indices of the bins of each of n requests, int32 (n, 8).

    `images` uint8 (n, size, size), `labels` int (n,): the answers, as indices of classes,
    `confidence` and `ood_scores` float (n,) from 0 to 1.
    """
    clipped = np.clip(np.asarray(ood_scores, np.float64), MIN_SCORE, 1 - MIN_SCORE)
    confident = np.clip(np.asarray(confidence, np.float64), MIN_SCORE, 1 - MIN_SCORE)
    joint = np.searchsorted(OOD_EDGES, np.log(clipped / (1 - clipped)))
    uncertainty = np.searchsorted(UNCERTAINTY_EDGES, np.log((1 - confident) / confident))
    places = np.empty((len(labels), 2 + len(IMAGE_SIGNALS)), np.int32)
    places[:, 0] = joint * JOINT_SHAPE[1] + uncertainty
    image = np.minimum((statistics(images) * IMAGE_BINS).astype(np.int32), IMAGE_BINS - 1)
    places[:, 1:-1] = IMAGES_START + IMAGE_BINS * np.arange(len(IMAGE_SIGNALS)) + image
    places[:, -1] = CLASSES_START + labels
    return places


class BinnedRequests(records.Scan):
    """Requests read batch by batch, with their bins: 47 bytes per row."""

    def describe(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return what `Scan` stores of a batch, and `bins` int16 (n, 8), zero in corrupted rows."""
        found = super().describe(batch)
        well_formed = found["well_formed"]
        numbers = (records.floats(batch[name])[well_formed] for name in ("confidence", "ood_score"))
        images = records.well_formed_images(batch, well_formed, self.image_size)
        found["bins"] = np.zeros((len(batch), 2 + len(IMAGE_SIGNALS)), np.int16)
        found["bins"][well_formed] = bins(images, found["label"][well_formed], *numbers)
        return found

    def bins(self) -> np.ndarray:
        """Return the bins of each row so far, int16 (n, 8)."""
        return self.column("bins").reshape(-1, 2 + len(IMAGE_SIGNALS))

    @property
    def width(self) -> int:
        """The number of bins."""
        return CLASSES_START + len(self.classes)


def count(places: np.ndarray, window: int, width: int) -> np.ndarray:
    """Return the histograms (windows, width) of consecutive requests with the bins (n, 8).

    A window has `window` requests; the last one may have fewer.
    """
    counts = np.zeros((-(-len(places) // window), width), np.int64)
    for number, counted in enumerate(counts):
        inside = places[number * window : (number + 1) * window]
        counted[:] = np.bincount(inside.ravel(), minlength=width)
    return counts


@dataclass(frozen=True)
class Histograms:
    """Counts in fixed bins, int64 (CLASSES_START + classes,): 11 kB for ten classes."""

    counts: np.ndarray

    def __add__(self, other: "Histograms") -> "Histograms":
        """Return the histograms of both sets of requests together."""
        return Histograms(self.counts + other.counts)

    def __len__(self) -> int:
        return int(self.counts[CLASSES_START:].sum())

    @property
    def mean_confidence(self) -> float:
        """The mean confidence, computed from the middle of each bin."""
        middles = np.append(UNCERTAINTY_EDGES, UNCERTAINTY_EDGES[-1] + 0.7) - 0.35
        uncertainty = self.joint.sum(axis=0)
        return float((uncertainty / (1 + np.exp(middles))).sum() / max(uncertainty.sum(), 1))

    @property
    def joint(self) -> np.ndarray:
        """The joint histogram of OOD score and uncertainty, (40, 24)."""
        return self.counts[:IMAGES_START].reshape(JOINT_SHAPE)

    @property
    def image(self) -> np.ndarray:
        """The histograms of the image statistics, (6, IMAGE_BINS)."""
        return self.counts[IMAGES_START:CLASSES_START].reshape(-1, IMAGE_BINS)

    @property
    def classes(self) -> np.ndarray:
        """The number of predictions of each class, (classes,)."""
        return self.counts[CLASSES_START:]


def signal_bins(counts: np.ndarray, signal: str) -> np.ndarray:
    """Return the part (..., bins of the signal) of histograms (..., bins) that a signal uses."""
    if signal in ("ood_confidence", "ood_score", "confidence"):
        joint = counts[..., :IMAGES_START].reshape(*counts.shape[:-1], *JOINT_SHAPE)
        if signal == "ood_confidence":
            return counts[..., :IMAGES_START]
        return joint.sum(axis=-1 if signal == "ood_score" else -2)
    if signal == "classes":
        return counts[..., CLASSES_START:]
    start = IMAGES_START + IMAGE_SIGNALS.index(signal) * IMAGE_BINS
    return counts[..., start : start + IMAGE_BINS]
