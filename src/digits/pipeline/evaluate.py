"""Stage evaluate: metrics of the model on the test split, which no other stage uses.

Input: data/model and the split test. Output: metrics.json (summary metrics of each source; for a
model of several scripts also the accuracy given the script), per_class.csv, reliability.csv and
roc.csv, all in git, and a folder of images: a confusion matrix of each source and the mistakes on
MNIST with the highest confidence.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.metrics import ConfusionMatrixDisplay, roc_curve

from core import params
from core.dataset import Digits, read_split
from core.files import atomic_write, write_text
from digits.evaluation import metrics
from digits.model import lineage, network
from digits.runtime import script_prior
from digits.tracking.runs import log_evaluation

FALSE_ALARM_RATES = np.linspace(0, 1, 101)  # where roc.csv has points
DOTS_PER_INCH = 100


@params.strict
class Params:
    """params.yaml's section `evaluate`."""

    calibration_bins: Annotated[int, Field(ge=1)]
    mistakes: Annotated[int, Field(ge=1, le=400)]  # in mistakes.png


@dataclass(frozen=True)
class Predictions:
    """The digits of one source, their class probabilities (n, classes) and OOD scores (n,).

    `given_script` are the classes (n,) predicted when the script is known, None if the model knows
    no other script, or does not know this one.
    """

    digits: Digits
    probabilities: np.ndarray
    ood_score: np.ndarray
    given_script: np.ndarray | None

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


def summary_metrics(predictions: Predictions, known: Predictions, bins: int) -> dict[str, float]:
    """Return the metrics of one source for metrics.json; `known` are those of MNIST."""
    accuracy, low, high = metrics.accuracy(predictions.correct)
    table = metrics.reliability(predictions.confidence, predictions.correct, bins)
    figures = {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": metrics.log_loss(predictions.probabilities, predictions.digits.labels),
        "calibration_error": metrics.calibration_error(table),
    }
    if predictions is not known:
        figures["confidence_auroc"] = metrics.auroc(known.confidence, predictions.confidence)
        figures["ood_score_auroc"] = metrics.auroc(-known.ood_score, -predictions.ood_score)
    if predictions.given_script is not None:
        correct = predictions.given_script == predictions.digits.labels
        accuracy, low, high = metrics.accuracy(correct)
        figures |= {
            "accuracy_given_script": accuracy,
            "accuracy_given_script_low": low,
            "accuracy_given_script_high": high,
        }
    return {name: round(value, 6) for name, value in figures.items()}


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV file; floats are rounded to six decimals."""
    with atomic_write(path) as partial:
        table = pd.DataFrame(rows, columns=header).round(6)
        table.to_csv(partial, index=False, lineterminator="\n")


def per_class_rows(predictions: Predictions, classes: tuple[str, ...]) -> list[list[Any]]:
    """Return source, class, accuracy and count of each class that occurs."""
    rows: list[list[Any]] = []
    for label, name in enumerate(classes):
        of_class = predictions.digits.labels == label
        if of_class.any():
            accuracy = float(predictions.correct[of_class].mean())
            rows.append([predictions.digits.name, name, accuracy, int(of_class.sum())])
    return rows


def roc_rows(known: Predictions, foreign: Predictions) -> list[list[Any]]:
    """Return the ROC curve of detecting foreign digits by low confidence.

    A row is source, false alarm rate and detection rate.
    """
    truth = np.repeat([0, 1], [len(known.digits), len(foreign.digits)])
    uncertainty = 1 - np.concatenate([known.confidence, foreign.confidence])
    false_alarms, detections, _ = roc_curve(truth, uncertainty)
    rates = np.interp(FALSE_ALARM_RATES, false_alarms, detections)
    return [
        [foreign.digits.name, float(alarm), float(rate)]
        for alarm, rate in zip(FALSE_ALARM_RATES, rates, strict=True)
    ]


def draw_confusion(
    predictions: Predictions, classes: tuple[str, ...], title: str, path: Path
) -> None:
    """Draw the confusion matrix of one source."""
    shown = [_shortened(name) for name in classes]
    figure, axes = plt.subplots(figsize=(7, 6.5), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        predictions.digits.labels,
        predictions.predicted,
        labels=range(len(classes)),
        display_labels=shown,
        xticks_rotation="vertical" if max(map(len, shown)) > 3 else "horizontal",
        cmap="Blues",
        colorbar=False,
        ax=axes,
    )
    axes.set_title(f"{title}: {predictions.correct.mean():.2%} right")
    _save(figure, path)


def draw_mistakes(
    predictions: Predictions, classes: tuple[str, ...], count: int, title: str, path: Path
) -> None:
    """Draw the mistakes with the highest confidence, in descending order."""
    wrong = np.flatnonzero(~predictions.correct)
    worst = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:count]
    columns = 10
    rows = max(1, -(-len(worst) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns, rows * 1.35 + 0.6), layout="constrained", squeeze=False
    )
    for place in axes.flat:
        place.axis("off")
    for place, index in zip(axes.flat, worst, strict=False):
        place.imshow(predictions.digits.images[index], cmap="gray_r", vmin=0, vmax=255)
        truth = _shortened(classes[predictions.digits.labels[index]])
        predicted = _shortened(classes[predictions.predicted[index]])
        between = " as " if len(truth + predicted) <= 8 else " as\n"  # 12 characters fit
        place.set_title(
            f"{truth}{between}{predicted}\n{predictions.confidence[index]:.3f}", fontsize=8
        )
    figure.suptitle(f"{title}: the worst of {len(wrong)} mistakes")
    _save(figure, path)


def _title(digits: Digits, known: str) -> str:
    """Return the name of a source in titles; `known` is that of the known digits."""
    name = known if digits.script == "mnist" else digits.script
    return f"{name}, rendered" if digits.rendered else name


def _shortened(name: str, most: int = 12) -> str:
    """Return a class's name, cut where it would not fit."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _save(figure: Any, path: Path) -> None:
    """Write a PNG file without metadata, which would contain the version of Matplotlib."""
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """Score the test split; write metrics, tables and images."""
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__)
    for name in ("--model", "--test", "--out"):
        parser.add_argument(name, type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "evaluate")
    name = params.names(values).name
    matplotlib.use("agg")

    digits_model = network.load(paths.model / "model.keras", task.image_size, len(task.classes))
    scripts = lineage.read(paths.model / "lineage.json", digits_model, task.classes)["scripts"]
    everything = []
    for digits in read_split(paths.test, len(task.classes), task.image_size):
        outputs = network.predict(digits_model, digits.images)
        given_script = None
        if len(scripts) > 1 and digits.script in scripts:
            given_script = script_prior.condition_on_script(
                outputs["scripts"], scripts.index(digits.script)
            ).argmax(axis=1)
        everything.append(
            Predictions(digits, outputs["digits"], outputs["ood_score"], given_script)
        )
    known, foreign = everything[0], everything[1:]

    for predictions in everything:
        path = paths.out / "images" / f"confusion_{predictions.digits.name}.png"
        draw_confusion(predictions, task.classes, _title(predictions.digits, name), path)
    path = paths.out / "images" / "mistakes.png"
    draw_mistakes(known, task.classes, config.mistakes, _title(known.digits, name), path)
    write_table(
        paths.out / "per_class.csv",
        ["source", "class", "accuracy", "count"],
        [row for predictions in everything for row in per_class_rows(predictions, task.classes)],
    )
    write_table(
        paths.out / "reliability.csv",
        ["source", "confidence", "accuracy", "count"],
        [
            [predictions.digits.name, *row]
            for predictions in everything
            for row in metrics.reliability(
                predictions.confidence, predictions.correct, config.calibration_bins
            )
        ],
    )
    write_table(
        paths.out / "roc.csv",
        ["source", "false_alarm_rate", "detection_rate"],
        [row for predictions in foreign for row in roc_rows(known, predictions)],
    )
    figures = {
        predictions.digits.name: summary_metrics(predictions, known, config.calibration_bins)
        for predictions in everything
    }
    write_text(paths.out / "metrics.json", json.dumps(figures, indent=2) + "\n")
    log_evaluation(figures, paths.out, paths.model / "model.keras")
