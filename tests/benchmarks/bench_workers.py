"""Estimate when training on more machines pays: `make bench-workers`.

Measured: the time of a training step on one machine with two cores and with one core, and on two
processes with one core each that communicate over loopback; medians of several trainings.

Computed: the time of a step on n machines of two cores with 64 digits each, so with a batch size of
64 n. It is the time on one machine plus the all-reduce: each machine sends 4 bytes x weights x
2 (n - 1) / n in 2 (n - 1) rounds of a ring, plus the overhead of collective operations, measured as
the difference between two machines on loopback and one core for the same digits. The effect of
larger batches on accuracy is not estimated.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from core import params, tf_config
from core.errors import DigitsError
from digits.model import distributed, training
from digits.model import network as model

BATCH = 64  # digits a machine
STEPS = 200  # of an epoch; the first one, which traces the graph, does not count
NETWORKS = {"1 Gbit/s": (1e9, 2e-4), "10 Gbit/s": (1e10, 5e-5)}  # bits a second, seconds a turn
COUNTS = (2, 4, 8)  # machines
CHILD = """
import os, sys
cores, *numbers = sys.argv[1:]
os.sched_setaffinity(0, map(int, cores.split(",")))
from core import determinism
determinism.configure()
from benchmarks import bench_workers
bench_workers.train(*map(int, numbers))
"""


def train(batch_size: int, steps: int) -> None:
    """Train on random digits; print the seconds of a step and the number of weights."""
    machines = distributed.Machines() if tf_config.read()[0] > 1 else None
    values = params.load()
    task = dataclasses.replace(params.task(values), epochs=2)
    own = params.section(training.TrainConfig, values, "train")
    own = dataclasses.replace(own, batch_size=batch_size, full_epochs=2, outlier_exposure_share=0.0)
    model.make_deterministic(task.seed)
    rng = np.random.default_rng(task.seed)
    images = rng.integers(0, 256, (batch_size * steps, *2 * [task.image_size]), np.uint8)
    classes = rng.integers(0, len(task.classes), len(images)).astype(np.int32)
    network = model.build(task.image_size, len(task.classes))
    trainer = machines.trainer if machines else None
    epochs = training.epochs(network, (images, classes), task, own, trainer)
    first, second = (time.perf_counter() for _ in epochs)
    weights = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    print(json.dumps([(second - first) / steps, weights]))


def step(cores: list[str], batch_size: int, steps: int) -> tuple[float, int]:
    """Return the seconds of a step with a machine for each set of cores, and how many weights."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in cores]
    workers = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    processes, pipe = [], subprocess.PIPE
    for index, some in enumerate(cores):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        env = os.environ | {"TF_CONFIG": json.dumps(config if len(cores) > 1 else {})}
        env["PYTHONPATH"] = str(Path(__file__).parents[1])
        command = [sys.executable, "-c", CHILD, some, str(batch_size), str(steps)]
        processes.append(
            subprocess.Popen(command, env=env, encoding="utf-8", stdout=pipe, stderr=pipe)
        )
    said = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, said, strict=True):
        if process.returncode:
            raise DigitsError(f"a training ended with {process.returncode}: {error.strip()[-300:]}")
    seconds, weights = zip(*(json.loads(output) for output, _ in said), strict=True)
    return max(seconds), weights[0]


def reduced(seconds: float, weights: int, count: int, network: str) -> float:
    """Return what `count` machines take for a step that takes one of them some seconds."""
    rate, turn = NETWORKS[network]
    bits = 8 * 4 * weights * 2 * (count - 1) / count
    return seconds + bits / rate + 2 * (count - 1) * turn


def main(arguments: list[str]) -> None:
    """Measure, compute, print."""
    parser = argparse.ArgumentParser(prog="make bench-workers", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each training (default 3)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"(default {STEPS})")
    asked = parser.parse_args(arguments)
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise DigitsError("bench-workers needs two cores and Linux, which gives each machine one")
    first, second = sorted(os.sched_getaffinity(0))[:2]
    one, other, both = str(first), str(second), f"{first},{second}"
    cases = {
        "one machine, two cores": ([both], BATCH),
        "one machine, one core": ([one], BATCH),
        "two machines, a core each": ([one, other], BATCH),
        "two machines, 64 digits each": ([one, other], 2 * BATCH),
    }
    took: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(asked.runs):
        for name, (cores, batch_size) in cases.items():
            seconds, weights = step(cores, batch_size, asked.steps)
            took[name].append(seconds)
    medians = {name: statistics.median(runs) for name, runs in took.items()}
    for name, (_, batch_size) in cases.items():
        figures = (
            f"{1000 * medians[name]:6.1f} ms a step, {batch_size / medians[name]:7,.0f} a second"
        )
        print(f"{name:30} {batch_size:4} digits a batch {figures}")
    alone, _, _, shared = medians.values()
    collective = max(0.0, shared - medians["one machine, one core"])
    print(f"the collectives take {1000 * collective:.1f} ms a step on loopback")
    for network in NETWORKS:
        for count in COUNTS:
            gain = count * alone / reduced(alone + collective, weights, count, network)
            print(f"{count} machines of two cores, {network}: {gain:.1f} times the digits of one")
