"""Test rendered digits with real handwriting: `make rendering-realism SCRIPT HANDWRITING.npz`.

Input: the fonts and the parameters `hand` of params.yaml, and real handwriting, which is not in the
repository (arrays images uint8 (n, size, size), white on black, and labels uint8 (n,)). Output, on
standard output: the accuracy on it of a network trained on rendered digits only. The real digits
are used once, after training, and not for selection.
"""

import argparse
import dataclasses
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from core import params
from core.dataset import Digits
from core.errors import DigitsError
from digits.model import network as model
from digits.model.training import TrainConfig, fit
from digits.runtime.normalise import normalise
from digits.sources.fonts import FONTS, Fonts, load_glyphs, render

PER_CLASS, EPOCHS = 2000, 6
WATCHED_PER_CLASS = 50  # more rendered digits, to watch the training


def read_handwriting(path: Path, image_size: int, script: str, class_count: int) -> Digits:
    """Return the digits in an .npz, brought to the same normal form as the rendered ones.

    Raises DigitsError when the file is not there, is no .npz, or holds other arrays.
    """
    expected = "it should hold the arrays images uint8 (n, size, size) and labels uint8 (n,)"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        images = normalise(images, image_size)
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found; give the path of an .npz; {expected}") from None
    except (AttributeError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DigitsError(f"{path}: cannot be used ({error}); {expected}") from None
    if len(labels) == 0:
        raise DigitsError(f"{path}: has no digits; {expected}")
    return Digits(images, labels, script, False, class_count)


def report(labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> str:
    """Return a table: accuracy over all, then of each class with its most frequent mistake."""
    accuracy = (predicted == labels).mean()
    lines = [f"accuracy {accuracy:.2%} on {len(labels):,} real digits, trained on rendered ones"]
    for label in np.unique(labels):
        counts = np.bincount(predicted[labels == label], minlength=len(classes))
        right, total = counts[label], counts.sum()
        counts[label] = 0
        mistake = f"read as {classes[counts.argmax()]} {counts.max() / total:.1%}"
        lines.append(f"  {classes[label]}  {right / total:6.1%}  {mistake if counts.any() else ''}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Render, train, read the handwriting once, print."""
    parser = argparse.ArgumentParser(prog="realism", description=__doc__)
    parser.add_argument("script", help="a key of params.yaml's foreign that is drawn from fonts")
    parser.add_argument("handwriting", type=Path, help="an .npz of real digits")
    given = parser.parse_args(arguments)
    values = params.load()
    task = params.task(values)
    fonts = params.section(Fonts, values, f"foreign.{given.script}.reader")
    size, class_count = task.image_size, len(task.classes)
    real = read_handwriting(given.handwriting, size, given.script, class_count)
    folder = os.environ.get("DVC_ROOT", ".") / FONTS
    glyphs = load_glyphs(folder, fonts.train_fonts + fonts.unseen_fonts, fonts.characters)
    rng = np.random.default_rng([task.seed, zlib.crc32(given.script.encode())])
    training = render(glyphs, PER_CLASS, fonts.hand, size, rng)
    watched = render(glyphs, WATCHED_PER_CLASS, fonts.hand, size, rng)
    model.make_deterministic(task.seed)
    network = model.build(size, class_count)
    shorter = dataclasses.replace(task, epochs=EPOCHS)
    fit(network, training, watched, shorter, params.section(TrainConfig, values, "train"))
    predicted = model.predict(network, real.images).argmax(axis=1)
    print(report(real.labels, predicted, task.classes))
