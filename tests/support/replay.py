"""A record of Azure's management API, replayed on the emulator: which answers differ.

The record is `calls` in verified.json, as `digits verify azure` writes it. The calls are sent in
their order. What a service chooses by itself is compared by its form: ids (a GUID of one may be a
number of the other), times, addresses, amounts, messages. An id or a name that differs is replaced
by the emulator's own in all calls that follow. Every other value must be equal, and so must the
status and the headers by which a client follows an operation.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlencode, urlsplit

from emulated import Client, emulated, wait_until

from azureml_emulator.services import jobs
from azureml_emulator.state import BUSY, Json, State, Work

GUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PARTS = re.compile(rf"({GUID}|\d+)", re.I)  # of a text that has ids
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)")
# Of answers: values that the setting up of a subscription decides, and those that nobody knows.
CHOSEN = {"accountName", "containerName", "location", "storageAccount", "workspaceId"}
ANY = {"content", "message", "currentValue", "limit", "expiryTimeUtc", "refreshAfterTimeUtc"}
LONG = ("/vmsizes", "/usages")  # lists of what a region has: only the form of an entry is compared
RUNNING = BUSY | {"NotStarted", "Queued", "Starting", "Preparing", "Running", "Finalizing"}
SECONDS = 20.0  # until an operation has ended as it did in the record


class Replay:
    """The calls of a record, sent to an emulator."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.names: dict[str, str] = {}  # those of the record, and those that stand for them
        self.addresses: dict[str, str] = {}  # paths of addresses that answers have, likewise
        self.learnt: dict[str, str] = {}  # by the comparison under way
        self.busy = False  # whether the last answer shows an operation that has not ended

    def translated(self, text: str) -> str:
        """Return a text of the record with the emulator's names."""
        known = sorted(self.names, key=len, reverse=True)
        if known:
            found = re.compile("|".join(map(re.escape, known)), re.I)
            text = found.sub(lambda match: self.names[match[0].lower()], text)
        return text

    def answers(self, calls: list[Json]) -> Iterator[str]:
        """Send the calls; yield how the answers differ from those of the record."""
        for _, same in groupby(calls, key=lambda call: (call["method"], call["path"])):
            *before, call = same
            if call["method"] != "GET":
                for one in before:
                    yield from self.differences(one)
            faults: list[str] = []

            def answered(call: Json = call, faults: list[str] = faults) -> bool:
                faults[:] = self.differences(call)
                return not faults or call["method"] != "GET" or not self.busy

            with contextlib.suppress(AssertionError):
                wait_until(answered, SECONDS)
            yield from faults

    def differences(self, call: Json) -> list[str]:
        """Send one call; return how its answer differs."""
        path = self.translated(call["path"])
        path = self.addresses.get(call["path"], path)
        query = {name: self.translated(value) for name, value in call["query"].items()}
        body = call["request"]
        raw = None if body is None else self.translated(json.dumps(body)).encode()
        where = f"{path}?{urlencode(query)}" if query else path
        more = {"azureml_model_deployment": call["chosen"]} if call["chosen"] else {}
        status, found, headers = self.client.send(call["method"], where, raw, **more)
        expected, self.learnt, self.busy = call["response"], {}, under_way(found)
        faults = list(self.different(call["status"], status, "status"))
        if path.lower().endswith(LONG) and not faults:
            expected, found = ({"value": one["value"][:1]} for one in (expected, found))
            faults += self.different(form(expected), form(found), "answer")
        elif not faults and not (call["method"] == "GET" and under_way(expected)):
            mine = {name: headers.get(name) for name in call["headers"]}
            faults += self.different(call["headers"], mine, "headers")
            faults += self.different(expected, found, "answer")
        if not faults:
            self.names |= {name.lower(): here for name, here in self.learnt.items()}
        return [f"{call['method']} {path}: {fault}" for fault in faults]

    def different(self, expected: Any, found: Any, place: str) -> Iterator[str]:
        """Yield the places at which a value differs; null is as good as nothing."""
        name = place.rpartition(".")[2]
        if isinstance(expected, dict) and isinstance(found, dict):
            for key in sorted(expected.keys() | found.keys()):
                yield from self.different(expected.get(key), found.get(key), f"{place}.{key}")
        elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
            for number, pair in enumerate(zip(expected, found, strict=True)):
                yield from self.different(*pair, f"{place}[{number}]")
        elif type(expected) is type(found) and name in ANY:
            return
        elif isinstance(expected, str) and isinstance(found, str):
            if not self.alike(expected, found, name):
                yield f"{place}: expected {expected!r}, found {found!r}"
        elif expected != found:
            yield f"{place}: expected {expected!r}, found {found!r}"

    def alike(self, expected: str, found: str, name: str) -> bool:
        """Return whether two texts have the same meaning; remember what stands for what."""
        if expected == "redacted" or TIME.fullmatch(expected):
            return expected == "redacted" or bool(TIME.fullmatch(found))
        if re.match("https?://", expected):
            self.addresses[urlsplit(expected).path] = urlsplit(found).path
            return bool(re.match("https?://", found))
        expected = self.translated(expected)
        if name in CHOSEN:
            last = expected.rpartition("/")[2]
            if last != found.rpartition("/")[2]:
                self.learnt[last] = found.rpartition("/")[2]
            return True
        ours, theirs = PARTS.split(found.lower()), PARTS.split(expected.lower())
        if ours[::2] != theirs[::2]:
            return False
        for mine, other in zip(ours[1::2], theirs[1::2], strict=True):
            if mine != other:
                if not any(re.fullmatch(GUID, one) for one in (mine, other)):
                    return False
                self.learnt[other] = mine
        return True


def form(value: Any) -> Any:
    """Return a JSON value with the names of its types in the place of its values."""
    if isinstance(value, dict):
        return {name: form(one) for name, one in value.items()}
    return [form(one) for one in value] if isinstance(value, list) else type(value).__name__


def under_way(answer: Any) -> bool:
    """Return whether an answer shows an operation that has not ended: the next call may see it."""
    part = answer.get("properties", answer) if isinstance(answer, dict) else {}
    return not RUNNING.isdisjoint(str(part.get(name)) for name in ("provisioningState", "status"))


def completed(state: State, key: str) -> None:
    """Let a job be completed at once."""
    state.resources[key]["properties"]["status"] = "Completed"


def replay(calls: list[Json], folder: Path) -> list[str]:
    """Replay a record on a new emulator in a folder; return how the answers differ.

    A record has no blobs, so neither deployments nor jobs run anything.
    """
    by_identity = any("listSecrets" in call["path"] and call["status"] == 400 for call in calls)
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"identity_datastores": by_identity}))
    with emulated(folder) as client, patch.object(jobs, "begin", completed):
        state = client.emulator.state

        def perform(path: str, work: Work) -> None:
            started = "/onlineendpoints/" in path and "/deployments/" in path
            if (
                not started
                or state.resources[path]["properties"]["provisioningState"] == "Deleting"
            ):
                work(path)

        state.perform = perform
        replayed = Replay(client)
        made = [call for call in calls if "managementPolicies" in call["path"]]
        if made and made[0]["status"] == 200:  # by the template
            path = f"{replayed.translated(made[0]['path'].partition('?')[0])}"
            client.call("PUT", f"{path}?api-version=2023-01-01", made[0]["response"])
        return list(replayed.answers(calls))
