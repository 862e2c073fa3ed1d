"""Training on several machines, here processes on loopback: each ends with the weights of one.

The accuracy is then that of one machine, within the noise of seeds and any other bound.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, Project, environment, free_port

from core import tf_config
from core.errors import DigitsError
from core.files import sha256

# It trains on some digits of MNIST and prints what its weights come to.
CHILD = """
import dataclasses, sys
from core import determinism
determinism.configure()
import frozen
from core import errors, params, tf_config
from digits.model import distributed, network as model, training
from conftest import mnist_part
machines = distributed.Machines() if tf_config.read()[0] > 1 else None
model.make_deterministic(1)
values = frozen.values()
task = dataclasses.replace(params.task(values), epochs=int(sys.argv[1]))
own = params.section(training.TrainConfig, values, "train")
own = dataclasses.replace(own, batch_size=int(sys.argv[2]))
digits = mnist_part("train", 1280)
data = digits.images, digits.labels.astype("int32")
network = model.build(28, 10)
trainer = machines.trainer if machines else None
try:
    for _ in training.epochs(network, data, task, own, trainer):
        print("epoch", flush=True)
except errors.DigitsError as error:
    sys.exit(str(error))
print(distributed.digest(network), flush=True)
"""
STAGE = ["src", "train", "--training", "data/prepared/training.npz"]
STAGE += ["--validation", "data/prepared/validation.npz"]


def machines(count: int) -> list[dict[str, str]]:
    """Return the environment of each of several machines on free ports of loopback."""
    if count == 1:
        return [environment()]
    workers = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    config = {"cluster": {"worker": workers}}
    return [
        environment()
        | {"TF_CONFIG": json.dumps(config | {"task": {"type": "worker", "index": index}})}
        for index in range(count)
    ]


@contextmanager
def running(
    commands: list[list[str]], envs: list[dict[str, str]], cwd: Path = ROOT
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start a process in each environment; none is left."""
    places = [ROOT / "src", ROOT / "tests", ROOT / "tests" / "support", ROOT]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, places)), "TF_CPP_MIN_LOG_LEVEL": "3"}
    processes = [
        subprocess.Popen(
            command,
            cwd=cwd,
            env=env | paths,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for command, env in zip(commands, envs, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def child(epochs: int, batch_size: int) -> list[str]:
    """Return the command of a short training."""
    return [sys.executable, "-c", CHILD, str(epochs), str(batch_size)]


def test_who_trains_is_read_from_tf_config(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    for config, expected in (
        ("", (1, 0)),
        ("{}", (1, 0)),
        (json.dumps({"cluster": hosts, "task": {"type": "chief", "index": 0}}), (3, 0)),
        (json.dumps({"cluster": hosts, "task": {"type": "worker", "index": "1"}}), (3, 2)),
    ):
        monkeypatch.setenv("TF_CONFIG", config)
        assert tf_config.read() == expected
    for task in ({"type": "worker", "index": 2}, {"type": "ps", "index": 0}, {}, None):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": hosts, "task": task}))
        with pytest.raises(DigitsError, match="TF_CONFIG: this machine is not among"):
            tf_config.read()
    for damaged in ("{", "[1]"):
        monkeypatch.setenv("TF_CONFIG", damaged)
        with pytest.raises(DigitsError, match="TF_CONFIG"):
            tf_config.read()


@pytest.mark.prove
def test_two_machines_end_with_the_weights_of_one() -> None:
    with running([child(1, 64)] * 3, machines(2) + machines(1)) as processes:
        said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    first, second, alone = [output.split()[-1] for output, _ in said]
    assert first == second == alone
    assert len(first) == 64


@pytest.mark.prove
def test_three_machines_end_with_the_same_weights_and_share_evenly() -> None:
    with running([child(2, 195)] * 3, machines(3)) as processes:
        said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert len({output.split()[-1] for output, _ in said}) == 1
    with running([child(1, 64)] * 3, machines(3)) as processes:
        said = [process.communicate(timeout=300) for process in processes]
    assert all("expected a multiple of 3 (machines), found 64" in text for _, text in said)


@pytest.mark.prove
def test_a_machine_that_is_lost_is_reported() -> None:
    with running([child(1000, 64)] * 2, machines(2)) as (stays, goes):
        assert stays.stdout
        assert stays.stdout.readline() == "epoch\n"
        goes.kill()
        end = time.monotonic() + 300
        _, output = stays.communicate(timeout=end - time.monotonic())
        assert stays.returncode == 1
        assert "lost the connection to another machine" in output


@pytest.mark.prove
def test_the_stage_makes_the_bytes_of_one_machine_on_each_of_two(
    reproduced: Project, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("first", "second")]
    commands = [
        [sys.executable, *STAGE, "--out", str(out), "--curves", str(out / "curves.csv")]
        for out in outs
    ]
    with running(commands, machines(2), reproduced.root) as processes:
        said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    alone = reproduced.root / "data/model"
    for out in outs:
        assert {path.name: sha256(path) for path in out.iterdir()} == {
            name: sha256(alone / name) for name in ("model.keras", "lineage.json", "curves.csv")
        }
