"""The detector of drift, as the page uses it: the reference and the settings of this project.

Both are read again when their files change, so that `dvc repro` is seen without a restart; a
model that still runs is judged by its own reference then. What is missing is no error: production
is shown, and the reason why it is not judged.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from core import params
from core.errors import DigitsError
from digits.monitoring.analysis import Params
from digits.monitoring.drift import Reference, Verdict
from digits.monitoring.histograms import Summary

REFERENCE = Path("data/monitoring/reference.json")
REFERENCES = 8  # of models that may still run
WINDOW = 500  # requests, where params.yaml cannot be read
Json = dict[str, Any]


class Detector:
    """Judges windows of answers against data/monitoring/reference.json."""

    def __init__(self, root: Path) -> None:
        """Look for the files below `root`, the project's folder."""
        self.files = (root / REFERENCE, root / params.PATH)
        self.lock = threading.Lock()
        self.stamp: list[int] = []
        self.references: dict[str, Reference] = {}  # by model version, the latest last
        self.settings: Params | None = None
        self.task: params.Task | None = None  # None until params.yaml can be read
        self.scripts: list[str] = []
        self.missing = ""  # why there is no judging

    def refresh(self) -> None:
        """Read both files again if one of them changed."""
        with self.lock:
            stamp = [file.stat().st_mtime_ns if file.exists() else 0 for file in self.files]
            if stamp == self.stamp:
                return
            settings, references, missing = None, self.references, ""
            task, scripts = self.task, self.scripts
            try:
                values = params.load(self.files[1])
                task = params.task(values)
                scripts = ["mnist", *params.foreign_scripts(values)]
                settings = params.section(Params, values, "monitor")
                latest = Reference.read(self.files[0])
                others = [kept for kept in references.items() if kept[0] != latest.model_version]
                references = dict([*others, (latest.model_version, latest)][-REFERENCES:])
            except DigitsError as error:
                missing = f"Not judged: {error}"
            self.task, self.scripts, self.settings = task, scripts, settings
            self.references, self.missing, self.stamp = references, missing, stamp

    @property
    def window(self) -> int:
        """How many digits are judged together."""
        return self.settings.window if self.settings else WINDOW

    @property
    def limit(self) -> int | None:
        """How much evidence there is when an alarm begins."""
        return self.settings.alarm.windows_between_false_alarms if self.settings else None

    def has(self, label: str) -> bool:
        """Whether a true label is a class of params.yaml; any is, where that cannot be read."""
        return self.task is None or label in self.task.classes

    def reads(self, row: Json) -> bool:
        """Whether a row (as of `judge`) has the size and a class of params.yaml, and shares."""
        shares = 0 <= row["confidence"] <= 1 and 0 <= row["foreign"] <= 1
        if self.task is None:
            self.refresh()
        if self.task is None:
            return shares
        size = len(row["image"]) == self.task.image_size**2
        return shares and size and row["digit"] in self.task.classes

    def judge(
        self, rows: list[Json], version: str, before: Verdict | None
    ) -> tuple[Verdict | None, float | None, float | None]:
        """Return the verdict on a window, the share of strangers in it and its accuracy, estimated.

        `before` is the verdict on the window before it. Each row has image uint8 (size * size,),
        digit, confidence and foreign. None where it cannot be told.
        """
        self.refresh()
        reference = self.reference(version)
        task, settings = self.task, self.settings
        if reference is None or task is None or settings is None:
            return None, None, None
        try:
            images = np.stack([row["image"] for row in rows])
            size = round(images.shape[1] ** 0.5)
            window = Summary.of(
                images.reshape(-1, size, size),
                np.array([task.classes.index(row["digit"]) for row in rows]),
                np.array([row["confidence"] for row in rows]),
                np.array([row["foreign"] for row in rows]),
                len(task.classes),
            )
        except ValueError:  # params.yaml has named other classes or another size meanwhile
            return None, None, None
        verdict = reference.judge(window, settings.alarm, before)
        return verdict, reference.strangers(window), reference.accuracy(window)

    def reference(self, version: str) -> Reference | None:
        """Return the reference of a model, whose version may be told in short."""
        for known, reference in self.references.items():
            if version and (known.startswith(version) or version.startswith(known)):
                return reference
        return None

    def why_not(self, version: str) -> str:
        """Return why answers of a model version cannot be judged, or nothing."""
        if self.settings is None or not self.references:
            return self.missing
        if version and self.reference(version) is None:
            return (
                f"Not judged: the reference is of model {list(self.references)[-1][:12]}, "
                f"production runs {version[:12]}; run `dvc repro` on the commit that was deployed."
            )
        return ""

    def expected(self, version: str) -> dict[str, float] | None:
        """Return the share of each class among the answers of a model's reference."""
        reference = self.reference(version)
        if reference is None or self.task is None:
            return None
        counts = reference.summary.classes
        return dict(zip(self.task.classes, (counts / counts.sum()).tolist(), strict=False))
