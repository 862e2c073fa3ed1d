"""Requests as counts in fixed bins: of one size for any number, and summed in any order.

Enters: answers and their images. Leaves: how foreign an image looks by how sure the answer is,
six simple statistics of the image, and the answers, counted.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from digits.production import records

SMALLEST = 1e-6  # as score.py rounds
FOREIGN_EDGES = np.arange(-7.5, 12.0, 0.5)  # of log(foreign / (1 - foreign)): 40 bins
DOUBT_EDGES = np.arange(-13.3, 2.8, 0.7)  # of log((1 - confidence) / confidence): 24 bins
LOOKS = (len(FOREIGN_EDGES) + 1, len(DOUBT_EDGES) + 1)
IMAGE_SIGNALS = ("brightness", "ink", "width", "height", "row", "column")
IMAGE_BINS = 64  # of each, from 0 to 1
SIGNALS = ("looks", "foreign", "confidence", *IMAGE_SIGNALS, "classes")
IMAGES_START = LOOKS[0] * LOOKS[1]
CLASSES_START = IMAGES_START + len(IMAGE_SIGNALS) * IMAGE_BINS


def statistics(images: np.ndarray) -> np.ndarray:
    """Return IMAGE_SIGNALS of uint8 (n, size, size) as float64 (n, 6) from 0 to 1.

    Brightness is the strongest pixel, ink the mean one (four times, at most 1); width and height
    are four standard deviations of the ink's place, row and column its centre of mass, in shares
    of the image's side. An image without ink has zeros.
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
    images: np.ndarray, labels: np.ndarray, confidence: np.ndarray, foreign: np.ndarray
) -> np.ndarray:
    """Return the places at which each of n requests counts in a summary, int32 (n, 8).

    `images` uint8 (n, size, size), `labels` int (n,): the answers, as indices of classes,
    `confidence` and `foreign` float (n,) from 0 to 1.
    """
    how_foreign = np.clip(np.asarray(foreign, np.float64), SMALLEST, 1 - SMALLEST)
    sure = np.clip(np.asarray(confidence, np.float64), SMALLEST, 1 - SMALLEST)
    looks = np.searchsorted(FOREIGN_EDGES, np.log(how_foreign / (1 - how_foreign)))
    doubt = np.searchsorted(DOUBT_EDGES, np.log((1 - sure) / sure))
    places = np.empty((len(labels), 2 + len(IMAGE_SIGNALS)), np.int32)
    places[:, 0] = looks * LOOKS[1] + doubt
    image = np.minimum((statistics(images) * IMAGE_BINS).astype(np.int32), IMAGE_BINS - 1)
    places[:, 1:-1] = IMAGES_START + IMAGE_BINS * np.arange(len(IMAGE_SIGNALS)) + image
    places[:, -1] = CLASSES_START + labels
    return places


class BinnedRequests(records.Scan):
    """Requests read batch by batch, with the bins of each: 47 bytes for each row."""

    def describe(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Return what `Scan` keeps of a batch, and `bins`, int16 (n, 8), zero in damaged rows."""
        found = super().describe(batch)
        valid = found["valid"]
        numbers = (records.floats(batch[name])[valid] for name in ("confidence", "foreign"))
        images = records.valid_images(batch, valid, self.image_size)
        found["bins"] = np.zeros((len(batch), 2 + len(IMAGE_SIGNALS)), np.int16)
        found["bins"][valid] = bins(images, found["label"][valid], *numbers)
        return found

    def bins(self) -> np.ndarray:
        """Return the bins of each row so far, int16 (n, 8)."""
        return self.column("bins").reshape(-1, 2 + len(IMAGE_SIGNALS))

    @property
    def width(self) -> int:
        """How many bins there are."""
        return CLASSES_START + len(self.classes)


def count(places: np.ndarray, window: int, width: int) -> np.ndarray:
    """Return the counts (windows, width) of the bins (n, 8) of requests in their order.

    A window has `window` requests, the last one what is left.
    """
    counts = np.zeros((-(-len(places) // window), width), np.int64)
    for number, counted in enumerate(counts):
        inside = places[number * window : (number + 1) * window]
        counted[:] = np.bincount(inside.ravel(), minlength=width)
    return counts


@dataclass(frozen=True)
class Summary:
    """Counts of requests in fixed bins, int64 (CLASSES_START + classes,): 11 kB for ten classes."""

    counts: np.ndarray

    @classmethod
    def of(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        confidence: np.ndarray,
        foreign: np.ndarray,
        class_count: int,
    ) -> "Summary":
        """Return the summary of n requests; arguments as of `bins`."""
        places = bins(images, labels, confidence, foreign)
        return cls(np.bincount(places.ravel(), minlength=CLASSES_START + class_count))

    def __add__(self, other: "Summary") -> "Summary":
        """Return the summary of both sets of requests."""
        return Summary(self.counts + other.counts)

    def __len__(self) -> int:
        return int(self.counts[CLASSES_START:].sum())

    @property
    def sureness(self) -> float:
        """The mean confidence, from the middle of each bin."""
        middles = np.append(DOUBT_EDGES, DOUBT_EDGES[-1] + 0.7) - 0.35
        doubt = self.looks.sum(axis=0)
        return float((doubt / (1 + np.exp(middles))).sum() / max(doubt.sum(), 1))

    @property
    def looks(self) -> np.ndarray:
        """How foreign by how unsure, (40, 24)."""
        return self.counts[:IMAGES_START].reshape(LOOKS)

    @property
    def image(self) -> np.ndarray:
        """The image's statistics, (6, IMAGE_BINS)."""
        return self.counts[IMAGES_START:CLASSES_START].reshape(-1, IMAGE_BINS)

    @property
    def classes(self) -> np.ndarray:
        """How often each class was the answer, (classes,)."""
        return self.counts[CLASSES_START:]


def of_signal(counts: np.ndarray, signal: str) -> np.ndarray:
    """Return summaries' counts (..., bins) in the bins of one signal, (..., its bins)."""
    if signal in ("looks", "foreign", "confidence"):
        looks = counts[..., :IMAGES_START].reshape(*counts.shape[:-1], *LOOKS)
        if signal == "looks":
            return counts[..., :IMAGES_START]
        return looks.sum(axis=-1 if signal == "foreign" else -2)
    start = IMAGES_START + IMAGE_SIGNALS.index(signal) * IMAGE_BINS
    return counts[..., start : start + IMAGE_BINS]
