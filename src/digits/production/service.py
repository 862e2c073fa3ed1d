"""Run the endpoint's code in this process, without HTTP or data collection.

Input: images. Output: answers, as the endpoint gives them.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from core.console import hidden_stderr
from core.errors import DigitsError

BATCH = 100  # images per call; another number may change the last bit of an answer


@dataclass(frozen=True)
class Answers:
    """The answers to n images; the strings are lists of n."""

    model_version: str
    digits: list[str]
    confidence: np.ndarray  # float32 (n,)
    ood_score: np.ndarray  # float32 (n,)


class Service:
    """`code`/score.py with the model folder `package`: what its `load` returns."""

    def __init__(self, code: Path, package: Path) -> None:
        """Load the code and the model; raise DigitsError that names score.py when it fails."""
        self.script = code / "score.py"
        if not self.script.exists():
            raise DigitsError(f"{self.script}: not found. Expected a module with load().")
        os.environ["AZUREML_MODEL_DIR"] = str(package.resolve())
        # The module imports from the model folder, a DVC output, which must not change.
        sys.dont_write_bytecode = True
        try:
            with hidden_stderr():
                self.service = _module(self.script).load()
        except (Exception, SystemExit) as error:
            raise DigitsError(f"{self.script}: {_described(error)}. Fix it.") from None

    def score(self, images: np.ndarray) -> Answers:
        """Return the answers to images uint8 (n, size, size), n at most BATCH.

        Raises DigitsError that names score.py when it fails or its answer lacks something.
        """
        try:
            answer = self.service.predict(images, None)
            found = answer["predictions"]
            if len(found) != len(images):
                raise ValueError(f"{len(found)} predictions for {len(images)} images")
            return Answers(
                str(answer["model_version"]),
                [str(one["digit"]) for one in found],
                np.array([one["confidence"] for one in found], np.float32),
                np.array([one["ood_score"] for one in found], np.float32),
            )
        except (Exception, SystemExit) as error:
            raise DigitsError(
                f"{self.script}: predict() failed: {_described(error)}. Fix it."
            ) from None


def _module(script: Path) -> ModuleType:
    """Import a module from a file; it may import other modules of its folder."""
    spec = importlib.util.spec_from_file_location("score", script.resolve())
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
