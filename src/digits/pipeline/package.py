"""Stage package: the trained model as an MLflow model folder.

Enters: data/model, the runtime lock, the code that travels along (the loader first), and
validation digits for the input example. Leaves data/package, whose bytes depend on weights, data
and params only: dates and random ids that MLflow would write are derived from the weights.
"""

import argparse
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import keras
import mlflow.pyfunc
import numpy as np
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from pydantic import Field

from core import params
from core.dataset import read_pool
from core.errors import DigitsError
from core.files import sha256, write_text
from digits.model import lineage, network

FORMAT = 1  # as digit_model.py's
EPOCH = "1970-01-01 00:00:00"  # in place of the time of packaging
BUILD_TOOLS = ["pip", "setuptools", "wheel"]
EXAMPLES = 4  # images in the input example


@dataclass(frozen=True)
class Params:
    """params.yaml's section `package`."""

    __pydantic_config__ = params.STRICT

    python: Annotated[str, Field(pattern=r"^3\.\d+$")]  # that the model is to be served with


def pinned(lock: Path) -> list[str]:
    """Return `name==version ; marker` of every package in a hash-locked requirements file."""
    lines = re.findall(r"^([A-Za-z0-9][\w.-]*==[^\\\n]+?) *\\?$", lock.read_text("utf-8"), re.M)
    if not lines:
        raise DigitsError(f"{lock}: pins no package; run `make lock`")
    return lines


def signature(digits_model: keras.Model) -> ModelSignature:
    """Return what enters and leaves `predict` of the packaged model (serving/digit_model.py)."""
    size = digits_model.input_shape[1]
    _, scripts, classes = digits_model.get_layer("scripts").output.shape
    single, double = np.dtype(np.float32), np.dtype(np.int64)
    outputs = [
        TensorSpec(double, (-1,), "digit"),
        TensorSpec(single, (-1,), "confidence"),
        TensorSpec(single, (-1, classes), "digits"),
        TensorSpec(single, (-1, scripts, classes), "scripts"),
        TensorSpec(single, (-1,), "foreign"),
    ]
    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size))])
    return ModelSignature(inputs=inputs, outputs=Schema(outputs))


def write_environment(folder: Path, python: str, requirements: list[str]) -> None:
    """Write the environment in the three forms that MLflow and Azure ML read."""
    conda: dict[str, Any] = {
        "name": "digits",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    python_env: dict[str, Any] = {
        "python": python,
        "build_dependencies": BUILD_TOOLS,
        "dependencies": ["-r requirements.txt"],
    }
    write_text(folder / "requirements.txt", "\n".join(requirements) + "\n")
    write_text(folder / "conda.yaml", yaml.safe_dump(conda, sort_keys=False))
    write_text(folder / "python_env.yaml", yaml.safe_dump(python_env, sort_keys=False))


def main(arguments: list[str]) -> None:
    """Write the model folder."""
    parser = argparse.ArgumentParser(prog="package", description=__doc__)
    for name in ("--model", "--lock", "--validation", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--code", type=Path, nargs="+", required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, own = params.task(values), params.section(Params, values, "package")
    logging.getLogger("mlflow").setLevel(logging.ERROR)

    digits_model = network.load(paths.model / "model.keras", task.image_size, len(task.classes))
    weights = sha256(paths.model / "model.keras")
    manifest: dict[str, Any] = {"format": FORMAT, "model_sha256": weights}
    manifest |= lineage.read(paths.model / "lineage.json", digits_model, task.classes)
    validation = read_pool(paths.validation, len(task.classes), task.image_size)
    partial = paths.out.with_name(f"{paths.out.name}.partial")
    for left_over in (partial, paths.out):
        shutil.rmtree(left_over, ignore_errors=True)
    data = partial / "model"
    try:
        data.mkdir(parents=True)
        shutil.copyfile(paths.model / "model.keras", data / "model.keras")
        write_text(
            data / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        )

        requirements = pinned(paths.lock)
        folder = partial / "package"
        packaged = Model(
            utc_time_created=EPOCH,
            model_uuid=weights[:32],
            metadata={"scripts": manifest["scripts"], "classes": list(task.classes)},
        )
        mlflow.pyfunc.save_model(
            folder,
            loader_module=paths.code[0].stem,
            data_path=str(data),
            code_paths=[str(path) for path in paths.code],
            conda_env={"dependencies": [f"python={own.python}", "pip", {"pip": requirements}]},
            mlflow_model=packaged,
            signature=signature(digits_model),
            input_example=validation[0].images[:EXAMPLES],
        )
        packaged.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.PY_VERSION] = own.python
        packaged.save(folder / "MLmodel")
        write_environment(folder, own.python, requirements)
        with (folder / "_summary.txt").open("w", encoding="utf-8", newline="\n") as file:
            digits_model.summary(print_fn=lambda line: file.write(line + "\n"), line_length=80)
        folder.replace(paths.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
