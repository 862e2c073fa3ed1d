"""Simulated production traffic.

Input: a schedule (params.yaml's section `simulate`) and the split production. Output: a seeded
stream of requests. A schedule is a list of phases, each with a rate, shares of foreign scripts and
noise of the scanner. Digits are drawn from the split with replacement, one per request. Labels
become known late, and only for some digits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AwareDatetime, Field

from core import params
from core.dataset import MNIST, Digits, read_csv, read_split
from core.errors import DigitsError

ID_BYTES = 8  # of a request's id: a million of them collide once in 37 million schedules
DELAY_SHAPE = 4.0  # of the gamma distribution of delays: the deviation is half the mean
HOUR_MS = 3_600_000
NEVER = -1  # time of a label that does not become known
Share = Annotated[float, Field(ge=0, le=1)]


@params.strict
class Noise:
    """The changes that a broken scanner makes to each digit."""

    brightness: tuple[Share, Share]  # range of the factor for pixels
    shift_pixels: Annotated[int, Field(ge=0, le=20)]  # maximum, in all directions
    thinned_share: Share  # of digits whose strokes become a pixel thinner

    def __post_init__(self) -> None:
        """Raise ValueError when the first end of the range is above the second."""
        params.ordered(self.brightness)


@params.strict
class Phase:
    """A period with constant rate, noise and (growing) shares of foreign scripts."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    hours: Annotated[float, Field(gt=0, le=100_000)]
    requests_an_hour: Annotated[float, Field(ge=0, le=10_000_000)]
    share: dict[params.ScriptName, Share | tuple[Share, Share]]  # [start, end] grows linearly
    noise: Noise | None

    def __post_init__(self) -> None:
        """Raise ValueError when the shares of foreign scripts sum to more than 1."""
        for end in (0, 1):
            if sum(share[end] for share in self.shares().values()) > 1 + 1e-9:
                raise ValueError(f"the shares in {self.name} sum to more than 1")

    def shares(self) -> dict[str, tuple[float, float]]:
        """Return each foreign script's share at the start and at the end of the phase."""
        return {
            script: share if isinstance(share, tuple) else (share, share)
            for script, share in self.share.items()
        }


@params.strict
class Schedule:
    """params.yaml's section `simulate`."""

    start: AwareDatetime
    labelled_share: Share  # of the pool's digits
    label_delay_hours: Annotated[float, Field(gt=0, le=100_000)]  # on average
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        """Raise ValueError when two phases have the same name."""
        names = [phase.name for phase in self.phases]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names of phases must be unique; found twice: {twice[0]}")

    @property
    def start_ms(self) -> int:
        """The start, milliseconds since 1970 UTC."""
        return round(self.start.timestamp() * 1000)


@dataclass(frozen=True)
class Requests:
    """Part of a stream of requests, by time; arrays have n rows.

    index: int64, index in the stream
    times: int64, milliseconds since 1970 UTC
    ids: request ids
    images: uint8 (n, size, size)
    """

    index: np.ndarray
    times: np.ndarray
    ids: list[str]
    images: np.ndarray


class Pool:
    """The digits that requests are drawn from, and the noise that a scanner adds to each."""

    def __init__(self, parts: Iterable[Digits], schedule: Schedule, seed: int) -> None:
        """Join the sources of a split.

        The noise of a digit is the same each time, so that a noisy digit that was labelled and is
        used for training can be excluded.
        """
        parts = list(parts)
        self.images = np.concatenate([part.images for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])
        self.scripts = [part.script for part in parts]
        self.script = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        rng = np.random.default_rng([seed, 0])
        self.random_draws = rng.random((len(self.labels), 4))  # brightness, down, right, thinned
        self.is_available = np.ones(len(self.labels), bool)
        self.noises = {phase.noise for phase in schedule.phases}

    def exclude(self, known: Iterable[np.ndarray]) -> int:
        """Exclude the digits whose image, with or without noise, is among the known ones.

        `known` are images uint8 (n, size, size) that training uses. Returns the number of excluded
        digits.
        """
        seen = {image.tobytes() for images in known for image in images}
        every = np.arange(len(self.labels))
        for noise in self.noises if seen else ():
            images = self.images_at(every, noise)
            self.is_available &= [image.tobytes() not in seen for image in images]
        return int((~self.is_available).sum())

    def available(self, script: str) -> np.ndarray:
        """Return the indices of a script's digits that are not excluded."""
        number = self.scripts.index(script) if script in self.scripts else -1
        return np.flatnonzero(self.is_available & (self.script == number))

    def images_at(self, index: np.ndarray, noise: Noise | None) -> np.ndarray:
        """Return images uint8 (n, size, size) of the digits at `index`, with noise."""
        images = self.images[index]
        if noise is None:
            return images
        draws, size, limit = self.random_draws[index], images.shape[1], noise.shift_pixels
        thin = draws[:, 3] < noise.thinned_share
        thinned = images[thin]
        thinned[:, :-1] = np.minimum(thinned[:, :-1], thinned[:, 1:])
        thinned[:, :, :-1] = np.minimum(thinned[:, :, :-1], thinned[:, :, 1:])
        images[thin] = thinned
        dark, light = noise.brightness
        factors = (dark + (light - dark) * draws[:, 0]).astype(np.float32)
        images = np.rint(images * factors[:, None, None]).astype(np.uint8)
        padded = np.pad(images, ((0, 0), (limit, limit), (limit, limit)))
        places = (draws[:, 1:3] * (2 * limit + 1)).astype(int)[:, :, None] + np.arange(size)
        rows, columns = places[:, 0, :, None], places[:, 1, None, :]
        return padded[np.arange(len(images))[:, None, None], rows, columns]


def read(
    path: Path, labelled: Path, schedule: Schedule, class_count: int, image_size: int, seed: int
) -> "Stream":
    """Return a schedule's requests, drawn from a pool without the digits in folder `labelled`."""
    pool = Pool(read_split(path, class_count, image_size), schedule, seed)
    files = sorted(labelled.rglob("*.csv"))
    excluded = pool.exclude(read_csv(file, image_size, class_count, MNIST).images for file in files)
    stream = Stream(pool, schedule, seed)
    if excluded:
        stream.notes.append(
            f"{excluded:,} digits of {path} are in {labelled} and are not drawn again"
        )
    return stream


class Stream:
    """All requests of a schedule; `part` computes any part of them, in any order."""

    def __init__(self, pool: Pool, schedule: Schedule, seed: int) -> None:
        """Draw all values but the images, phase by phase; a million requests take 50 MB.

        A script without digits in the pool is replaced by MNIST; `notes` lists such scripts. Raises
        DigitsError when the pool has no digit of MNIST.
        """
        self.pool, self.schedule, self.seed = pool, schedule, seed
        known = {script: pool.available(script) for script in [MNIST, *pool.scripts]}
        if not len(known[MNIST]):
            raise DigitsError(
                "the split production has no digits of MNIST to draw requests from. "
                "Increase prepare.production_count in params.yaml."
            )
        asked = dict.fromkeys(script for phase in schedule.phases for script in phase.share)
        self.missing = [script for script in asked if not len(known.get(script, ()))]
        self.notes = [
            f"no digits of {script} are in the split production: MNIST's are sent instead"
            for script in self.missing
        ]
        self.times, self.digit, self.phase = self._draw(known)
        rng = np.random.default_rng([seed, 1])
        has_label = np.zeros(len(pool.labels), bool)
        for digits in known.values():
            has_label[rng.permutation(digits)[: round(schedule.labelled_share * len(digits))]] = (
                True
            )
        mean = schedule.label_delay_hours * HOUR_MS / DELAY_SHAPE
        delays = (rng.gamma(DELAY_SHAPE, mean, len(self.times))).astype(np.int64)
        self.label_times = np.where(has_label[self.digit], self.times + delays, NEVER)
        self.ids = np.random.default_rng([seed, 2]).bytes(ID_BYTES * len(self.times))

    def _draw(self, known: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return times int64, digits int64 and phases int64 of all requests."""
        drawn = []
        start = float(self.schedule.start_ms)
        for number, phase in enumerate(self.schedule.phases):
            rng = np.random.default_rng([self.seed, 3, number])
            count = round(phase.hours * phase.requests_an_hour)
            progress = np.sort(rng.random(count))  # a Poisson process, given the number of events
            draws, chosen = rng.random(count), rng.random(count)
            digit = known[MNIST][(chosen * len(known[MNIST])).astype(int)]
            below = np.zeros(count)
            for script, (first, last) in phase.shares().items():
                above = below + first + (last - first) * progress
                if script not in self.missing:
                    here = (below <= draws) & (draws < above)
                    digit[here] = known[script][(chosen[here] * len(known[script])).astype(int)]
                below = above
            milliseconds = phase.hours * HOUR_MS
            times = np.int64(start) + (progress * milliseconds).astype(np.int64)
            drawn.append((times, digit, np.full(count, number)))
            start += milliseconds
        return [np.concatenate(columns) for columns in zip(*drawn, strict=True)]

    def __len__(self) -> int:
        return len(self.times)

    def first(self, phase: str) -> int:
        """Return the index of a phase's first request; raise DigitsError for an unknown phase."""
        names = [each.name for each in self.schedule.phases]
        if phase not in names:
            raise DigitsError(f"{phase}: no such phase. params.yaml has {', '.join(names)}.")
        return int(np.searchsorted(self.phase, names.index(phase)))

    def ids_of(self, index: np.ndarray) -> list[str]:
        """Return the ids of the requests with these indices."""
        places = (index * ID_BYTES).tolist()
        return [self.ids[place : place + ID_BYTES].hex() for place in places]

    def part(self, start: int, stop: int) -> Requests:
        """Return the requests with indices from `start` up to `stop`."""
        index = np.arange(start, min(stop, len(self)))
        digit, phase = self.digit[index], self.phase[index]
        size = self.pool.images.shape[1]
        images = np.empty((len(digit), size, size), np.uint8)
        for number in np.unique(phase):
            here = phase == number
            images[here] = self.pool.images_at(digit[here], self.schedule.phases[number].noise)
        return Requests(index, self.times[index], self.ids_of(index), images)

    def parts(self, rows: int) -> Iterable[Requests]:
        """Yield all requests, `rows` at a time."""
        return (self.part(start, start + rows) for start in range(0, len(self), rows))

    def known_labels(self) -> np.ndarray:
        """Return the indices of requests whose labels become known, sorted by that time."""
        order = np.argsort(self.label_times, kind="stable")
        return order[self.label_times[order] != NEVER]

    def truth(self, index: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the true classes uint8 (n,) and the scripts of requests with these indices."""
        digit = self.digit[index]
        scripts = [self.pool.scripts[number] for number in self.pool.script[digit]]
        return self.pool.labels[digit], scripts
