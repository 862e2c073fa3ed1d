"""Traffic: seeded, from the pool alone, with the shares, the noise and the labels of a schedule."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import frozen
import numpy as np
import pytest
from conftest import ROOT, environment, python

from core import params
from core.dataset import Digits, write_csv, write_split
from core.errors import DigitsError
from digits.production.traffic import HOUR_MS, NEVER, Noise, Pool, Schedule, Stream, read

PHASE = {"name": "quiet", "hours": 10.0, "requests_an_hour": 100.0, "share": {}, "noise": None}
BROKEN = {"brightness": [0.3, 0.7], "shift_pixels": 3, "thinned_share": 0.5}


def schedule(*phases: dict[str, Any], **values: Any) -> Schedule:
    """Return a schedule of phases that differ from a quiet one."""
    whole = {"start": "2026-01-05T00:00:00Z", "labelled_share": 0.2, "label_delay_hours": 48.0}
    whole |= {"phases": [PHASE | phase for phase in phases]} | values
    return params.section(Schedule, {"simulate": whole}, "simulate")


def digits(script: str, count: int, rendered: bool = False) -> Digits:
    """Return images that all differ, also between scripts."""
    rng = np.random.default_rng(len(script))
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    return Digits(images, (np.arange(count) % 10).astype(np.uint8), script, rendered, 10)


POOL = [digits("mnist", 300), digits("devanagari", 60, True), digits("japanese", 60, True)]


def stream(*phases: dict[str, Any], seed: int = 1, **values: Any) -> Stream:
    """Return the requests of a schedule."""
    plan = schedule(*phases, **values)
    return Stream(Pool(POOL, plan, seed), plan, seed)


def scripts(requests: Stream) -> np.ndarray:
    """Return the script of each request."""
    return np.array(requests.truth(np.arange(len(requests)))[1])


def test_one_seed_gives_one_stream_in_parts_of_any_size() -> None:
    growing = {"name": "growing", "share": {"devanagari": [0.0, 0.5]}, "noise": BROKEN}
    whole = stream({}, growing).part(0, 2000)
    again = list(stream({}, growing).parts(77))
    assert len(whole.times) == 2000
    assert whole.ids == [name for part in again for name in part.ids]
    assert len(set(whole.ids)) == 2000
    for name in ("times", "images", "index"):
        np.testing.assert_array_equal(
            getattr(whole, name), np.concatenate([getattr(part, name) for part in again])
        )
    other = stream({}, growing, seed=2).part(0, 2000)
    assert set(other.ids).isdisjoint(whole.ids)
    assert (other.times != whole.times).any()


def test_phases_follow_each_other_and_requests_come_in_order() -> None:
    requests = stream({}, {"name": "busy", "hours": 0.5, "requests_an_hour": 1000.0})
    start = requests.schedule.start_ms
    assert start == 1_767_571_200_000
    assert (np.diff(requests.times) >= 0).all()
    first, second = requests.times[:1000], requests.times[1000:]
    assert start <= first[0] < first[-1] < start + 10 * HOUR_MS <= second[0]
    assert len(second) == 500
    assert second[-1] < start + 10.5 * HOUR_MS
    assert requests.first("busy") == 1000


def test_a_phase_without_requests_is_a_gap() -> None:
    requests = stream({}, {"name": "night", "requests_an_hour": 0.0}, {"name": "morning"})
    assert np.diff(requests.times).max() > 10 * HOUR_MS
    assert requests.first("night") == requests.first("morning") == 1000
    assert len(list(stream({"requests_an_hour": 0.0}).parts(10))) == 0


def test_shares_grow_evenly_and_the_rest_is_mnist() -> None:
    share = {"devanagari": [0.0, 0.4], "japanese": 0.2}
    came = scripts(stream({"requests_an_hour": 10_000.0, "share": share}))
    for tenth, part in enumerate(np.split(came, 10)):
        assert (part == "devanagari").mean() == pytest.approx(0.02 + 0.04 * tenth, abs=0.02)
        assert (part == "japanese").mean() == pytest.approx(0.2, abs=0.02)
    assert set(came) == {"mnist", "devanagari", "japanese"}


def test_every_image_is_of_the_pool_and_carries_its_truth() -> None:
    requests = stream({"share": {"devanagari": 0.3}})
    known = {
        image.tobytes(): (int(label), part.script)
        for part in POOL
        for image, label in zip(part.images, part.labels, strict=True)
    }
    images = requests.part(0, 1000).images
    labels, came = requests.truth(np.arange(1000))
    for image, label, script in zip(images, labels, came, strict=True):
        assert known[image.tobytes()] == (label, script)


def test_a_script_that_the_pool_lacks_falls_to_mnist_and_is_reported() -> None:
    requests = stream({"share": {"thai": 0.5, "japanese": 0.3}})
    assert requests.notes == [
        "no digits of thai are in the split production: MNIST's are sent instead"
    ]
    assert (scripts(requests) == "japanese").mean() == pytest.approx(0.3, abs=0.05)
    assert (scripts(requests) == "mnist").mean() == pytest.approx(0.7, abs=0.05)


def test_a_broken_scanner_dims_moves_and_thins() -> None:
    plan = schedule({"noise": {"brightness": [0.5, 0.5], "shift_pixels": 0, "thinned_share": 0.0}})
    dim, every = plan.phases[0].noise, np.arange(300)
    pool = Pool(POOL, plan, 1)
    np.testing.assert_array_equal(
        pool.images_at(every, dim), np.rint(POOL[0].images * np.float32(0.5))
    )

    moved = pool.images_at(every, Noise((1.0, 1.0), 3, 0.0))
    places = set()
    for image, original in zip(moved, POOL[0].images, strict=True):
        padded = np.pad(original, 3)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (28, 28))
        places |= {tuple(place) for place in np.argwhere((windows == image).all(axis=(2, 3)))}
    assert len(places) == 49  # each of seven rows and seven columns

    strokes = np.zeros((1, 28, 28), np.uint8)
    strokes[0, 5:8, 5:20] = 255
    one = Pool([Digits(strokes, np.zeros(1, np.uint8), "mnist", False, 10)], plan, 1)
    thinned = one.images_at(np.arange(1), Noise((1.0, 1.0), 0, 1.0))
    assert thinned.sum() == 2 * 14 * 255
    np.testing.assert_array_equal(one.images, strokes)  # the pool itself stays as it was


def test_labels_come_late_and_for_a_share_of_the_digits() -> None:
    requests = stream({"requests_an_hour": 5000.0, "share": {"devanagari": 0.2}})
    has_label = requests.label_times != NEVER
    for script, count in (("mnist", 60), ("devanagari", 12)):  # a fifth of the digits
        of_it = scripts(requests) == script
        labelled = set(requests.digit[of_it & has_label])
        assert len(labelled) == count
        assert labelled.isdisjoint(requests.digit[of_it & ~has_label])
    delays = (requests.label_times - requests.times)[has_label] / HOUR_MS
    assert delays.min() > 0
    assert delays.mean() == pytest.approx(48, rel=0.02)
    order = requests.known_labels()
    assert (np.diff(requests.label_times[order]) >= 0).all()
    assert len(order) == has_label.sum()
    assert len(stream({}, labelled_share=0.0).known_labels()) == 0
    assert len(stream({}, labelled_share=1.0).known_labels()) == 1000


def test_what_was_labelled_never_comes_again_whatever_the_scanner_did(tmp_path: Path) -> None:
    plan = schedule({}, {"name": "broken", "noise": BROKEN})
    write_split(tmp_path / "pool.npz", POOL)
    before = read(tmp_path / "pool.npz", tmp_path / "labelled", plan, 10, 28, 1)
    assert before.notes == []
    part = before.part(900, 1100)  # some of both phases
    taken = before.digit[900:1100]
    labels, _ = before.truth(part.index)
    known = Digits(part.images, labels, "mnist", False, 10)
    write_csv(tmp_path / "labelled" / "sub" / "mnist_20260112.csv", known)

    after = read(tmp_path / "pool.npz", tmp_path / "labelled", plan, 10, 28, 1)
    assert set(after.digit).isdisjoint(taken)
    (note,) = after.notes
    assert note.startswith(f"{len(set(taken))} digits of ")
    left = 300 - len(set(taken))  # of which another share is labelled in its turn
    labelled = set(after.digit[after.label_times != NEVER])
    assert round(0.2 * left) - 3 <= len(labelled) <= round(0.2 * left)


def test_a_pool_without_mnist_says_what_to_do() -> None:
    plan = schedule({})
    with pytest.raises(DigitsError, match=r"Increase prepare\.production_count"):
        Stream(Pool([POOL[0][:0], POOL[1]], plan, 1), plan, 1)


@pytest.mark.parametrize(
    ("phases", "values", "message"),
    [
        ([{"share": {"devanagari": 1.2}}], {}, "phases.0.share.devanagari"),
        ([{"share": {"devanagari": [0.1, 0.7], "thai": [0.0, 0.4]}}], {}, "sum to more than 1"),
        ([{"hours": 0.0}], {}, "phases.0.hours is 0.0"),
        ([{}, {}], {}, "names of phases must be unique; found twice: quiet"),
        ([{"noise": BROKEN | {"brightness": [0.7, 0.3]}}], {}, "must not be above"),
        ([{"noise": BROKEN | {"shift_pixels": 2.5}}], {}, "shift_pixels"),
        ([{"rate": 1.0}], {}, "simulate.phases.0.rate"),
        ([], {}, "simulate.phases"),
        ([{}], {"start": "2026-01-05T00:00:00"}, "simulate.start"),
        ([{}], {"start": "on a Monday"}, "simulate.start is 'on a Monday'"),
        ([{}], {"labelled_share": 2.0}, "simulate.labelled_share is 2.0"),
    ],
)
def test_a_schedule_that_cannot_be(
    phases: list[dict[str, Any]], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DigitsError, match=r"params\.yaml") as refused:
        schedule(*phases, **values)
    assert message in str(refused.value)


def test_an_unknown_phase_is_named_with_those_that_there_are() -> None:
    with pytest.raises(DigitsError, match=r"loud: no such phase\. params\.yaml has quiet"):
        stream({}).first("loud")


MILLION = """
import sys
from pathlib import Path
from core import params
from digits.production.traffic import Schedule, read
values = params.load()
plan = params.section(Schedule, values, "simulate")
stream = read(Path(sys.argv[1]), Path("none"), plan, 10, 28, 1)
seen = 0
for part in stream.parts(10_000):
    seen += len(part.ids)
# Not ru_maxrss, in which the process that started this one is counted too.
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seen, int(peak.split()[1]) // 1024)
"""


@pytest.mark.prove
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_million_requests_are_drawn_within_a_gigabyte(tmp_path: Path) -> None:
    """Not scored, which adds a fixed number of rows at a time and takes minutes."""
    text = frozen.text()
    assert text.count("requests_an_hour: 100.0") == 4
    text = text.replace("requests_an_hour: 100.0", "requests_an_hour: 2500.0")
    (tmp_path / "params.yaml").write_text(text, "utf-8")
    write_split(tmp_path / "pool.npz", [digits("mnist", 5000), *POOL[1:]])
    done = subprocess.run(
        python(MILLION, "pool.npz"),
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    requests, megabytes = map(int, done.stdout.split())
    assert requests == 1_020_000
    assert megabytes < 1000
    print(f"{megabytes} MB")


def test_the_schedule_of_params_yaml() -> None:
    plan = frozen.section(Schedule, "simulate")
    requests = Stream(Pool(POOL, plan, 1), plan, 1)
    assert 30_000 <= len(requests) <= 60_000
    came, phase = scripts(requests), requests.phase
    assert set(came[phase == 0]) == {"mnist"}
    assert set(came[phase == 1]) == {"mnist", "devanagari"}
    assert set(came[phase == 2]) == {"mnist", "devanagari", "japanese"}
    assert [bool(each.noise) for each in plan.phases] == [False, False, False, True]
    assert dataclasses.is_dataclass(plan.phases[3].noise)
