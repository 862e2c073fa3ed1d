"""`digits simulate`: the traffic of params.yaml sent to a live endpoint, at its pace or faster.

With `--speed 3600` an hour of the story passes in a second. How far it has come stands in
.simulate/, where `--resume` goes on.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import secrets
import signal
from pathlib import Path
from typing import Any

from azure.core.exceptions import AzureError
from filelock import FileLock, Timeout

from core import params
from core.errors import DigitsError
from digits.production.traffic import Schedule, Stream, read
from mlops.azure import collected, connection
from mlops.azure.endpoint import Target
from mlops.azure.errors import explained
from mlops.azure.settings import load
from mlops.azure.workspace import connect
from mlops.production.sender import Reached, Run

FOLDER = Path(".simulate")
POOL, LABELLED = Path("data/prepared/production.npz"), Path("data/labelled")


def digest(stream: Stream) -> str:
    """Return a hash of all that a stream is made of."""
    hashed = hashlib.sha256(repr(stream.schedule).encode())
    for array in (stream.times, stream.digit, stream.phase, stream.pool.images):
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def reached(path: Path, asked: Any, stream: Stream) -> Reached:
    """Return where a run begins, or where the one in the file `path` goes on."""
    made_of = digest(stream)
    if asked.resume:
        try:
            known = Reached(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            raise DigitsError(f"{path}: no run to go on with; leave --resume out") from None
        if known.stream != made_of:
            raise DigitsError(f"{path}: params.yaml or the pool changed since; leave --resume out")
        return known
    if path.exists():
        print("a run that was stopped is left as it is; --resume would have gone on with it")
    first = stream.first(asked.phase) if asked.phase else 0
    stop = min(len(stream), first + asked.requests) if asked.requests else len(stream)
    if first == stop:
        raise DigitsError("params.yaml: simulate.phases: no request comes; raise a rate")
    return Reached(secrets.token_hex(4), made_of, first, stop, following=first)


def speed(text: str) -> float | None:
    """Return the factor on the command line, None for `max`; raise ValueError for another word."""
    factor = None if text == "max" else float(text)
    if factor is not None and not 0 < factor < float("inf"):
        raise ValueError(text)
    return factor


def positive(text: str) -> int:
    """Return the whole number above 0 on the command line; raise ValueError for another word."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(arguments: list[str]) -> None:
    """Send the traffic of params.yaml, or go on with what was stopped."""
    parser = argparse.ArgumentParser(prog="digits simulate", description=__doc__)
    connection.add_workspace(parser, "azure")
    parser.add_argument("--endpoint", help="its name; without, that of params.yaml")
    parser.add_argument("--speed", type=speed, default="1", help="a factor, or max (default 1)")
    parser.add_argument("--from", dest="phase", help="the phase to begin with")
    parser.add_argument("--requests", type=positive, help="how many to send at most")
    parser.add_argument("--concurrency", type=positive, default=4, help="connections (default 4)")
    parser.add_argument("--resume", action="store_true", help="go on where the last run stopped")
    asked = parser.parse_args(arguments)
    values = params.load()
    task, schedule = params.task(values), params.section(Schedule, values, "simulate")
    stream = read(POOL, LABELLED, schedule, len(task.classes), task.image_size, task.seed)
    for note in stream.notes:
        print(note)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        target = Target(connect(asked.workspace), load())
        target.name = collected.endpoint_name(asked.endpoint, target.name)
        path = FOLDER / f"{asked.workspace}-{target.name}.json"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock"), 0):
            if target.get() is None:
                raise DigitsError(
                    f"there is no endpoint {target.name}; `digits deploy apply --workspace "
                    f"{asked.workspace}` first"
                )
            run = Run(stream, task.classes, target, reached(path, asked, stream), asked.speed)
            if asked.speed:
                left = int(stream.times[run.reached.stop - 1]) - run.origin
                pace = datetime.timedelta(seconds=round(left / 1000 / asked.speed))
                print(f"{run.reached.stop - run.reached.following:,} requests in {pace}")
            with contextlib.ExitStack() as stack:
                stack.callback(run.report)
                run.go(path, asked.concurrency)
            path.unlink()
    except Timeout:
        raise DigitsError(f"{path}: another `digits simulate` is at work on it") from None
    except AzureError as error:
        raise DigitsError(explained(error)) from error
