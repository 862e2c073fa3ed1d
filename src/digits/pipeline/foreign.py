"""Stage foreign: write digits of one script other than MNIST's to data/foreign/SCRIPT_*.csv.

Input: open fonts of the locked npm packages, from which digits are rendered with variations of
handwriting, or the files of real digits that params.yaml names for the script. Output: CSV files
for training, testing and production traffic, with equal numbers of each class. Rendered digits
for testing and production use other fonts than those for training.
"""

import argparse
import os
import re
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from core import params
from core.dataset import Digits, write_csv
from core.errors import DigitsError
from core.params import Task
from digits.sources.archives import Archive
from digits.sources.fonts import FONTS, Fonts, load_glyphs, render
from digits.sources.readers import Files, read_parts


@params.strict
class PerClass:
    """The number of digits of each class."""

    train: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]
    production: Annotated[int, Field(ge=1)]


@params.strict
class Params:
    """A script's block in params.yaml's section `foreign`."""

    source: str  # DVC dependency: a file or folder; package-lock.json for npm packages
    per_class: PerClass
    reader: Annotated[Fonts | Files | Archive, Field(discriminator="format")]


def render_parts(fonts: Fonts, per_class: PerClass, task: Task, script: str) -> dict[str, Digits]:
    """Return rendered digits for training, testing and production.

    Raises DigitsError when a font is not installed or lacks a character, and when the parameters of
    `hand` render an empty image.
    """
    if len(fonts.characters) != len(task.classes):
        raise DigitsError(
            f"params.yaml: foreign.{script}.reader.characters: expected {len(task.classes)} "
            f"entries, one for each class in their order, found {len(fonts.characters)}"
        )
    folder = os.environ.get("DVC_ROOT", ".") / FONTS
    seed = [task.seed, zlib.crc32(script.encode())]  # independent of the order of scripts
    train_rng, unseen_rng = (np.random.default_rng([*seed, stream]) for stream in range(2))
    parts = {}
    seen = load_glyphs(folder, fonts.train_fonts, fonts.characters)
    unseen = load_glyphs(folder, fonts.unseen_fonts, fonts.characters)
    for part, glyphs, rng in (
        ("train", seen, train_rng),
        ("test", unseen, unseen_rng),
        ("production", unseen, unseen_rng),
    ):
        count = getattr(per_class, part)
        try:
            images, labels = render(glyphs, count, fonts.hand, task.image_size, rng)
        except ValueError as error:
            raise DigitsError(
                f"params.yaml: foreign.{script}.reader.hand: renders empty images ({error}). "
                "Increase half_width_pixels, weight_factors or edge_pixels."
            ) from None
        parts[part] = Digits(images, labels, script, True, len(task.classes))
    return parts


def select_parts(train: Digits, test: Digits, per_class: PerClass, seed: int) -> dict[str, Digits]:
    """Return real digits for training, testing and production; the last is taken from `train`.

    Raises DigitsError when a class has too few digits.
    """
    rng = np.random.default_rng(seed)
    selected: dict[str, list[np.ndarray]] = {"train": [], "test": [], "production": []}
    for label in range(train.class_count):
        for digits, parts in ((train, ("train", "production")), (test, ("test",))):
            shuffled = rng.permutation(np.flatnonzero(digits.labels == label))
            needed = sum(getattr(per_class, part) for part in parts)
            if len(shuffled) < needed:
                raise DigitsError(
                    f"params.yaml: foreign.{train.script}.per_class needs {needed:,} digits of "
                    f"class {label} for {' and '.join(parts)}; {len(shuffled):,} are available. "
                    "Reduce it."
                )
            for part in parts:
                count = getattr(per_class, part)
                selected[part].append(shuffled[:count])
                shuffled = shuffled[count:]
    return {
        part: (test if part == "test" else train)[np.sort(np.concatenate(index))]
        for part, index in selected.items()
    }


def script_of(stage: str) -> str:
    """Return the script in the name that DVC gives a stage in DVC_STAGE, such as foreign@kanji.

    The name is not part of the command, where a shell would read it. Raises DigitsError for any
    other name.
    """
    match = re.search(r"(?:^|:)foreign@([a-z0-9_]+)\Z", stage)
    if match is None:
        raise DigitsError(
            f"DVC_STAGE: expected foreign@SCRIPT, a key of {params.PATH}'s foreign in lower-case "
            f"letters, digits and _, found {stage!r}; run 'dvc repro foreign@SCRIPT'"
        )
    return match[1]


def main(arguments: list[str]) -> None:
    """Render or read the digits of one script; write three CSV files."""
    parser = argparse.ArgumentParser(prog="foreign", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(arguments).out
    script = script_of(os.environ.get("DVC_STAGE", ""))
    values = params.load()
    task = params.task(values)
    config = params.section(Params, values, f"foreign.{script}")

    if isinstance(config.reader, Fonts):
        parts = render_parts(config.reader, config.per_class, task, script)
    else:
        source = Path(config.source)
        train, test = read_parts(config.reader, source, task.image_size, task.classes, script)
        parts = select_parts(train, test, config.per_class, task.seed)
    for part, digits in parts.items():
        path = out / f"{script}_{part}.csv"
        write_csv(path, digits)
        print(f"{path}: {len(digits):,} digits{', rendered' if digits.rendered else ''}")
