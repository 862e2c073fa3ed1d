"""Send a stream of requests to an endpoint, without losing or double-counting any.

A request without an answer is retried under the same id, so that counts by id are correct. Retries
end when score.py repeatedly fails for it while it answers others. A request that score.py refuses
with a status from 400 to 499 is never sent again. True labels are written when the scenario reaches
their time.
"""

import asyncio
import contextlib
import datetime
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
from azure.core.exceptions import AzureError
from pydantic_core import from_json, to_json
from tqdm import tqdm

from core.errors import DigitsError
from core.files import write_text
from digits.production.traffic import Stream
from mlops.azure.settings import BUSY_STATUS, IN_FLIGHT, MODEL_STATUS, Params

if TYPE_CHECKING:  # not at run time: the SDK takes seconds to load and may be absent
    from mlops.azure.endpoint import Target

ROWS = 1000  # requests whose images are in memory at a time
LABELS_AT_ONCE = 10_000
UNSURE = {0, 404, 408, 424, 425, 429}  # unanswered, like 5xx: a retry may succeed
OF_THE_MODEL = {424, 500}  # permanent for the same request
TRIES = 5  # of such a request, while others are answered
FAILED_SECONDS = 90.0  # maximum duration of its retries, if no other is answered
REFUSED_FIRST = 100  # stop after this many refused requests if none was answered
PATIENCE_SECONDS = 600.0  # stop after this time without an answer
TOLD_SECONDS = 2.0  # print a message after this time without an answer
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0  # between retries; doubled each time
TICK_SECONDS, SAVE_SECONDS = 0.1, 1.0


@dataclass
class Checkpoint:
    """The progress of a run: everything that `--resume` needs."""

    run: str  # the beginning of its requests' ids, unique to the run
    stream: str  # a hash of the stream's inputs
    first: int  # the numbers of its first request and of the one after its last
    stop: int
    following: int  # every request before this one is done
    done: list[int] = field(default_factory=list)  # later ones that are done as well
    refused: list[int] = field(default_factory=list)  # done without an answer
    labels: int = 0  # number of the stream's labels, in order, written or skipped
    labels_written: int = 0
    retried: int = 0
    busy: int = 0  # of those, because the deployment had too many requests at once
    answered: dict[str, int] = field(default_factory=dict)  # by script
    right: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(self.answered.values()) + len(self.refused)


@dataclass
class Address:
    """An endpoint outside a workspace, given by its address and a key."""

    name: str  # its address
    key_file: Path
    settings: Params

    def authorise(self) -> dict[str, str]:
        """Return the headers of a request, the key included, and the address as `url`."""
        key = self.key_file.read_bytes().strip()
        if not re.fullmatch(rb"[!-~]+", key):
            raise DigitsError(
                f"{self.key_file}: expected a key, found {key[:20]!r}; write the key to it"
            )
        bearer = {"Authorization": f"Bearer {key.decode()}"}
        return bearer | {"Content-Type": "application/json", "url": self.name}

    def concurrency(self) -> int:
        """Return how many concurrent requests a deployment accepts by params.yaml."""
        return IN_FLIGHT * self.settings.requests_at_a_time * self.settings.instance_count


class Run:
    """One run of a stream, from where an earlier run of it stopped."""

    def __init__(
        self,
        stream: Stream,
        classes: tuple[str, ...],
        target: "Target | Address",
        reached: Checkpoint,
        speed: float | None,
        put_labels: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> None:
        """Continue a run at its checkpoint; with `speed` None as fast as possible.

        `put_labels` stores true labels, or raises AzureError if it must be retried later.
        """
        self.stream, self.classes, self.target = stream, classes, target
        self.reached, self.speed, self.put_labels = reached, speed, put_labels
        self.stopping = asyncio.Event()
        self.headers = target.authorise()
        self.done = set(reached.done)
        self.jobs = self._jobs(frozenset(self.done))
        self.clock = self.origin = int(stream.times[min(reached.following, len(stream) - 1)])
        self.began = self.answered_at = time.monotonic()
        self.already = reached.count
        self.failing_since: float | None = None  # the first failure since the last answer
        self.reason = ""  # of the last try that failed
        self.gap: float | None = None  # start of the outage, once it was printed
        self.labels = stream.known_labels()

    async def work(self, session: aiohttp.ClientSession) -> None:
        """Send requests, one after another, until none is left."""
        for number, due_ms, name, body in self.jobs:
            if self.speed:
                due = self.began + (due_ms - self.origin) / 1000 / self.speed
                await self.pause(due - time.monotonic())
            self.clock = max(self.clock, due_ms)
            await self.ask(session, number, name, body)
            if self.stopping.is_set():
                break

    async def pause(self, seconds: float) -> None:
        """Wait, or return early if the run stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    def _jobs(self, done: frozenset[int]) -> Iterator[tuple[int, int, str, bytes]]:
        """Yield number, time in ms, id and body of each request that is not done."""
        for start in range(self.reached.following, self.reached.stop, ROWS):
            part = self.stream.part(start, min(start + ROWS, self.reached.stop))
            for row, number in enumerate(part.index.tolist()):
                if number not in done:
                    name = f"{self.reached.run}-{part.ids[row]}"
                    body = to_json({"data": [part.images[row].tolist()]})
                    yield number, int(part.times[row]), name, body

    async def ask(
        self, session: aiohttp.ClientSession, number: int, name: str, body: bytes
    ) -> None:
        """Send one request until it is answered or refused, or the run stops."""
        pause, tries, began = FIRST_PAUSE_SECONDS, 0, time.monotonic()
        while not self.stopping.is_set():
            sent_at, headers = time.monotonic(), self.headers
            status, model_status, wait, content = 0, "", "", b""
            sent = headers | {"x-ms-client-request-id": name}
            try:
                async with session.post(sent.pop("url"), data=body, headers=sent) as reply:
                    status, content = reply.status, await reply.read()
                    model_status = reply.headers.get(MODEL_STATUS, "")
                    wait = reply.headers.get("Retry-After", "")
            except (aiohttp.ClientError, OSError) as error:
                status, content = 0, (str(error) or repr(error)).encode()
            text = f"{model_status or status or ''} {content.decode(errors='replace')[:200]}"
            text = text.strip()
            if status == 200:
                self.answered(number, content)
                return
            if status in (401, 403):
                self.authorise_again(headers, text)
            elif (status in UNSURE or status >= 500) and not model_status.startswith("4"):
                self.reason = text
                since = self.failing_since = min(self.failing_since or sent_at, sent_at)
                tries += self.answered_at > sent_at
                hopeless = tries >= TRIES or sent_at - began > FAILED_SECONDS
                if status in OF_THE_MODEL and hopeless:
                    self.refused(number, text)
                    return
                if time.monotonic() - since > PATIENCE_SECONDS:
                    raise DigitsError(
                        f"{self.target.name} gave no answer for {PATIENCE_SECONDS:.0f} s ({text}); "
                        "fix the endpoint, then continue with --resume"
                    )
            else:
                self.refused(number, text)
                return
            self.reached.retried += 1
            self.reached.busy += status == BUSY_STATUS
            asked = float(wait) if wait.isdigit() else 0.0
            await self.pause(max(asked, pause * random.uniform(0.5, 1)))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def answered(self, number: int, answer: bytes) -> None:
        """Count an answer."""
        try:
            digit = from_json(answer)["predictions"][0]["digit"]
        except (ValueError, KeyError, IndexError, TypeError):
            self.refused(number, "200 without predictions")
            return
        (label,), (script,) = self.stream.truth(np.array([number]))
        known, right = self.reached, digit == self.classes[label]
        known.answered[script] = known.answered.get(script, 0) + 1
        known.right[script] = known.right.get(script, 0) + int(right)
        self._finish(number)
        self.answered_at, self.failing_since = time.monotonic(), None

    def refused(self, number: int, text: str) -> None:
        """Count a request that cannot be answered."""
        self.reached.refused.append(number)
        self._finish(number)
        count = len(self.reached.refused)
        if count == 1:
            tqdm.write(f"request {number:,} is refused: {text}")
        if count >= REFUSED_FIRST and not self.reached.answered:
            raise DigitsError(f"{self.target.name} refuses every request: {text}")

    def _finish(self, number: int) -> None:
        self.done.add(number)
        while self.reached.following in self.done:
            self.done.discard(self.reached.following)
            self.reached.following += 1

    def authorise_again(self, refused: dict[str, str], text: str) -> None:
        """Get a new key or token, once for all workers; raise DigitsError when it is unchanged."""
        if self.headers == refused:
            self.headers = self.target.authorise()
            if self.headers == refused:
                raise DigitsError(f"{self.target.name} does not accept the key: {text}")

    async def go(self, path: Path, concurrency: int) -> None:
        """Send all requests; if interrupted, write the checkpoint to the file `path`."""
        timeout = aiohttp.ClientTimeout(self.target.settings.request_timeout_seconds + 5)
        connector = aiohttp.TCPConnector(limit=concurrency)
        saved = 0.0
        total = self.already + self.reached.stop - self.reached.following - len(self.done)
        with tqdm(total=total, initial=self.already, unit="request", disable=None) as progress:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                workers = [asyncio.create_task(self.work(session)) for _ in range(concurrency)]
                sending = asyncio.gather(*workers)
                try:
                    while not sending.done():
                        await asyncio.wait([sending], timeout=TICK_SECONDS)
                        progress.update(self.reached.count - progress.n)
                        self.report_outages()
                        if time.monotonic() - saved > SAVE_SECONDS:
                            await self.write_labels(self.clock)
                            self.save(path)
                            saved = time.monotonic()
                    await sending
                    await self.write_last_labels()
                finally:
                    self.stopping.set()  # each request that was sent gets its answer
                    await asyncio.gather(*workers, return_exceptions=True)
                    progress.update(self.reached.count - progress.n)
                    self.save(path)

    def report_outages(self) -> None:
        """Print once that answers have stopped, and once that they are back."""
        now = f"{datetime.datetime.now(datetime.UTC):%H:%M:%S} UTC"
        since = self.failing_since
        if since is None and self.gap is not None:
            tqdm.write(f"{now}: answers are back after {self.answered_at - self.gap:.0f} s")
            self.gap = None
        elif since is not None and self.gap is None:
            silent = time.monotonic() - since
            if silent > TOLD_SECONDS:
                tqdm.write(f"{now}: no answer for {silent:.0f} s ({self.reason}); waiting")
                self.gap = since

    async def write_labels(self, until: int | None) -> bool:
        """Write the labels known by a time of the scenario; all of them if it is None.

        Returns whether the store accepted them; prints a failure, which the next call retries.
        """
        known = self.reached
        rows, place = [], known.labels
        now = datetime.datetime.now(datetime.UTC)
        for number in self.labels[place : place + LABELS_AT_ONCE].tolist():
            if until is not None and self.stream.label_times[number] > until:
                break
            asked = known.first <= number < known.stop
            here = number < known.following or number in self.done
            if asked and here and number not in known.refused:
                (label,), (script,) = self.stream.truth(np.array([number]))
                (name,) = self.stream.ids_of(np.array([number]))
                row = {"time": now, "request_id": f"{known.run}-{name}", "position": 0}
                rows.append(row | {"label": self.classes[label], "script": script})
            elif asked and not here:
                break  # still being sent
            place += 1
        try:
            if rows and self.put_labels:
                await asyncio.to_thread(self.put_labels, rows)
                known.labels_written += len(rows)
        except AzureError as error:
            tqdm.write(f"labels not written yet, retrying: {str(error).splitlines()[0][:200]}")
            return False
        known.labels = place
        return True

    async def write_last_labels(self) -> None:
        """Write all remaining labels; raise DigitsError when the store accepts none for long."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.reached.labels < len(self.labels):
            if not await self.write_labels(None):
                if time.monotonic() > deadline:
                    raise DigitsError("the store accepts no labels; continue later with --resume")
                await asyncio.sleep(LONGEST_PAUSE_SECONDS)

    def save(self, path: Path) -> None:
        self.reached.done = sorted(self.done)
        write_text(path, json.dumps(asdict(self.reached)))

    def report(self) -> None:
        known = self.reached
        answered = sum(known.answered.values())
        rate = (known.count - self.already) / max(time.monotonic() - self.began, 1e-9)
        print(
            f"sent {known.count:,}, answered {answered:,}, {known.retried:,} retries, "
            f"{len(known.refused):,} rejected; {rate:.1f} requests/s"
        )
        print(f"  {known.busy:,} answers {BUSY_STATUS}: too many requests at once")
        for script, count in known.answered.items():
            print(f"  {script}: {known.right[script] / count:.2%} of {count:,} right")
        if self.put_labels:
            print(f"  {known.labels_written:,} true labels written")
