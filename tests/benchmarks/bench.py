"""Time the training and the convnet of the Keras documentation: `make bench`.

Each training runs several times, alternately, in its own process; the table shows medians. The time
includes tracing and compilation, but neither the import of TensorFlow nor the scoring of the test
split after each epoch. Our model runs with the settings that give the same bytes on every processor
(core.determinism), among them AVX2 instead of AVX512.

- fast: our model, one epoch of 70 % of the digits without augmentation: the shortest training with
  99.0 % on the validation split (two seeds reach 99.1 and 99.2 %)
- default: our model with the values of params.yaml
- convnet: the convnet of https://keras.io/examples/vision/mnist_convnet, 15 epochs with a batch
  size of 128, on our training and validation splits together, with TensorFlow's default settings
- pinned: the convnet with the settings of our model, to show their cost

The test split was not used for selection.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks import record
from core import determinism, params
from core.dataset import MNIST, read_split
from core.errors import DigitsError
from digits.model import network as model
from digits.model.augmentation import Distortion
from digits.model.training import TrainConfig, epochs, loss_and_accuracy
from digits.pipeline.train import targets
from digits.production.scoring import cores

PREPARED, PACKAGE = Path("data", "prepared"), Path("data", "package")
GOAL = 0.99  # test accuracy
CONVNET_EPOCHS, CONVNET_BATCH = 15, 128
MATRIX = 2048  # rows and columns: large enough for the peak
LOAD_AND_SCORE = """
import sys, time
import mlflow.pyfunc, numpy, tensorflow
start = time.perf_counter()
model = mlflow.pyfunc.load_model(sys.argv[1])
size = model.metadata.get_input_schema().inputs[0].shape[1]
model.predict(numpy.zeros((1, size, size), "uint8"))
print(time.perf_counter() - start)
"""


class Clock:
    """Seconds of training until now: those of `score` do not count."""

    def __init__(self, score: Callable[[], float]) -> None:
        """Start; `score` returns the test accuracy."""
        self.score = score
        self.start = time.perf_counter()
        self.epochs: list[tuple[float, float]] = []  # seconds so far and test accuracy

    def epoch(self) -> None:
        """Score at the end of an epoch."""
        now = time.perf_counter()
        self.epochs.append((now - self.start, self.score()))
        self.start += time.perf_counter() - now


def load(names: list[str], task: params.Task) -> Any:
    """Return images and classes of the known digits in some pools."""
    pools = [
        read_split(PREPARED / f"{name}.npz", len(task.classes), task.image_size) for name in names
    ]
    known = [part for pool in pools for part in pool if part.script == MNIST]
    return targets(known, [MNIST])


def ours(fast: bool) -> dict[str, Any]:
    """Train as params.yaml says, or the shortest way; return the epochs and the arithmetic."""
    values = params.load()
    task, config = params.task(values), params.section(TrainConfig, values, "train")
    if fast:
        task = dataclasses.replace(task, epochs=1)
        still = Distortion(0.0, 0.0, 0.0, 0.0)
        config = dataclasses.replace(config, full_epochs=0, hard_share=0.7, distortion=still)
    class_count = len(task.classes)
    training, (images, labels) = load(["training"], task), load(["test"], task)
    model.make_deterministic(task.seed)
    network = model.build(task.image_size, class_count)
    clock = Clock(lambda: loss_and_accuracy(model.predict(network, images), labels)[1])
    for _ in epochs(network, training, task, config):
        clock.epoch()
    full = min(config.full_epochs, task.epochs)
    passes = full + config.hard_share * (task.epochs - full)
    arithmetic = step_operations(network) * len(training[1]) * passes
    return {"epochs": clock.epochs, "operations": arithmetic, "peak": peak()}


def convnet() -> dict[str, Any]:
    """Train the rival as its documentation does; return its epochs."""
    task = params.task(params.load())
    training, test = load(["training", "validation"], task), load(["test"], task)
    images, tested = (
        part[0][..., np.newaxis].astype(np.float32) / 255 for part in (training, test)
    )
    network = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(len(task.classes), activation="softmax"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy")

    def score() -> float:
        predicted = network.predict(tested, CONVNET_BATCH, verbose=0).argmax(axis=1)
        return float((predicted == test[1]).mean())

    clock = Clock(score)
    each = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: clock.epoch())
    network.fit(images, training[1], CONVNET_BATCH, CONVNET_EPOCHS, verbose=0, callbacks=[each])
    return {"epochs": clock.epochs}


def step_operations(network: keras.Model) -> int:
    """Return the floating-point operations of training on one image, those of matrices alone.

    Forwards, to the weights and to the inputs, which the first layer does not need.
    """
    forward = []
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D | layers.Dense):
            positions = int(np.prod(layer.output.shape[1:-1]))
            forward.append(2 * positions * int(np.prod(layer.kernel.shape)))
    return 3 * sum(forward) - forward[0]


def peak() -> float:
    """Return the operations a second of matrix products, one on each core, the best of ten."""
    shape = (MATRIX, MATRIX)
    matrices = [tf.random.stateless_normal(shape, (0, core)) for core in range(cores())]
    products = tf.function(lambda: [tf.reduce_sum(tf.matmul(each, each)) for each in matrices])
    seconds = []
    for _ in range(11):  # the first traces
        start = time.perf_counter()
        [total.numpy() for total in products()]
        seconds.append(time.perf_counter() - start)
    return 2 * MATRIX**3 * len(matrices) / min(seconds)


RUNS = {
    "fast": lambda: ours(fast=True),
    "default": lambda: ours(fast=False),
    "convnet": convnet,
    "pinned": convnet,
}


def child(name: str) -> dict[str, Any]:
    """Run one training in a process of its own."""
    env = dict(os.environ)
    if name == "convnet":
        for setting in determinism.SETTINGS:
            env.pop(setting, None)
    code = f"from benchmarks.bench import RUNS; import json; print(json.dumps(RUNS[{name!r}]()))"
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    return json.loads(run([sys.executable, "-c", code], env))


def run(command: list[str], env: dict[str, str]) -> str:
    """Return the last line that a process printed; raise DigitsError when it fails."""
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise DigitsError(f"a training ended with code {done.returncode}; see above")
    return done.stdout.splitlines()[-1]


def until_goal(result: dict[str, Any]) -> tuple[float, float]:
    """Return seconds and epochs of training until the test accuracy first passed the goal."""
    for epoch, (seconds, score) in enumerate(result["epochs"], start=1):
        if score > GOAL:
            return seconds, epoch
    return math.inf, math.inf


def main(arguments: list[str]) -> None:
    """Train each in turn; print the medians and which goals they reach."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write the tables of BENCHMARKS.md")
    given = parser.parse_args(arguments)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for repetition in range(given.repetitions):
        for name, found in results.items():
            found.append(child(name))
            seconds, score = found[-1]["epochs"][-1]
            print(
                f"{repetition + 1} of {given.repetitions}: {name:8}{seconds:6.1f} s, "
                f"accuracy {score:.4f}; {GOAL:.1%} after {until_goal(found[-1])[0]:.1f} s",
                flush=True,
            )

    def median(name: str, figure: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(figure(result) for result in results[name])

    def total(result: dict[str, Any]) -> float:
        return float(result["epochs"][-1][0])

    rows = [["training", f"{GOAL:.1%} after", "complete", "epochs", "test accuracy"]]
    for name, found in results.items():
        score = median(name, lambda result: result["epochs"][-1][1])
        goal = median(name, lambda result: until_goal(result)[0])
        length = len(found[0]["epochs"])
        seconds = median(name, total)
        rows.append([name, f"{goal:.1f} s", f"{seconds:.1f} s", f"{length}", f"{score:.2%}"])
    # The convnet's epoch of the goal varies by chance more than the seconds of its epochs do.
    epoch_seconds = median("convnet", lambda result: total(result) / len(result["epochs"]))
    rival = median("convnet", lambda result: until_goal(result)[1]) * epoch_seconds
    fast = median("fast", lambda result: until_goal(result)[0])
    share = median("default", lambda result: result["operations"] / total(result) / result["peak"])
    goals = [
        record.Goal(f"convnet to {GOAL:.1%}, times fast", rival / fast, "at least", 12),
        record.Goal(
            "default, share of the convnet's time",
            median("default", total) / median("convnet", total),
            "at most",
            0.55,
        ),
        record.Goal("share of the peak of matrix products", share, "at least", 0.5),
    ]
    record.finish("bench", rows, goals, f"medians of {given.repetitions}", given.record)
    loading = [
        float(run([sys.executable, "-c", LOAD_AND_SCORE, str(PACKAGE)], dict(os.environ)))
        for _ in range(given.repetitions)
    ]
    size = sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file())
    print(
        f"model folder {size / 1e6:.2f} MB; loading it and scoring one image takes "
        f"{statistics.median(loading):.2f} s beyond imports"
    )
