"""Stage prepare: read and validate all CSV files, and write the four disjoint splits.

Input: data/mnist, data/foreign (each script that params.yaml names) and data/labelled (production
digits with true labels; empty at first). Output: training and validation (a seeded, stratified
split), test (which only evaluate reads) and production.
"""

import argparse
import math
from pathlib import Path
from typing import Annotated

from pydantic import Field

from core import params
from core.dataset import MNIST, Digits, common, concatenate, read_csv, split, write_split
from core.errors import DigitsError
from core.params import Task

MIN_DIGITS = 10  # digits of a script for validation: stage monitor takes its reference from them
SHARED = 0.1  # maximum share of test images that are training images


@params.strict
class Params:
    """params.yaml's section `prepare`."""

    production_count: Annotated[int, Field(ge=0)]  # digits of MNIST's training set
    validation_share: Annotated[float, Field(gt=0, lt=1)]  # of training and validation together
    foreign_share: Annotated[float, Field(ge=0, lt=1)]  # of training and validation together


def foreign_sets(folder: Path, part: str, task: Task, rendered: dict[str, bool]) -> list[Digits]:
    """Return one part (train, test or production) of each foreign script, in their order."""
    return [
        read_csv(folder / f"{script}_{part}.csv", task.image_size, len(task.classes), script, drawn)
        for script, drawn in rendered.items()
    ]


def labelled_sets(folder: Path, task: Task, scripts: list[str]) -> list[Digits]:
    """Return labelled production digits, one `Digits` per script, from files SCRIPT_*.csv."""
    found: dict[str, list[Digits]] = {}
    for path in sorted(folder.rglob("*.csv")):
        script = path.stem.split("_")[0]
        if script not in scripts:
            raise DigitsError(
                f"{path}: expected a name SCRIPT_*.csv, where SCRIPT is {' or '.join(scripts)}. "
                "Rename the file."
            )
        digits = read_csv(path, task.image_size, len(task.classes), script)
        found.setdefault(script, []).append(digits)
    return [concatenate(parts) for parts in found.values()]


def check_unknown_scripts(folder: Path, scripts: list[str]) -> None:
    """Raise DigitsError when the folder has CSV files of scripts that params.yaml lacks."""
    others = [path for path in folder.glob("*.csv") if path.stem.split("_")[0] not in scripts]
    if others:
        names = ", ".join(sorted(path.name for path in others))
        raise DigitsError(
            f"{folder}: {names}: params.yaml's foreign has no such script. Delete the files."
        )


def mix(mnist: Digits, foreign: list[Digits], share: float, seed: int) -> list[Digits]:
    """Return equal numbers of digits of each foreign script, so that `share` of all is foreign.

    Raises DigitsError with the largest possible share when there are too few.
    """
    if share == 0:
        return []
    if not foreign:
        raise DigitsError(
            "params.yaml: prepare.foreign_share is above 0, but foreign names no script. "
            "Set it to 0 or add a script."
        )
    each = math.ceil(share / (1 - share) * len(mnist) / len(foreign))
    fewest = min(len(part) for part in foreign)
    if each > fewest:
        most = len(foreign) * fewest / (len(foreign) * fewest + len(mnist))
        raise DigitsError(
            f"params.yaml: prepare.foreign_share={share} needs {each:,} images per script; "
            f"{fewest:,} are available. Maximum: {math.floor(most * 1000) / 1000}."
        )
    return [split(part, each, seed)[0] for part in foreign]


def check_apart(train: Digits, test: Digits) -> None:
    """Raise DigitsError when much of the test data is training data."""
    if (count := common(train, test)) > SHARED * len(test):
        block = "mnist" if train.script == MNIST else f"foreign.{train.script}"
        raise DigitsError(
            f"{train.name}: {count:,} of {len(test):,} test images are training images, so the "
            f"test would be meaningless. In params.yaml's {block}.reader name other test data, or "
            "hold out a part of train: test_share: 0.1 instead of test."
        )


def check_enough(training: list[Digits], validation: list[Digits]) -> None:
    """Raise DigitsError for too few digits to learn from, or to validate with (stage monitor)."""
    for parts, name, fewest in ((training, "training", 1), (validation, "validation", MIN_DIGITS)):
        if (most := max(len(part) for part in parts)) < fewest:
            raise DigitsError(
                f"{most} digits are left for {name}, expected at least {fewest}. Add digits, or in "
                "params.yaml's prepare lower production_count or change validation_share."
            )


def main(arguments: list[str]) -> None:
    """Read all CSV files; write the four splits."""
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__)
    for name in ("--mnist", "--foreign", "--labelled", "--out"):
        parser.add_argument(name, type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "prepare")
    rendered = params.foreign_scripts(values)
    check_unknown_scripts(paths.foreign, list(rendered))
    train, mnist_test = (
        read_csv(paths.mnist / f"{part}.csv", task.image_size, len(task.classes), MNIST)
        for part in ("train", "test")
    )
    test = [mnist_test, *foreign_sets(paths.foreign, "test", task, rendered)]
    foreign = foreign_sets(paths.foreign, "train", task, rendered)
    for digits, held in zip([train, *foreign], test, strict=True):
        check_apart(digits, held)
    production, mnist = split(train, config.production_count, task.seed)
    known = [mnist, *mix(mnist, foreign, config.foreign_share, task.seed)]
    known += labelled_sets(paths.labelled, task, [MNIST, *rendered])
    training, validation = [], []
    for name in sorted({part.name for part in known}, key=[part.name for part in known].index):
        part = concatenate([part for part in known if part.name == name])
        held_out, rest = split(part, round(len(part) * config.validation_share), task.seed)
        validation.append(held_out)
        training.append(rest)
    check_enough(training, validation)
    write_split(paths.out / "test.npz", test)
    unseen = foreign_sets(paths.foreign, "production", task, rendered)
    write_split(paths.out / "production.npz", [production, *unseen])
    write_split(paths.out / "training.npz", training)
    write_split(paths.out / "validation.npz", validation)
    for name, parts in (("training", training), ("validation", validation), ("test", test)):
        print(f"{name}: " + ", ".join(f"{len(part):,} {part.name}" for part in parts))
