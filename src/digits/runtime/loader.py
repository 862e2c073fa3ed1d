"""Load the packaged model, for MLflow. A copy of this file is part of the model folder.

It imports TensorFlow, NumPy and determinism.py, which is copied, too. Input: images uint8
(n, size, size), white on black. Output: see `DigitModel.predict`.
"""

import hashlib
import json
from pathlib import Path

import determinism

determinism.configure()  # before TensorFlow is loaded

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

FORMAT = 1  # version of the model folder
BATCH = 1000  # images per call of the model, which limits memory


class DigitModel:
    """A digit recogniser with calibrated probabilities."""

    def __init__(self, folder: Path) -> None:
        """Load manifest and model; raise ValueError when they are corrupted or do not match."""
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            weights = (folder / "model.keras").read_bytes()
            found, expected = self.manifest["format"], self.manifest["model_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: is corrupted ({error!r}). Download the model again."
            ) from None
        if found != FORMAT:
            raise ValueError(
                f"{folder}: expected format {FORMAT}, found {found}. "
                "Use the loader in the model folder."
            )
        if hashlib.sha256(weights).hexdigest() != expected:
            raise ValueError(
                f"{folder / 'model.keras'}: is corrupted (its SHA-256 differs from the manifest). "
                "Download the model again."
            )
        model = keras.saving.load_model(folder / "model.keras", compile=False)
        self.image_size = int(model.input_shape[1])
        images = tf.TensorSpec((None, self.image_size, self.image_size), tf.uint8)
        # One graph for every n: a plain tf.function would trace one for each.
        graph = tf.function(lambda images: model(images, training=False))
        self._score = graph.get_concrete_function(images)

    def predict(self, model_input: np.ndarray, params: object = None) -> dict[str, np.ndarray]:
        """Return arrays by name for n images uint8 (n, size, size).

        - digit int64 (n,): the most probable class, an index into manifest["classes"]
        - confidence float32 (n,): its probability
        - digits float32 (n, classes): probabilities of classes, summed over scripts
        - scripts float32 (n, scripts, classes): of each script in manifest["scripts"] and class
        - ood_score float32 (n,): out-of-distribution score from 0 to 1; 1 % of in-distribution
          digits that were not in the training data exceed 0.5

        Raises ValueError for another shape or type.
        """
        images, size = np.asarray(model_input), self.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size) or not len(images):
            raise ValueError(
                f"images must be uint8 of shape (n, {size}, {size}) with n > 0, not "
                f"{images.dtype} {images.shape}"
            )
        parts = [
            self._score(tf.constant(images[start : start + BATCH]))
            for start in range(0, len(images), BATCH)
        ]
        scores = {
            name: np.concatenate([part[name].numpy() for part in parts])
            for name in ("digits", "scripts", "ood_score")
        }
        digits = scores["digits"]
        return {"digit": digits.argmax(axis=1), "confidence": digits.max(axis=1), **scores}


def _load_pyfunc(path: str) -> DigitModel:
    """MLflow's entry point; `path` is the folder `data` of the model."""
    return DigitModel(Path(path))
