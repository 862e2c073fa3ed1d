"""Stage evaluate: the model on the test pool, which nothing else touches.

Enters: data/model and the pool test. Leaves metrics.json (headline figures of each source; of a
model that knows several scripts also the accuracy when it is told in which a digit is written),
per_class.csv, reliability.csv and roc.csv as small files for git, and a folder of images: a
confusion matrix of each source and a sheet of the worst mistakes on MNIST.
"""

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from pydantic import Field
from sklearn.metrics import ConfusionMatrixDisplay, roc_curve

from core import params
from core.dataset import Digits, read_pool
from core.files import replacing, write_text
from digits.evaluation import metrics
from digits.model import lineage, network
from digits.runtime import script_prior

FALSE_ALARM_RATES = np.linspace(0, 1, 101)  # where roc.csv has points
DOTS_PER_INCH = 100


@dataclass(frozen=True)
class Params:
    """params.yaml's section `evaluate`."""

    __pydantic_config__ = params.STRICT

    calibration_bins: Annotated[int, Field(ge=1)]
    mistakes: Annotated[int, Field(ge=1, le=400)]  # on the sheet


@dataclass(frozen=True)
class Scored:
    """The digits of one source, and the model's probabilities (n, classes) and foreign (n,).

    `told` are the digits (n,) that it reads when it is told the script, None where it knows that
    script alone or not at all.
    """

    digits: Digits
    probabilities: np.ndarray
    foreign: np.ndarray
    told: np.ndarray | None

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each digit, int (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """The probability of that class, float32 (n,)."""
        return self.probabilities.max(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """Whether that class is the true one, bool (n,)."""
        return self.predicted == self.digits.labels


def headline(scored: Scored, known: Scored, bins: int) -> dict[str, float]:
    """Return the figures of one source for metrics.json; `known` is the source trained for."""
    accuracy, low, high = metrics.accuracy(scored.correct)
    table = metrics.reliability(scored.confidence, scored.correct, bins)
    figures = {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": metrics.log_loss(scored.probabilities, scored.digits.labels),
        "calibration_error": metrics.calibration_error(table),
    }
    if scored is not known:
        figures["confidence_auroc"] = metrics.separation(known.confidence, scored.confidence)
        figures["distance_auroc"] = metrics.separation(-known.foreign, -scored.foreign)
    if scored.told is not None:
        told, low, high = metrics.accuracy(scored.told == scored.digits.labels)
        figures |= {"accuracy_told": told, "accuracy_told_low": low, "accuracy_told_high": high}
    return {name: round(value, 6) for name, value in figures.items()}


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a small CSV; floats are rounded to six decimals."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow([round(x, 6) if isinstance(x, float) else x for x in row])


def per_class_rows(scored: Scored, classes: tuple[str, ...]) -> list[list[Any]]:
    """Return source, class, accuracy and count for each class that occurs."""
    rows: list[list[Any]] = []
    for label, name in enumerate(classes):
        of_class = scored.digits.labels == label
        if of_class.any():
            accuracy = float(scored.correct[of_class].mean())
            rows.append([scored.digits.name, name, accuracy, int(of_class.sum())])
    return rows


def roc_rows(known: Scored, foreign: Scored) -> list[list[Any]]:
    """Return source, false alarm rate and detection rate of foreign digits by low confidence."""
    truth = np.repeat([0, 1], [len(known.digits), len(foreign.digits)])
    doubt = 1 - np.concatenate([known.confidence, foreign.confidence])
    false_alarms, detections, _ = roc_curve(truth, doubt)
    rates = np.interp(FALSE_ALARM_RATES, false_alarms, detections)
    return [
        [foreign.digits.name, float(alarm), float(rate)]
        for alarm, rate in zip(FALSE_ALARM_RATES, rates, strict=True)
    ]


def draw_confusion(scored: Scored, classes: tuple[str, ...], path: Path) -> None:
    """Draw the confusion matrix of one source."""
    figure, axes = plt.subplots(figsize=(7, 6.5), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        scored.digits.labels,
        scored.predicted,
        labels=range(len(classes)),
        display_labels=classes,
        cmap="Blues",
        colorbar=False,
        ax=axes,
    )
    axes.set_title(f"{_title(scored.digits)}: {scored.correct.mean():.2%} right")
    _save(figure, path)


def draw_mistakes(scored: Scored, classes: tuple[str, ...], count: int, path: Path) -> None:
    """Draw the mistakes made with the highest confidence, the worst first."""
    wrong = np.flatnonzero(~scored.correct)
    worst = wrong[np.argsort(-scored.confidence[wrong], kind="stable")][:count]
    columns = 10
    rows = max(1, -(-len(worst) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns, rows * 1.35 + 0.6), layout="constrained", squeeze=False
    )
    for place in axes.flat:
        place.axis("off")
    for place, index in zip(axes.flat, worst, strict=False):
        place.imshow(scored.digits.images[index], cmap="gray_r", vmin=0, vmax=255)
        truth, said = classes[scored.digits.labels[index]], classes[scored.predicted[index]]
        place.set_title(f"{truth} as {said}\n{scored.confidence[index]:.3f}", fontsize=8)
    figure.suptitle(f"{_title(scored.digits)}: the worst of {len(wrong)} mistakes")
    _save(figure, path)


def _title(digits: Digits) -> str:
    return f"{digits.script}, rendered" if digits.rendered else digits.script


def _save(figure: Any, path: Path) -> None:
    """Write a PNG without the name of the software and its version."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """Score the test pool, write figures, tables and images."""
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "evaluate")
    matplotlib.use("agg")

    digits_model = network.load(paths.model / "model.keras", task.image_size, len(task.classes))
    scripts = lineage.read(paths.model / "lineage.json", digits_model, task.classes)["scripts"]
    everything = []
    for digits in read_pool(paths.test, len(task.classes), task.image_size):
        outputs = network.predict(digits_model, digits.images)
        told = None
        if len(scripts) > 1 and digits.script in scripts:
            told = script_prior.condition_on_script(
                outputs["scripts"], scripts.index(digits.script)
            ).argmax(axis=1)
        everything.append(Scored(digits, outputs["digits"], outputs["foreign"], told))
    known, foreign = everything[0], everything[1:]

    for scored in everything:
        draw_confusion(
            scored, task.classes, paths.out / "images" / f"confusion_{scored.digits.name}.png"
        )
    draw_mistakes(known, task.classes, own.mistakes, paths.out / "images" / "mistakes.png")
    write_table(
        paths.out / "per_class.csv",
        ["source", "class", "accuracy", "count"],
        [row for scored in everything for row in per_class_rows(scored, task.classes)],
    )
    write_table(
        paths.out / "reliability.csv",
        ["source", "confidence", "accuracy", "count"],
        [
            [scored.digits.name, *row]
            for scored in everything
            for row in metrics.reliability(scored.confidence, scored.correct, own.calibration_bins)
        ],
    )
    write_table(
        paths.out / "roc.csv",
        ["source", "false_alarm_rate", "detection_rate"],
        [row for scored in foreign for row in roc_rows(known, scored)],
    )
    figures = {
        scored.digits.name: headline(scored, known, own.calibration_bins) for scored in everything
    }
    write_text(paths.out / "metrics.json", json.dumps(figures, indent=2) + "\n")
