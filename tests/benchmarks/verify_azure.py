"""The life of an endpoint on Azure itself: `digits verify azure NAME`, a new resource group.

Input: the model of this commit, and `az`, logged in. A new group is made, the template deployed
into it, the model deployed, asked, rolled back and removed, and then the group, whatever happened.
Output: verified.json with the result of each step and the calls of Azure's management API, in the
form of the emulator's recorded calls; names of people and secrets are replaced in them, and each id
by another one. tests/azureml_emulator/test_replay.py replays it on the emulator.
"""

import argparse
import contextlib
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline.transport import RequestsTransport

from benchmarks import verified
from benchmarks.verified import parsed, redacted, require, wait_for
from core.errors import DigitsError
from mlops.azure import collected
from mlops.azure.batch import Batch
from mlops.azure.connection import SETTINGS
from mlops.azure.endpoint import Target
from mlops.azure.errors import explain_error
from mlops.azure.settings import BUSY_STATUS, MODEL_STATUS, Params, load
from mlops.azure.workspace import connect, store
from mlops.deploy import release, smoke
from mlops.deploy.rollout import Deployer
from mlops.production.monitor import LeftOut, rows
from mlops.setup import access, az
from mlops.setup.connect import deploy_stack
from mlops.setup.disconnect import purge, resources

PREFIX = "repo:nobody/nothing"  # whose tokens log in: no repository's
REQUESTS = Path("data/production/requests.parquet")  # of stage simulate: images to score
FAILED_STATUS = 424  # score.py answered no 200
HOURS = 2  # that it takes at most, for the price
WAIT_SECONDS = 900.0  # until roles are effective, and until collected rows are there
CHOSEN = "azureml-model-deployment"  # header of a request that names a deployment
HEADERS = ("azure-asyncoperation", "location", "retry-after", "x-ms-async-operation-timeout")


@contextlib.contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Record the calls of the management API that this process makes, redacted."""
    calls: list[dict[str, Any]] = []
    send: Callable[..., Any] = RequestsTransport.send

    def record(transport: RequestsTransport, request: Any, **options: Any) -> Any:
        answer: Any = send(transport, request, **options)
        place = urlsplit(request.url)
        # The manager's, and a batch endpoint's: blobs are streamed, and nobody's business.
        if "/providers/" in place.path or place.path.endswith("/jobs"):
            bodies = {"request": request.content, "response": answer.internal_response.text}
            call = {"method": request.method, "path": place.path, "status": answer.status_code}
            call["query"] = dict(parse_qsl(place.query))
            call["chosen"] = request.headers.get(CHOSEN)
            call["headers"] = {name: answer.headers.get(name) for name in HEADERS}
            calls.append(redacted(call | {name: parsed(text) for name, text in bodies.items()}))
        return answer

    with patch.object(RequestsTransport, "send", record):
        yield calls


def wait(true: Callable[[], bool], expected: str, poll_seconds: float) -> None:
    """Return once it is true; raise DigitsError after WAIT_SECONDS."""

    def found() -> bool:
        with contextlib.suppress(HttpResponseError):
            return true()
        return False

    wait_for(found, expected, WAIT_SECONDS, poll_seconds)


class Verification:
    """The steps on one endpoint."""

    def __init__(self, target: Target, settings: Params) -> None:
        """Read the release of this commit, and another that differs by a setting."""
        seconds = settings.request_timeout_seconds + 1
        self.slower = replace(settings, request_timeout_seconds=seconds)
        self.target, self.settings = target, settings
        self.new, self.other = release.read(settings), release.read(self.slower)
        self.items = smoke.read(release.SMOKE, settings.smoke.digits)

    def deployer(self, settings: Params) -> Deployer:
        return Deployer(Target(self.target.workspace, settings), settings, wait=True)

    def roles(self) -> None:
        store_of = self.target.workspace
        wait(lambda: store(store_of).exists(), "the roles of a person", store_of.poll_seconds)

    def deploy(self) -> None:
        self.deployer(self.settings).apply(self.new)
        self.deployer(self.slower).apply(self.other)

    def score(self) -> None:
        answers = [item.value_in(self.target.ask(item.request)) for item in self.items]
        right = sum(item.answer.value == one for item, one in zip(self.items, answers, strict=True))
        wanted = self.settings.smoke.accuracy
        require(right >= wanted * len(answers), f"{wanted:.0%} right answers", right)

    def refusals(self) -> None:
        """Send what score.py refuses, and more at once than the deployment lets through."""
        found = self.statuses([{"unknown": "request"}], 1)
        require(found[FAILED_STATUS] == 1, f"{FAILED_STATUS} for a wrong request", found)
        at_once = 8 * self.target.concurrency()
        found = self.statuses([item.request for item in self.items] * 4, at_once)
        expected = f"200 and {BUSY_STATUS} for {at_once} requests at once"
        require(set(found) == {200, BUSY_STATUS}, expected, found)

    def statuses(self, bodies: list[Any], at_once: int) -> Counter[int]:
        """Return how often each status was answered to some requests, so many at once."""
        headers = dict(self.target.authorise())
        url = headers.pop("url")

        def status(body: Any) -> int:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                with error:
                    own = error.headers.get(MODEL_STATUS)
                require(own or error.code != FAILED_STATUS, MODEL_STATUS, "no such header")
                return error.code

        with ThreadPoolExecutor(at_once) as pool:
            return Counter(pool.map(status, bodies))

    def rollback(self) -> None:
        self.deployer(self.settings).rollback(None)
        live = self.target.get().tags.get("live")
        require(live == self.new.name, f"{self.new.name} is live", live)

    def collection(self) -> None:
        """Wait for collected rows, and read them all as `digits monitor` does."""
        container = store(self.target.workspace)

        def found() -> bool:
            left = LeftOut()
            hours = collected.hours(container, collected.ROWS, self.target.name)
            read = list(rows(hours, None, left))
            not_read = left.damaged + left.elsewhere
            require(not not_read and not left.clock, "lines that can be read", not_read or left)
            strange = {row["deployment"] for row in read} - {self.new.name, self.other.name}
            require(not strange, "rows of both deployments", strange)
            return bool(read)

        if self.settings.collections:
            wait(found, "collected rows", self.target.workspace.poll_seconds)

    def batch(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Batch(self.target, self.new, None).score([REQUESTS], Path(folder))
            found = list(Path(folder, REQUESTS.name).glob("*.parquet"))
        require(found, "answers", "none")

    def destroy(self) -> None:
        self.deployer(self.settings).destroy(yes=True)
        require(self.target.get() is None, "no endpoint", self.target.name)


STEPS = ("roles", "deploy", "score", "refusals", "rollback", "collection", "batch", "destroy")


def play(
    target: Target, settings: Params
) -> tuple[dict[str, dict[str, str]], list[dict[str, Any]]]:
    """Play the steps until one fails, and the last in any case; return results and calls."""
    with recorded() as calls:
        verification = Verification(target, settings)
        steps = {name: getattr(verification, name) for name in STEPS}
        return verified.play(steps, explain_error, (AzureError, DigitsError, OSError)), calls


def main(arguments: list[str]) -> None:
    """Verify, and remove what was made for it."""
    parser = argparse.ArgumentParser(prog="verify_azure", description=__doc__)
    parser.add_argument("group")
    parser.add_argument("--location", default="westeurope")
    parser.add_argument("--yes", action="store_true", help="Do not ask.")
    given = parser.parse_args(arguments)
    group, settings = given.group, load()
    release.read(settings)  # can be deployed, before anything is made
    if az.get_or_none("az", "group", "show", "--name", group) is not None:
        raise DigitsError(f"{group}: exists. Give a new name: this group is deleted in the end.")
    instances, price = 2 * settings.instance_count, settings.price_an_hour
    money = f"{instances * HOURS * price:.2f}" if price else "unknown, set azure.price_an_hour"
    print(
        f"In a new resource group {group}, for at most {HOURS} hours: {instances} x "
        f"{settings.instance_type} (cost: {money}), a node of the cluster, a registry, storage."
    )
    if not given.yes and input("To go on, type the group's name: ") != group:
        raise DigitsError("Nothing was made. To go on without being asked: --yes")
    place = ("--name", group, "--location", given.location)
    az.run("az", "group", "create", *place, "--tags", access.MADE)
    try:
        values = deploy_stack(group, PREFIX)
        os.environ |= {name: values[name] for name in SETTINGS}
        results, calls = play(Target(connect("azure"), settings), settings)
        right = verified.keep("azure", results, calls)
    finally:
        try:
            purge(resources(group))
        finally:  # what costs money goes in any case
            az.run("az", "group", "delete", "--name", group, "--yes")
    if not right:
        raise DigitsError(f"Azure does not behave as expected. Steps and calls: {verified.OUT}")
    print(f"Azure behaves as expected. Steps and calls: {verified.OUT}; README says so.")
