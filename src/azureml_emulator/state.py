"""The emulator's state: resources by path, operations in progress, keys; stored in one file.

The functions of `services` are given the state, the path of a call, its key (the path in lower
case: Azure ignores the case) and its body (for a GET, its query). They return an `Answer`. The
caller holds the lock.
"""

import copy
import json
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from azureml_emulator.router import Router
from azureml_emulator.services.sign_in import Tokens
from azureml_emulator.settings import Settings, read_settings
from azureml_emulator.storage import BlobStore
from azureml_emulator.web import read_file, warn, write_atomic

VERSION: Literal[1] = 1  # version of the file's format
PROVIDER = "Microsoft.MachineLearningServices"
LOCATION = "local"
PLACE = f"/subscriptions/local/providers/{PROVIDER}/locations/{LOCATION}/mfeOperationsStatus"
OPERATION = PLACE + "/{}?api-version=2022-02-01-preview"  # an operation's address, below the API's
BUSY = {"Creating", "Updating", "Deleting"}
OPERATIONS = 1_000  # maximum number stored
Json = dict[str, Any]
Answer = tuple[int, Json | None, str]  # status, body, id of the operation that began
Work = Callable[[str], None]  # the work of an operation, given the path of its resource


class RefusedError(Exception):
    """An answer with an error in Azure's form."""

    def __init__(self, status: int, code: str, message: str, *details: Json) -> None:
        super().__init__(message)
        error = {"code": code, "message": message} | ({"details": list(details)} if details else {})
        self.status, self.body = status, {"error": error}


def part_of(body: Any, place: str) -> Any:
    """Return the value of a body at a place such as `sku.capacity`; None if missing."""
    for name in place.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    return body


def need(body: Json, *places: str) -> None:
    """Raise RefusedError (400) unless a body has a value at each place."""
    for place in places:
        if part_of(body, place) is None:
            message = f"The request is invalid: {place} is required."
            raise RefusedError(400, "ValidationError", message)


def complete(body: Json) -> Json:
    """Return a resource of a state file. Raises ValueError unless it has the required keys."""
    kinds = {"id": str, "name": str, "properties": dict, "systemData": dict}
    for name, kind in kinds.items():
        if not isinstance(body.get(name), kind):
            raise ValueError(f"{name} is missing or wrong")
    return body


@dataclass
class Stored:
    """The content of the state file."""

    version: Literal[1]
    resources: dict[str, Annotated[Json, AfterValidator(complete)]]
    operations: dict[str, Json]
    keys: dict[str, list[str]]
    contents: dict[str, dict[str, int] | None] = field(default_factory=dict)
    images: dict[str, float] = field(default_factory=dict)


def read_state(path: Path) -> Stored:
    """Return a state file's content, empty without one. Raises EmulatorError as `read_file`."""
    fix = "Correct this file, or delete it and deploy again."
    return read_file(path, Stored, fix) or Stored(VERSION, {}, {}, {})


class State:
    """Resources by path, operations, keys, and what runs for them."""

    def __init__(self, folder: Path, router: Router, storage: BlobStore, tokens: Tokens) -> None:
        """Read the state in `folder`. Raises EmulatorError as `read_state` does."""
        self.folder, self.router, self.storage, self.tokens = folder, router, storage, tokens
        self.url = ""  # of the management API
        self.lock = threading.RLock()
        self.workers = ThreadPoolExecutor(8)
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}  # of jobs' nodes, by path
        self.lost: set[str] = set()  # jobs whose machine is gone
        self.ignored: set[str] = set()  # parts of bodies that were printed as not emulated
        self.closed = False
        self.settings: Settings = read_settings(folder)
        self.path = folder / "state.json"
        state = read_state(self.path)
        self.resources, self.operations, self.keys = state.resources, state.operations, state.keys
        self.contents = state.contents  # of assets: their blobs' names and sizes
        self.images = state.images  # time.time() of each build
        self.perform: Callable[[str, Work], None] = lambda path, work: work(path)

    def leave_out(self, key: str, reason: str) -> None:
        """Delete a resource that cannot be restored, and print its name and the reason."""
        self.resources.pop(key, None)
        warn(f"left out {key.partition('/workspaces/')[2] or key}: {reason}. Create it again.")

    def save(self) -> None:
        """Write the state."""
        state = {"version": VERSION, "resources": self.resources, "contents": self.contents}
        state |= {"operations": self.operations, "keys": self.keys, "images": self.images}
        write_atomic(self.path, json.dumps(state, indent=1))

    def try_to_save(self) -> None:
        """Write the state, or print why that failed; operations continue regardless."""
        try:
            self.save()
        except OSError as error:
            warn(f"{self.path} was not written: {error}. Free space on the disk.")

    def later(self, path: str, work: Work, name: str = "") -> str:
        """Run `work` on a resource in the background; return the operation's id.

        It is run by `perform`, which test controls may replace.
        """
        name = name or str(uuid.uuid4())
        # Azure answers "Updating", not "InProgress": azure-sdk-assets, recordings.
        self.operations[name] = {"resource": path, "status": "Updating"}

        def run() -> None:
            try:
                self.perform(path, work)
                outcome: Json = {"status": "Succeeded"}
            except RefusedError as error:
                outcome = {"status": "Failed"} | error.body
            except Exception as error:  # the error is the operation's answer
                body = RefusedError(500, "InternalServerError", repr(error)).body
                outcome = {"status": "Failed"} | body
            with self.lock:
                if self.closed and outcome["status"] == "Failed":
                    return  # it is repeated at the next start
                self.operations[name] |= outcome
                if path in self.resources:
                    self.resources[path]["properties"]["provisioningState"] = outcome["status"]
                for old in list(self.operations)[:-OPERATIONS]:
                    if self.operations[old]["status"] != "Updating":
                        del self.operations[old]
                self.try_to_save()

        self.try_to_save()
        self.workers.submit(run)
        return name

    def pending(self, path: str) -> str:
        """Return the id of the operation under way on a resource, or a new one."""
        for name, operation in self.operations.items():
            if operation["resource"] == path and operation["status"] == "Updating":
                return name
        return str(uuid.uuid4())

    def asset(self, identity: str) -> Json:
        """Return a registered asset by its id. Raises RefusedError (400) if there is none."""
        path = identity.removeprefix("azureml:").lower()
        if path not in self.resources:
            raise RefusedError(400, "BadArgument", f"The asset {identity} does not exist.")
        return self.resources[path]

    def refuse_busy(self, key: str) -> None:
        """Refuse to change a resource whose last change is in progress."""
        state = self.resources.get(key, {"properties": {}})["properties"].get("provisioningState")
        if state in BUSY:
            raise RefusedError(409, "Conflict", f"{key} is {state}: try again later.")

    def stored(self, path: str, body: Json, known: Json | None) -> Json:
        """Return a resource as Azure returns it; `known` is its previous version."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made = {"createdBy": "local", "createdByType": "User", "createdAt": now}
        made = known["systemData"] if known else made
        changed = {"lastModifiedBy": "local", "lastModifiedByType": "User", "lastModifiedAt": now}
        # A name keeps the spelling of its first use: later ones may differ in case.
        path = known["id"] if known else path.rstrip("/")
        resource: Json = {"id": path, "name": path.split("/")[-1]}
        # .../providers/P/workspaces/NAME/models/NAME is of type P/workspaces/models
        parts = path.split("/providers/")[-1].split("/")
        resource["type"] = "/".join([parts[0], *parts[1::2]])
        resource |= copy.deepcopy(body) | {"systemData": made | changed}
        return resource

    def get(self, path: str, key: str, body: Json) -> Answer:
        """Return a resource."""
        if key not in self.resources:
            raise RefusedError(404, "ResourceNotFound", f"The resource {path} was not found.")
        return 200, copy.deepcopy(self.resources[key]), ""

    def listing(self, path: str, key: str, body: Json) -> Answer:
        """Return the resources of one kind, newest first; archived ones only on request."""
        inside, view = re.compile(re.escape(key) + "/[^/]+"), body.get("listViewType")
        found = [value for name, value in self.resources.items() if inside.fullmatch(name)]
        if view != "All":  # archived resources are listed separately or not at all
            archived = view == "ArchivedOnly"
            found = [one for one in found if one["properties"].get("isArchived", False) == archived]
        return 200, {"value": copy.deepcopy(found[::-1])}, ""

    def put(self, path: str, key: str, body: Json) -> Answer:
        """Store a resource without a process."""
        known = self.resources.get(key)
        self.resources[key] = self.stored(path, body, known)
        self.save()
        return 200 if known else 201, copy.deepcopy(self.resources[key]), ""

    def put_later(self, path: str, key: str, body: Json, work: Work) -> Answer:
        """Store a resource and begin the operation that applies it by `work`."""
        self.refuse_busy(key)
        known, operation = self.resources.get(key), str(uuid.uuid4())
        stored = self.stored(path, body, known)
        stored["properties"]["provisioningState"] = "Updating" if known else "Creating"
        followed = {"AzureAsyncOperationUri": self.url + OPERATION.format(operation)}
        stored["properties"]["properties"] = stored["properties"].get("properties", {}) | followed
        self.resources[key] = stored
        return 200 if known else 201, copy.deepcopy(stored), self.later(key, work, operation)

    def patch(self, path: str, key: str, body: Json, put: Callable[..., Answer]) -> Answer:
        """Change a resource's tags, identity or size, by `put` of the changed resource.

        Of properties Azure changes a batch deployment's description alone (SDK: models Partial*).
        """
        _, merged, _ = self.get(path, key, {})
        assert merged
        properties = body.pop("properties", {})
        may = {"description"} if "/batchendpoints/" in key and "/deployments/" in key else set()
        if fixed := sorted(properties.keys() - may):
            message = f"PATCH does not change properties.{fixed[0]}. Send the resource by PUT."
            raise RefusedError(400, "BadArgument", message)
        merged |= body | {"properties": merged["properties"] | properties}
        return put(self, path, key, merged)

    def delete(self, path: str, key: str, body: Json) -> Answer:
        """Delete a resource without a process."""
        found = self.resources.pop(key, None)
        self.save()
        return 200 if found else 204, None, ""
