"""`digits simulate` as a person runs it, on an emulator that is killed in the middle."""

import json
import os
import signal
import subprocess
import time
import warnings
from pathlib import Path

import click
import pytest
from conftest import environment
from light import DIGITS, Deployable, Emulator, known_digits

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from mlops.azure import collected
    from mlops.azure.workspace import connect, store
    from mlops.production import monitor
from core.dataset import write_split
from mlops.cli import call


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--speed", "0"], "--speed"),
        (["--speed", "fast"], "--speed"),
        (["--speed", "nan"], "--speed"),
        (["--requests", "0"], "--requests"),
        (["--concurrency", "-1"], "--concurrency"),
    ],
)
def test_words_that_cannot_be(words: list[str], told: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        call("simulate", *words)
    assert told in caught.value.format_message()


@pytest.mark.prove
def test_the_stand_in_is_killed_in_the_middle_and_ctrl_c_comes_too(
    deployable: Deployable, emulator: Emulator
) -> None:
    """The command as a person runs it: all requests are answered, each label is written once."""
    deployable.commit("model1")
    deployable.deploy("apply")
    write_split(deployable.root / "data" / "prepared" / "production.npz", [known_digits()])
    env = environment() | deployable.settings()
    command = [*DIGITS, "simulate", "--workspace", "local", "--speed", "max", "--requests", "4000"]

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *words],
            cwd=deployable.root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def until(count: int) -> None:
        deadline = time.monotonic() + 60
        while reached() < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def reached() -> int:
        found = list((deployable.root / ".simulate").glob("local-*.json"))
        return json.loads(found[0].read_text())["following"] if found else 0

    process = start()
    try:
        until(100)
        emulator.kill()
        emulator.start()
        until(reached() + 1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert " retries, " in said
        process = start("--resume")
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "sent 4,000, answered 4,000, " in said
    assert "mnist: 100.00% of 4,000 right" in said
    assert not list((deployable.root / ".simulate").glob("*.json"))

    before = Path.cwd()
    os.chdir(deployable.root)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("DIGITS_LOCAL_WORKSPACE", deployable.workspace)
            workspace = connect("local")
        name = deployable.serving(emulator)["name"]
        hours = collected.hours(store(workspace), collected.LABELS, name)
        rows = list(monitor.labels(hours, None, monitor.LeftOut()))
    finally:
        os.chdir(before)
    assert f"{len(rows):,} true labels written" in said
    assert len({row["request_id"] for row in rows}) == len(rows) > 100
