"""How surely drift is seen, and how seldom falsely: `digits power [HANDWRITING.npz ...]`.

Enters: data/monitoring/reference.json, the trained model, the test pool, which the detector has
never seen, and real handwriting (arrays images and labels, as `digits realism` reads it). Leaves,
on standard output: the share of windows that raise the 1 % test, of clean digits and with some
foreign ones. Intervals (95 %) come from drawing the digits of the pools anew, since they are few,
not the windows alone. Beside it, on fewer windows of the same digits, Evidently's data drift preset
with its own settings, where that package can be imported. It is not locked, since it needs pandas
below 3: `uv pip install evidently "pandas<3"` in a copy of .venv.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from digits import model, params
from digits.dataset import Digits, read_pool
from digits.drift import Reference
from digits.errors import DigitsError
from digits.monitoring import Params
from digits.realism import read_handwriting
from digits.summary import CLASSES_START, IMAGE_SIGNALS, bins, statistics

REFERENCE, MODEL = Path("data/monitoring/reference.json"), Path("data/model/model.keras")
TEST, VALIDATION = Path("data/prepared/test.npz"), Path("data/prepared/validation.npz")
SHARES = (0.02, 0.05, 0.1)
WINDOWS, REDRAWS, WINDOWS_A_REDRAW = 5000, 100, 500
AT_ONCE = 1000  # windows
EVIDENTLY_WINDOWS = 20  # it takes seconds for each


def scored(network: Any, digits: Digits) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits' places in a summary (n, 8), and what Evidently is given (n, 9)."""
    outputs = model.predict(network, digits.images)
    labels, confidence = outputs["digits"].argmax(axis=1), outputs["digits"].max(axis=1)
    places = bins(digits.images, labels, confidence, outputs["foreign"])
    columns = (labels, confidence, outputs["foreign"])
    return places, np.column_stack([*columns, statistics(digits.images)])


def counts(places: np.ndarray, width: int) -> np.ndarray:
    """Return the counts (windows, width) of places (windows, n, 8)."""
    windows = len(places)
    flat = places.reshape(windows, -1) + np.arange(windows)[:, None] * width
    return np.bincount(flat.ravel(), minlength=windows * width).reshape(windows, width)


def rate(
    known: np.ndarray, foreign: np.ndarray, share: float, own: Params, reference: Reference,
    windows: int, rng: np.random.Generator,
) -> float:  # fmt: skip
    """Return the share of windows that alarm; `known` and `foreign` are places (n, 8)."""
    some = round(own.window * share)
    used = {name: part for name, part in own.alarm.shares.items() if part > 0}
    width, alarms = CLASSES_START + len(reference.summary.classes), 0
    for start in range(0, windows, AT_ONCE):
        number = min(AT_ONCE, windows - start)
        parts = [known[rng.integers(0, len(known), (number, own.window - some))]]
        if some:
            parts.append(foreign[rng.integers(0, len(foreign), (number, some))])
        found = counts(np.concatenate(parts, axis=1), width)
        p = reference.p_values(found, reference.like(found), own.alarm.tolerated_share)
        lowest = np.min([p[name] / part for name, part in used.items()], axis=0)
        alarms += int((lowest <= own.alarm.false_alarm_rate).sum())
    return alarms / windows


def measured(
    known: np.ndarray, foreign: np.ndarray, share: float, own: Params, reference: Reference,
    rng: np.random.Generator,
) -> str:  # fmt: skip
    """Return the share of windows that alarm with its 95 % interval."""
    best = rate(known, foreign, share, own, reference, WINDOWS, rng)
    redrawn = [
        rate(
            known[rng.integers(0, len(known), len(known))],
            foreign[rng.integers(0, len(foreign), len(foreign))],
            *(share, own, reference, WINDOWS_A_REDRAW, rng),
        )
        for _ in range(REDRAWS)
    ]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return f"{best:8.2%} [{low:.2%}, {high:.2%}]"


def evidently(
    pool: np.ndarray, known: np.ndarray, foreign: np.ndarray, share: float, own: Params,
    rng: np.random.Generator,
) -> str:  # fmt: skip
    """Return the share of windows in which Evidently's preset sees the data set (a column) drift.

    Its own settings: a test for each column by its kind and the reference's size, and drift of
    the data set where half of the columns drift. Columns: answer, confidence, foreign, image.
    """
    try:
        import evidently as package
        import pandas as pd
        from evidently.presets import DataDriftPreset
    except ImportError:
        return "not installed"
    names = ["answer", "confidence", "foreign", *IMAGE_SIGNALS]
    definition = package.DataDefinition(numerical_columns=names[1:], categorical_columns=names[:1])

    def data(rows: np.ndarray) -> object:
        table = pd.DataFrame(rows, columns=names).astype({"answer": int}).astype({"answer": str})
        return package.Dataset.from_pandas(table, data_definition=definition)

    some, shares, reference = round(own.window * share), [], data(pool)
    for _ in range(EVIDENTLY_WINDOWS):
        parts = [known[rng.integers(0, len(known), own.window - some)]]
        parts += [foreign[rng.integers(0, len(foreign), some)]] if some else []
        window = data(np.concatenate(parts))
        run = package.Report([DataDriftPreset()]).run(window, reference)
        shares.append(run.dict()["metrics"][0]["value"]["share"])
    return f"{np.mean(np.array(shares) >= 0.5):.0%} ({np.mean(np.array(shares) > 0):.0%})"


def main(arguments: list[str]) -> None:
    """Score the pools, judge many windows, print a table."""
    parser = argparse.ArgumentParser(prog="power", description=__doc__)
    parser.add_argument("handwriting", type=Path, nargs="*", help=".npz files of real digits")
    paths = parser.parse_args(arguments).handwriting
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "monitor")
    reference = Reference.read(REFERENCE)
    size, classes = task.image_size, len(task.classes)
    sources = read_pool(TEST, classes, size)
    real = [read_handwriting(path, size, path.stem, classes) for path in paths]
    network = model.load(MODEL, size, classes)
    (pool,) = [scored(network, part)[1] for part in read_pool(VALIDATION, classes, size)[:1]]
    if len(pool) != len(reference.summary):
        raise DigitsError(f"{REFERENCE}: is of another validation pool; run `dvc repro`")
    known, *foreign = [(part.name, *scored(network, part)) for part in sources]
    foreign += [(f"{part.script}, real handwriting", *scored(network, part)) for part in real]
    rng = np.random.default_rng(task.seed)
    print(f"Windows of {own.window} that raise the {own.alarm.false_alarm_rate:.0%} test")
    print(f"{'':36}{'':8}{'share, 95 % interval':>26}   Evidently")
    rows = [(known, known, 0.0)] + [(known, other, share) for other in foreign for share in SHARES]
    for (_, *clean), (name, *other), share in tqdm(rows, leave=False):
        line = measured(clean[0], other[0], share, own, reference, rng)
        side = evidently(pool, clean[1], other[1], share, own, rng)
        tqdm.write(f"{name + (' alone' if not share else ''):36}{share:8.0%}{line:>26}   {side}")
