"""Find the ink of one digit in a picture: on paper, in any light, also with lines or a table.

A copy of this file is part of the model folder; it needs NumPy and Pillow. The paper of small
pictures and cropped digits has one brightness. In others it is estimated around each pixel, printed
lines and marks along the edge are removed, and the largest mark is used with its close neighbours.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

SMALL = 128  # pixels of the longer side, up to which a picture counts as a cropped digit
SIDE = 250  # pixels: maximum of the longer side after reduction
JPEG_NOISE = 8  # of 255: artefacts of compression around a stroke
FAINT = 26  # of 255: marks with less contrast to their paper are not ink
DARK = 1000  # the larger, the less a difference counts in the dark
LOOSE = 0.04  # share of a mark's outline without an edge: it ends where the paper was misjudged
THIN = 3  # pixels: maximum thickness of a printed line
NO_INK = "the image is blank: nothing is darker or lighter than its edge"
SEVERAL = "several marks of a digit's size lie side by side; send one digit at a time"
NO_MARK = "no mark stands apart from the picture's edge; show the whole digit on plain paper"


class Ink(NamedTuple):
    """The ink of a digit, and how it was found."""

    pixels: np.ndarray  # uint8 (height, width), white on black
    light: bool  # whether it is lighter than its paper
    warnings: list[str]
    steps: dict[str, np.ndarray]  # the result of each step, uint8 (height, width)


def find_ink(grey: np.ndarray, jpeg: bool = False, white_ink: bool | None = None) -> Ink:
    """Return the ink of a picture, uint8 (height, width), dark on light or light on dark.

    `white_ink`: whether the ink is light (None: detect it). Raises ValueError for a blank picture.
    """
    coarse, factor = _shrunk(grey, SIDE)
    steps = {"grey": coarse}
    small = max(coarse.shape) <= SMALL or min(coarse.shape) < SMALL // 8
    if small or _cut_out(coarse, jpeg, white_ink):
        return _on_one_paper(coarse, jpeg, white_ink)
    steepest = _widest(coarse, 2, np.maximum) - _widest(coarse, 2, np.minimum)
    if np.quantile(steepest, 0.999) < FAINT:
        raise ValueError(NO_INK)
    light = _light_ink(coarse) if white_ink is None else white_ink
    if (found := _marks(coarse, light, max(3, min(coarse.shape) // 6), steps)) is None:
        return _on_one_paper(coarse, jpeg, white_ink)._replace(warnings=[NO_MARK])
    ink, box, thick, notes = found
    margin = max(box[1] - box[0], box[3] - box[2])  # then again, at full resolution
    top, left = (max(0, low - margin) * factor for low in box[::2])
    bottom, right = ((high + margin) * factor for high in box[1::2])
    cut, shrunk = _shrunk(grey[top:bottom, left:right], SIDE)
    closer = {"closer": cut}
    if again := _marks(cut, light, max(3, thick * factor // shrunk), closer):
        ink, steps, notes = again[0], closer, notes or again[3]
    return Ink(ink, light, notes, steps)


def _cut_out(grey: np.ndarray, jpeg: bool, white_ink: bool | None) -> bool:
    """Return whether one mark of broad strokes fills the picture: a digit cropped to its ink."""
    try:
        ink = _on_one_paper(grey, jpeg, white_ink).pixels
    except ValueError:
        return False
    mask = ink > ink.max() // 2
    marks = _components(mask)
    main = int(marks.area.argmax())
    rows, columns = mask.shape
    fills = marks.height[main] > 0.85 * rows and marks.width[main] > 0.85 * columns
    along = marks.contact[:, main] / (columns, columns, rows, rows)
    core = _widest(marks.labels == main + 1, max(1, max(mask.shape) // 60), np.minimum)
    broad = 3 * core.sum() > mask.sum() and marks.area[main] > 0.9 * mask.sum()
    return bool(fills and broad and along.max() < 0.7 and mask.mean() < 0.65)


def _shrunk(grey: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """Average blocks of pixels so that the longer side has at most `side`; return the factor."""
    factor = -(-max(grey.shape) // side)
    return np.asarray(Image.fromarray(grey).reduce(factor)), factor


def _on_one_paper(grey: np.ndarray, jpeg: bool, white_ink: bool | None) -> Ink:
    """Return the ink of a picture whose paper has one brightness, the median of the edge.

    Ink is the side, lighter or darker, with the largest distance from it, unless `white_ink` is
    given. Pixels within twice the edge's noise are paper too. Ink may touch half of the edge.
    """
    values = grey.astype(np.int16)
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    paper = int(np.median(edge))
    half, most = np.quantile(np.abs(edge - paper), (0.5, 0.9))  # Gaussian: most is 2.4 * half
    noise = max(int(min(most, 1 + 3 * half)), JPEG_NOISE if jpeg else 0)
    lighter = bool(values.max() - paper >= paper - values.min())
    distance = values - paper if (lighter if white_ink is None else white_ink) else paper - values
    ink = np.where(distance > 2 * noise, distance, 0).astype(np.uint8)
    if not ink.any():
        raise ValueError(NO_INK)
    return Ink(ink, lighter, [], {"grey": grey, "ink": ink})


def _light_ink(grey: np.ndarray) -> bool:
    """Return whether the strokes are lighter than their surroundings.

    Strokes are a small part of their surroundings, so the differences from the local mean, relative
    to the brightness, are skewed towards the strokes; at edges of sheets or shadows they are not.
    """
    mean = _mean(grey, max(grey.shape) // 6).astype(np.int64)
    return int((((grey - mean) * 1000 // (grey + mean + DARK)) ** 3).sum()) > 0


def _mean(grey: np.ndarray, radius: int) -> np.ndarray:
    """Return the mean of a square around each pixel of uint8 (height, width), int16."""
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.BoxBlur(radius)), np.int16)


def _widest(grey: np.ndarray, radius: int, pick: np.ufunc) -> np.ndarray:
    """Return the maximum or minimum (`pick`) of a square around each pixel, cropped at the edge."""
    padded = np.pad(grey, radius, "edge")
    for _ in range(2):
        done = 1
        while done <= 2 * radius:
            step = min(done, 2 * radius + 1 - done)
            padded, done = pick(padded[:-step], padded[step:]), done + step
        padded = np.ascontiguousarray(padded.T)
    return padded


def _paper(grey: np.ndarray, radius: int) -> np.ndarray:
    """Return the paper under the strokes, int16: a closing, which fills up to 2 * `radius` pixels.

    It preserves straight edges of shadows. Light that fades towards the edge is extrapolated.
    """
    pad = 2 * radius
    wide = np.minimum(np.pad(grey, pad, "reflect", reflect_type="odd"), np.pad(grey, pad, "edge"))
    return _widest(_widest(wide, radius, np.maximum), radius, np.minimum)[pad:-pad, pad:-pad]


class _Marks(NamedTuple):
    """Connected dark pixels; arrays (n,) unless noted. A box is top, bottom, left, right."""

    labels: np.ndarray  # int64 (height, width): the number of the mark + 1, 0 for none
    area: np.ndarray
    box: np.ndarray  # (4, n); bottom and right are exclusive
    height: np.ndarray
    width: np.ndarray
    contact: np.ndarray  # (4, n): pixels on the picture's edge above, below, left, right

    def plausible(self) -> np.ndarray:
        """Return whether each mark may be part of a digit, not a table or frame: bool (n,)."""
        rows, columns = self.labels.shape
        along = np.stack([self.width, self.width, self.height, self.height])
        inner = (self.contact <= along * 0.4).all(axis=0)
        whole = (self.height > 0.85 * rows) & (self.width > 0.85 * columns)
        through = (self.contact.reshape(2, 2, -1) > 0).all(axis=1).any(axis=0)
        return inner & ~whole & ~through & (np.maximum(self.height, self.width) >= 4)


def _components(mask: np.ndarray) -> _Marks:
    """Return the connected parts (8 neighbours) of a mask, bool (height, width)."""
    rows_count, columns = mask.shape
    change = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)  # runs of pixels in a row
    ends = np.nonzero(change == -1)[1]
    stride = columns + 2
    first = np.searchsorted(rows * stride + ends, (rows - 1) * stride + starts, "left")
    last = np.searchsorted(rows * stride + starts, (rows - 1) * stride + ends, "right")
    count = np.maximum(last - first, 0)  # of runs in the row above that touch
    below = np.repeat(np.arange(len(rows)), count)
    above = np.arange(count.sum()) + np.repeat(first - count.cumsum() + count, count)
    root, before = np.arange(len(rows)), np.empty(0, np.int64)
    while not np.array_equal(root, before):
        before = root.copy()
        least = np.minimum(root[below], root[above])
        for place in (below, above, before[below], before[above]):
            np.minimum.at(root, place, least)
        root = root[root]
    number = np.unique(root, return_inverse=True)[1]
    total = int(number.max(initial=-1)) + 1
    painted = np.zeros((rows_count, columns + 1), np.int64)
    painted[rows, starts] += number + 1
    painted[rows, ends] -= number + 1
    box = np.array([np.full(total, big) for big in (rows_count, 0, columns, 0)])
    picks = (np.minimum, np.maximum) * 2
    for side, pick, places in zip(box, picks, (rows, rows + 1, starts, ends), strict=True):
        pick.at(side, number, places)
    labels = painted.cumsum(axis=1)[:, :-1]
    edges = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    contact = np.stack([np.bincount(edge, minlength=total + 1)[1:] for edge in edges])
    area = np.bincount(number, ends - starts, total).astype(np.int64)
    return _Marks(labels, area, box, box[1] - box[0], box[3] - box[2], contact)


def _marks(
    grey: np.ndarray, light: bool, radius: int, steps: dict[str, np.ndarray]
) -> tuple[np.ndarray, list[int], int, list[str]] | None:
    """Return the ink uint8 (height, width) of the largest mark and its close neighbours, if any.

    Also returns its box, an upper bound of its stroke width, and warnings.
    """
    grey = 255 - grey if light else grey
    smooth = _mean(grey, 1)
    paper = _paper(smooth, radius)
    scale = np.maximum(paper, max(1, int(np.quantile(paper, 0.9)) // 3)).astype(np.int32)
    contrast = (paper.astype(np.int32) - smooth) * 255 // scale
    usual = int(np.median(contrast))
    noise = int(np.median(np.abs(contrast - usual)))
    contrast = np.clip(contrast - usual, 0, 255)
    steps["paper"], steps["contrast"] = paper.astype(np.uint8), contrast.astype(np.uint8)
    low = max(FAINT, 6 * noise)
    contrast = _with_edges(contrast, low, smooth, paper - smooth)
    contrast = np.where(_printed(contrast, contrast > low), 0, contrast)
    steps["without lines"] = contrast.astype(np.uint8)
    marks = _components(contrast > low)
    kept = np.isin(marks.labels, 1 + np.flatnonzero(marks.plausible()))
    strongest = contrast[kept].max(initial=0)
    marks = _components(kept & (contrast > max(low, strongest // 3)))
    size = np.maximum(marks.height, marks.width) * marks.plausible()
    if not size.any():
        return None
    group, box, notes = _group(marks, size)
    chosen = np.isin(marks.labels, 1 + group)
    near = _widest(chosen, 2, np.maximum)
    fine = np.clip((paper.astype(np.int32) - grey) * 255 // scale - usual, 0, 255)
    steps["ink"] = ink = np.where(near & (fine > max(2 * noise, 4)), fine, 0).astype(np.uint8)
    thick, core = 4, chosen
    while (core := _widest(core, 1, np.minimum)).any():
        thick += 2
    return ink, box, thick, notes


def _with_edges(contrast: np.ndarray, low: int, smooth: np.ndarray, drop: np.ndarray) -> np.ndarray:
    """Return the contrast without corners of shadows: marks that end where there is no edge.

    `drop` is the difference from the paper. Darker strokes in such a mark are preserved.
    """
    mask = contrast > low
    outline = mask & ~_widest(mask, 1, np.minimum)
    steepest = _widest(smooth, 2, np.maximum) - _widest(smooth, 2, np.minimum)
    loose = outline & (steepest < drop // 2)
    labels = _components(mask).labels
    total = int(labels.max()) + 1
    length, count = (np.bincount(labels[part], minlength=total) for part in (outline, loose))
    levels = np.bincount(labels[loose], _widest(contrast, 3, np.maximum)[loose], total)
    levels = np.where(count > LOOSE * length, levels / np.maximum(count, 1), 0)
    return np.where(contrast < 1.25 * levels[labels], 0, contrast)


def _group(marks: _Marks, size: np.ndarray) -> tuple[np.ndarray, list[int], list[str]]:
    """Return the indices of the largest mark and its close neighbours, their box, and warnings."""
    main = int(size.argmax())
    flat = marks.width > 1.5 * marks.height  # a stroke of 二 or 三, not a complete digit
    reach = np.where(flat & flat[main], 0.8, 0.35) * size[main]
    top, bottom, left, right = marks.box[:, main]
    for _ in range(3):
        gap_y = np.maximum(np.maximum(marks.box[0] - bottom, top - marks.box[1]), 0)
        gap_x = np.maximum(np.maximum(marks.box[2] - right, left - marks.box[3]), 0)
        close = np.hypot(gap_x, gap_y) <= reach
        group = np.flatnonzero(close & (size >= 0.15 * size[main]))
        top, left = marks.box[0, group].min(), marks.box[2, group].min()
        bottom, right = marks.box[1, group].max(), marks.box[3, group].max()
    tall = group[marks.height[group] > 0.6 * (bottom - top)]
    first, last = np.sort(marks.box[2, tall]), np.sort(marks.box[3, tall])
    apart = (first[1:] > last[:-1]).any()
    others = np.setdiff1d(np.flatnonzero(size >= 0.6 * size[main]), group)
    return group, [top, bottom, left, right], [SEVERAL] if apart or len(others) else []


def _printed(contrast: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the pixels of printed lines: bool (height, width).

    A line is straight, thin, and at most 8 degrees from the rows or columns of the picture; it is
    dark in at least half of three of the picture's four quarters. Where a line is much darker than
    its average, ink crosses it.
    """
    found = np.zeros_like(mask)
    thick = _widest(_widest(mask, (THIN + 1) // 2, np.minimum), (THIN + 1) // 2, np.maximum)
    for turned in (False, True):
        values, dark, line = ((each.T if turned else each) for each in (contrast, mask, found))
        height, width = dark.shape
        y, x = np.nonzero(dark)
        quarter = x * 4 // width
        level = values[y, x]
        hit = np.zeros(len(y), bool)
        reach = int(0.14 * width) + 1
        bins = height + 2 * reach + 2
        for slope in np.arange(-0.14, 0.1401, 2 / width):
            place = y + reach - np.rint(slope * (x - width // 2)).astype(np.int64)
            key = quarter * bins + place
            count = np.bincount(key, minlength=4 * bins).reshape(4, bins)
            strong = (count[:, :-1] + count[:, 1:] >= width / 8).sum(axis=0) >= 3
            if strong.any():
                strong = np.pad(strong, (0, 1)) | np.pad(strong, (1, 0))
                usual = np.bincount(place, level, bins) / np.maximum(count.sum(axis=0), 1)
                hit |= strong[place] & (level <= 1.5 * usual[place] + 10)
        line[y[hit], x[hit]] = True
    return found & ~thick
