"""Run the endpoint's code in this process, without HTTP or data collection.

Input: images. Output: answers, as the endpoint gives them.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from core.console import hidden_stderr
from core.errors import DigitsError

BATCH = 100  # images per call; another number may change the last bit of an answer
OUTPUTS = {"digit": str, "confidence": float, "ood_score": float}  # of each image


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
            raise DigitsError(f"{self.script}: {error!r:.300}. Fix it.") from None

    def score(self, images: np.ndarray, progress: tqdm) -> dict[str, list]:
        """Return model_version, digit, confidence and ood_score of images uint8 (n, size, size).

        Raises DigitsError that names score.py when it fails or its answer is incomplete.
        """
        found: dict[str, list] = {name: [] for name in ("model_version", *OUTPUTS)}
        try:
            for start in range(0, len(images), BATCH):
                batch = images[start : start + BATCH]
                answer = self.service.predict(batch, None)
                if len(answer["predictions"]) != len(batch):
                    count = len(answer["predictions"])
                    raise ValueError(f"{count} predictions for {len(batch)} images")
                found["model_version"] += [str(answer["model_version"])] * len(batch)
                for name, kind in OUTPUTS.items():
                    found[name] += [kind(one[name]) for one in answer["predictions"]]
                progress.update(len(batch))
        except (Exception, SystemExit) as error:
            raise DigitsError(f"{self.script}: predict() failed: {error!r:.300}. Fix it.") from None
        return found


def _module(script: Path) -> ModuleType:
    """Import a module from a file; it may import other modules of its folder."""
    spec = importlib.util.spec_from_file_location("score", script.resolve())
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
