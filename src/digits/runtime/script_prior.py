"""Condition predictions on a known script. A copy of this file travels in the model folder.

Weight 1 for that script, OTHER_SCRIPT_WEIGHT for each other one: a strong prior, not a certainty.
A digit may be written so that it looks as in another script, and then what little is left for the
known script says less than the probabilities of the others.
"""

import numpy as np

# Up to 0.003 it changes nothing on rendered digits. A model trained on those reads 84.6 % of real
# Devanagari with it (this set was used to choose it), 79.1 % with 0.
OTHER_SCRIPT_WEIGHT = 0.001


def condition_on_script(joint: np.ndarray, script: int) -> np.ndarray:
    """Return the probabilities of the classes, float32 (n, classes), for a known script's index.

    `joint` is the model's output `scripts`, float32 (n, scripts, classes).
    """
    weights = np.full((joint.shape[1], 1), OTHER_SCRIPT_WEIGHT, np.float32)
    weights[script] = 1
    digits: np.ndarray = (joint * weights).sum(axis=1)
    return digits / digits.sum(axis=1, keepdims=True)
