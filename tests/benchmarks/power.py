"""Measure power and false alarms of the drift test: `make drift-power [HANDWRITING.npz ...]`.

Input: data/monitoring/reference.json, the trained model, the split test, which is not part of the
reference (but its MNIST digits were used to choose `tolerated_share`), and real handwriting (arrays
images and labels, see `make rendering-realism`). Output, on standard output and with --record in
.github/DRIFT.md: the share of windows with an alert of the 1 % test, of in-distribution digits and
with some foreign ones. The 95 % intervals are from a bootstrap of the digits, not only of windows.
The reference is fixed; another one has another false alarm rate (.github/DRIFT.md). For comparison,
the first of these windows are tested with Evidently's data drift preset, if it is installed. It is
not locked, because it needs pandas below 3; .github/DRIFT.md describes that measurement.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.realism import read_handwriting
from benchmarks.record import finish
from core import params
from core.dataset import Digits, read_split
from core.errors import DigitsError
from digits.model import network as model
from digits.monitoring.analysis import Params
from digits.monitoring.drift import MIN_DIGITS, Reference
from digits.monitoring.histograms import CLASSES_START, IMAGE_SIGNALS, bins, statistics

REFERENCE, MODEL = Path("data/monitoring/reference.json"), Path("data/model/model.keras")
TEST, VALIDATION = Path("data/prepared/test.npz"), Path("data/prepared/validation.npz")
SHARES = (0.02, 0.05, 0.1)
WINDOWS, REDRAWS, WINDOWS_A_REDRAW = 5000, 100, 500
WINDOWS_PER_BATCH = 1000  # windows
SIDE_BY_SIDE, HALF = 20, 0.5  # windows that Evidently judges, a second each; its share of columns


def scored(network: Any, digits: Digits) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits' places in a summary (n, 8), and what Evidently is given (n, 9)."""
    outputs = model.predict(network, digits.images)
    labels, confidence = outputs["digits"].argmax(axis=1), outputs["digits"].max(axis=1)
    places = bins(digits.images, labels, confidence, outputs["ood_score"])
    columns = (labels, confidence, outputs["ood_score"])
    return places, np.column_stack([*columns, statistics(digits.images)])


def counts(places: np.ndarray, width: int) -> np.ndarray:
    """Return the counts (windows, width) of places (windows, n, 8)."""
    windows = len(places)
    flat = places.reshape(windows, -1) + np.arange(windows)[:, None] * width
    return np.bincount(flat.ravel(), minlength=windows * width).reshape(windows, width)


def draw(
    known: int, foreign: int, window: int, share: float, windows: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return which digits of pools of `known` and `foreign` are in each window.

    int64 (windows, window - some) and (windows, some), `some` being the foreign share of a window.
    """
    some = round(window * share)
    ours = rng.integers(0, known, (windows, window - some))
    return ours, rng.integers(0, foreign, (windows, some))


def alarms(
    known: np.ndarray, foreign: np.ndarray, drawn: tuple[np.ndarray, np.ndarray], own: Params,
    reference: Reference,
) -> np.ndarray:  # fmt: skip
    """Return which windows raise the alarm's test of one window, bool (windows,).

    `known` and `foreign` are places (n, 8); `drawn` is as of `draw`.
    """
    used = {name: part for name, part in own.alarm.shares.items() if part > 0}
    width, raised = CLASSES_START + len(reference.histograms.classes), []
    for start in range(0, len(drawn[0]), WINDOWS_PER_BATCH):
        ours, theirs = (part[start : start + WINDOWS_PER_BATCH] for part in drawn)
        found = counts(np.concatenate([known[ours], foreign[theirs]], axis=1), width)
        p = reference.p_values(found, reference.matched_reference(found), own.alarm.tolerated_share)
        lowest = np.min([p[name] / part for name, part in used.items()], axis=0)
        raised.append(lowest <= own.alarm.false_alarm_rate)
    return np.concatenate(raised)


def interval(
    known: np.ndarray, foreign: np.ndarray, share: float, own: Params, reference: Reference,
    rng: np.random.Generator,
) -> tuple[float, float]:  # fmt: skip
    """Return the 95 % interval of the share of windows that alarm, the pools drawn anew."""
    rates = []
    for _ in range(REDRAWS):
        ours, theirs = (pool[rng.integers(0, len(pool), len(pool))] for pool in (known, foreign))
        drawn = draw(len(ours), len(theirs), own.window, share, WINDOWS_A_REDRAW, rng)
        rates.append(alarms(ours, theirs, drawn, own, reference).mean())
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def evidently(
    pool: np.ndarray, known: np.ndarray, foreign: np.ndarray, drawn: tuple[np.ndarray, np.ndarray]
) -> np.ndarray | None:
    """Return the share of columns that drift by Evidently's preset in each window, (windows,).

    Its own settings: a test for each column by its kind and the reference's size; a data set
    drifts where half of its columns do. Columns: answer, confidence, foreign, image. `pool` is
    the reference, (n, 9) as `known` and `foreign`. None where Evidently is not installed.
    """
    try:
        import evidently as package
        import pandas as pd
        from evidently.presets import DataDriftPreset
    except ImportError:
        return None
    names = ["answer", "confidence", "ood_score", *IMAGE_SIGNALS]
    definition = package.DataDefinition(numerical_columns=names[1:], categorical_columns=names[:1])

    def data(rows: np.ndarray) -> object:
        table = pd.DataFrame(rows, columns=names).astype({"answer": int}).astype({"answer": str})
        return package.Dataset.from_pandas(table, data_definition=definition)

    shares, reference, report = [], data(pool), package.Report([DataDriftPreset()])
    for ours, theirs in zip(*drawn, strict=True):
        run = report.run(data(np.concatenate([known[ours], foreign[theirs]])), reference)
        shares.append(run.dict()["metrics"][0]["value"]["share"])
    return np.array(shares)


def main(arguments: list[str]) -> None:
    """Score the pools, judge many windows, print a table."""
    parser = argparse.ArgumentParser(prog="make drift-power", description=__doc__)
    parser.add_argument("handwriting", type=Path, nargs="*", help=".npz files of real digits")
    parser.add_argument("--record", action="store_true", help="write the table of DRIFT.md")
    given = parser.parse_args(arguments)
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "monitor")
    reference = Reference.read(REFERENCE)
    size, classes = task.image_size, len(task.classes)
    sources, validation = (read_split(path, classes, size) for path in (TEST, VALIDATION))
    real = [read_handwriting(path, size, path.stem, classes) for path in given.handwriting]
    fitted = {name: len(summary) for name, summary in reference.scripts.items()}
    held: Counter[str] = Counter()
    for part in validation:
        held[part.script] += len(part)
    if fitted != {script: count for script, count in held.items() if count >= MIN_DIGITS}:
        raise DigitsError(f"{REFERENCE}: is of another validation pool; run `dvc repro`")
    network = model.load(MODEL, size, classes)
    pool = np.concatenate([scored(network, part)[1] for part in validation])
    known, *foreign = [(part.name, *scored(network, part)) for part in sources]
    foreign += [(f"{part.script}, real handwriting", *scored(network, part)) for part in real]
    rng = np.random.default_rng(task.seed)
    print(f"Windows of {own.window} that raise the {own.alarm.false_alarm_rate:.0%} test,")
    print(
        f"{WINDOWS:,} of each kind with the 95 % interval; and of the first {SIDE_BY_SIDE} of them"
    )
    print("by this test, and by Evidently's preset (in brackets: in which a column drifts)")
    cases = [(known, known, 0.0)] + [(known, other, share) for other in foreign for share in SHARES]
    table: dict[str, dict[float, str]] = {}
    for (_, *ours), (name, *theirs), share in tqdm(cases, leave=False):
        drawn = draw(len(ours[0]), len(theirs[0]), own.window, share, WINDOWS, rng)
        raised = alarms(ours[0], theirs[0], drawn, own, reference)
        low, high = interval(ours[0], theirs[0], share, own, reference, rng)
        line = f"{raised.mean():.2%} [{low:.2%}, {high:.2%}]"
        table.setdefault(name, {})[share] = line
        first = [part[:SIDE_BY_SIDE] for part in drawn]
        found = evidently(pool, ours[1], theirs[1], (first[0], first[1]))
        side = "Evidently is not installed"
        if found is not None:
            side = f"{raised[:SIDE_BY_SIDE].mean():.0%}"
            side += f"   Evidently {(found >= HALF).mean():.0%} ({(found > 0).mean():.0%})"
        tqdm.write(f"{name + ('' if share else ' alone'):32}{share:5.0%}{line:>26}   {side}")
    rows = [[name, *(row.get(share, "") for share in (0, *SHARES))] for name, row in table.items()]
    head = ["in the window, beside MNIST's digits", *(f"{share:.0%}" for share in (0, *SHARES))]
    sample = f"{WINDOWS:,} windows of {own.window} of each kind, 95 % intervals"
    finish("drift_power", [head, *rows], [], sample, given.record)
