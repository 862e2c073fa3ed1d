"""What stage train wrote beside its weights: which scripts, data and params they came from."""

import json
from pathlib import Path
from typing import Any

import keras

from core.errors import DigitsError

KEYS = ("scripts", "classes", "temperature", "data", "params")


def read(path: Path, model: keras.Model, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the lineage of a model with these classes.

    Raises DigitsError when it is absent or damaged, or tells of other scripts or classes than
    the model has.
    """
    try:
        lineage = json.loads(path.read_text("utf-8"))
        known = model.get_layer("scripts").output.shape[1]
        if lineage["classes"] != list(classes) or len(lineage["scripts"]) != known:
            raise ValueError("its scripts or classes are not those of the model")
        return {key: lineage[key] for key in KEYS}
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found; run `dvc repro -f train`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DigitsError(f"{path}: is damaged ({error!r}); run `dvc repro -f train`") from None
