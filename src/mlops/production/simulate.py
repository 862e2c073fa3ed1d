"""`digits simulate`: the traffic of params.yaml sent to a live endpoint, at its pace or faster.

With `--speed 3600` an hour of the scenario takes a second. The checkpoint is in .simulate/, from
which `--resume` continues.
"""

import asyncio
import contextlib
import datetime
import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from azure.core.exceptions import AzureError
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from core import console, params
from core.errors import DigitsError
from digits.production.traffic import Schedule, Stream, read
from mlops.azure.errors import explain_error
from mlops.azure.settings import Params, load
from mlops.production.sender import Address, Checkpoint, Run

FOLDER = Path(".simulate")
POOL, LABELLED = Path("data/prepared/production.npz"), Path("data/labelled")


def digest(stream: Stream) -> str:
    """Return a hash of everything that determines a stream."""
    hashed = hashlib.sha256(repr(stream.schedule).encode())
    for array in (stream.times, stream.digit, stream.phase, stream.pool.images):
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def reached(path: Path, asked: Any, stream: Stream) -> Checkpoint:
    """Return the first checkpoint of a new run, or the one in the file `path`."""
    made_of = digest(stream)
    if asked.resume:
        try:
            known = TypeAdapter(Checkpoint).validate_json(path.read_bytes())
        except (OSError, ValueError):
            raise DigitsError(f"{path}: no run to continue; run without --resume") from None
        if known.stream != made_of:
            raise DigitsError(f"{path}: params.yaml or the pool has changed; run without --resume")
        return known
    if path.exists():
        print("starting a new run; --resume would have continued the interrupted one")
    first = stream.first(asked.phase) if asked.phase else 0
    stop = min(len(stream), first + asked.requests) if asked.requests else len(stream)
    if first == stop:
        raise DigitsError("params.yaml: simulate.phases: there are no requests; increase a rate")
    return Checkpoint(secrets.token_hex(4), made_of, first, stop, following=first)


def workspace_target(
    kind: str, endpoint: str | None, settings: Params
) -> tuple[Any, Callable[[list[dict[str, Any]]], None]]:
    """Return an endpoint of a workspace, and the function that writes labels there."""
    from mlops.azure import collected
    from mlops.azure.endpoint import Target
    from mlops.azure.workspace import connect, store

    target = Target(connect(kind), settings)
    target.name = collected.endpoint_name(endpoint, target.name)
    if target.get() is None:
        raise DigitsError(
            f"no endpoint {target.name}: run `digits deploy apply --workspace {kind}` first"
        )
    container = store(target.workspace)
    return target, lambda rows: collected.append_labels(container, target.name, rows)


def main(asked: SimpleNamespace) -> None:
    """Send the traffic of params.yaml, or continue an interrupted run."""
    values, settings = params.load(), load()
    task, schedule = params.task(values), params.section(Schedule, values, "simulate")
    stream = read(POOL, LABELLED, schedule, len(task.classes), task.image_size, task.seed)
    for note in stream.notes:
        print(note)
    console.interrupt_on_signals()
    try:
        if asked.url:
            target, put_labels = Address(asked.url, asked.key_file, settings), None
            path = FOLDER / f"{hashlib.sha256(asked.url.encode()).hexdigest()[:16]}.json"
        else:
            target, put_labels = workspace_target(asked.workspace, asked.endpoint, settings)
            path = FOLDER / f"{asked.workspace}-{target.name}.json"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock"), 0):
            begin = reached(path, asked, stream)
            run = Run(stream, task.classes, target, begin, asked.speed, put_labels)
            if asked.speed:
                left = int(stream.times[run.reached.stop - 1]) - run.origin
                pace = datetime.timedelta(seconds=round(left / 1000 / asked.speed))
                print(f"{run.reached.stop - run.reached.following:,} requests in {pace}")
            with contextlib.ExitStack() as stack:
                stack.callback(run.report)
                asyncio.run(run.go(path, asked.concurrency or target.concurrency()))
            path.unlink()
    except Timeout:
        raise DigitsError(f"{path}: another `digits simulate` is using it") from None
    except AzureError as error:
        raise DigitsError(explain_error(error)) from error
