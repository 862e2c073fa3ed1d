"""Read lineage.json, which records the scripts, data and parameters that a model comes from."""

import json
from pathlib import Path
from typing import Any

import keras

from core.errors import DigitsError


def read(path: Path, model: keras.Model, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the lineage of a model with these classes.

    Raises DigitsError when the file is missing or corrupted, or does not match the model.
    """
    try:
        lineage = json.loads(path.read_text("utf-8"))
        known = model.get_layer("scripts").output.shape[1]
        if lineage["classes"] != list(classes) or len(lineage["scripts"]) != known:
            raise ValueError("its scripts or classes do not match the model")
        return {
            key: lineage[key] for key in ("scripts", "classes", "temperature", "data", "params")
        }
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found. Run `dvc repro -f train`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DigitsError(f"{path}: is corrupted ({error!r}). Run `dvc repro -f train`.") from None
