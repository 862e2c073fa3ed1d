"""Stage package: write the trained model as an MLflow model folder.

Input: data/model, requirements-serve.txt, the modules that are copied into the folder, and the
validation split. Output: data/package. Its bytes depend on weights, data and params only: the
dates and random ids of MLflow are replaced. smoke.jsonl holds requests with known answers, with
which a deployment is tested.
"""

import argparse
import contextlib
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
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
from core.dataset import Digits, read_split
from core.errors import DigitsError
from core.files import sha256, write_text
from digits.model import lineage, network

FORMAT = 1  # as in loader.py
EPOCH = "1970-01-01 00:00:00"  # replaces the time of packaging
BUILD_TOOLS = ["pip", "setuptools", "wheel"]
EXAMPLES = 4  # images in the input example
SMOKE_ITEMS = 200  # requests in smoke.jsonl
LOADER = "loader"  # the module of digits/runtime that MLflow imports


@params.strict
class Params:
    """params.yaml's section `package`."""

    python: Annotated[str, Field(pattern=r"^3\.\d+$")]  # that serves the model


def pinned(lock: Path) -> list[str]:
    """Return `name==version ; marker` of every package in a hash-locked requirements file."""
    lines = re.findall(r"^([A-Za-z0-9][\w.-]*==[^\\\n]+?) *\\?$", lock.read_text("utf-8"), re.M)
    if not lines:
        raise DigitsError(f"{lock}: contains no pinned package. Run `make lock`.")
    return lines


def modules(path: Path) -> list[Path]:
    """Return the modules of a package without `__init__`, or the single module `path`."""
    return sorted(path.glob("[!_]*.py")) if path.is_dir() else [path]


def signature(digits_model: keras.Model) -> ModelSignature:
    """Return the signature of the packaged model's `predict` (runtime/loader.py)."""
    size = digits_model.input_shape[1]
    _, scripts, classes = digits_model.get_layer("scripts").output.shape
    single, double = np.dtype(np.float32), np.dtype(np.int64)
    outputs = [
        TensorSpec(double, (-1,), "digit"),
        TensorSpec(single, (-1,), "confidence"),
        TensorSpec(single, (-1, classes), "digits"),
        TensorSpec(single, (-1, scripts, classes), "scripts"),
        TensorSpec(single, (-1,), "ood_score"),
    ]
    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size))])
    return ModelSignature(inputs=inputs, outputs=Schema(outputs))


def smoke_items(digits: Digits, classes: tuple[str, ...]) -> Iterator[str]:
    """Yield a line of JSON for each of the first digits: a request and its correct answer.

    `pointer` is a JSON Pointer (RFC 6901) into the answer, `value` the true class.
    """
    pairs = zip(digits.images[:SMOKE_ITEMS], digits.labels[:SMOKE_ITEMS], strict=True)
    for image, label in pairs:
        answer = {"pointer": "/predictions/0/digit", "value": classes[label]}
        item = {"request": {"data": [image.tolist()]}, "answer": answer}
        yield json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n"


def write_summary(model: keras.Model, path: Path) -> None:
    """Write the table of layers in UTF-8, whatever the encoding of standard output is.

    Keras prints it with rich, which uses ASCII if that encoding is not UTF-8.
    """
    lines: list[str] = []
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        model.summary(print_fn=lines.append, line_length=80)
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_environment(folder: Path, python: str, requirements: list[str], lock: Path) -> None:
    """Write the environment in the three formats that MLflow and Azure ML read."""
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
    write_text(folder / "requirements.txt", lock.read_text("utf-8"))  # with the hashes
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
    task, config = params.task(values), params.section(Params, values, "package")
    logging.getLogger("mlflow").setLevel(logging.ERROR)

    digits_model = network.load(paths.model / "model.keras", task.image_size, len(task.classes))
    weights = sha256(paths.model / "model.keras")
    manifest: dict[str, Any] = {"format": FORMAT, "model_sha256": weights}
    manifest |= lineage.read(paths.model / "lineage.json", digits_model, task.classes)
    known, *_ = read_split(paths.validation, len(task.classes), task.image_size)
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
            loader_module=LOADER,
            data_path=str(data),
            code_paths=[str(file) for path in paths.code for file in modules(path)],
            conda_env={"dependencies": [f"python={config.python}", "pip", {"pip": requirements}]},
            mlflow_model=packaged,
            signature=signature(digits_model),
            input_example=known.images[:EXAMPLES],
        )
        packaged.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.PY_VERSION] = config.python
        packaged.save(folder / "MLmodel")
        write_environment(folder, config.python, requirements, paths.lock)
        write_summary(digits_model, folder / "_summary.txt")
        write_text(folder / "smoke.jsonl", "".join(smoke_items(known, task.classes)))
        folder.replace(paths.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
