"""The part of Azure's management API that azure-ai-ml calls, with its state in one file.

It shows what the real one shows a client: operations that take time, error bodies, rules for
names and traffic, 404 and 409. It is no proof of Azure. management.py serves it.
"""

import copy
import json
import math
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from azureml_emulator.router import Endpoint, Router
from core.errors import DigitsError
from core.files import write_text

LOCATION = "local"
PROVIDER = "Microsoft.MachineLearningServices"
SIZES = {  # name: cores, and the family whose quota they are taken from
    "Standard_DS2_v2": (2, "standardDSv2Family"),
    "Standard_DS3_v2": (4, "standardDSv2Family"),
    "Standard_F4s_v2": (4, "standardFSv2Family"),
}
QUOTA = {"standardDSv2Family": 24, "standardFSv2Family": 24}  # cores
ENDPOINT_NAME = re.compile(r"^[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]$")
HEALTHY_SECONDS = 120.0
TAGS, TAG_LENGTH = 50, 256  # of a resource
BUSY = {"Creating", "Updating", "Deleting"}
Json = dict[str, Any]
Answered = tuple[int, Json | None, str]  # status, body, id of the operation that began


class RefusedError(Exception):
    """An answer with an error in Azure's form."""

    def __init__(self, status: int, code: str, message: str, *details: Json) -> None:
        """Keep status and body."""
        super().__init__(message)
        error = {"code": code, "message": message} | ({"details": list(details)} if details else {})
        self.status, self.body = status, {"error": error}


FAILURES: dict[str, tuple[Any, ...]] = {
    "quota": (  # as github.com/MicrosoftLearning/mslearn-azure-ml/issues/30 shows it
        "BadRequest",
        "The request is invalid.",
        {
            "code": "InferencingClientCreateDeploymentFailed",
            "message": "InferencingClient HttpRequest error, error detail: "
            '{"errors":{"VmSize":["Not enough quota available for this size in SubscriptionId '
            "local. Please see troubleshooting guide, available here: "
            'https://aka.ms/oe-tsg#error-outofquota"]},"status":400}',
        },
    ),
    "image": ("ImageBuildFailure", "The image build failed: see the build log."),
    "unhealthy": ("ResourceNotReady", "User container has crashed or terminated."),
}


def reserved(cores: int, instances: int) -> int:
    """Return the cores that a deployment takes: of a fifth more instances, in whole ones."""
    return cores * math.ceil(instances * 6 / 5)


class StandIn:
    """Resources by path, operations, deployments' servers."""

    def __init__(self, folder: Path, router: Router, storage: Json) -> None:
        """Read the state in `folder`; storage is what serve.py's `blob_store` yields."""
        self.folder, self.router, self.storage = folder, router, storage
        self.token = ""
        self.url = ""
        self.lock = threading.RLock()
        self.workers = ThreadPoolExecutor(8)
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}  # of jobs' nodes, by path
        self.lost: set[str] = set()  # jobs whose machine is gone
        self.closed = False
        self.failure = ""  # what deployments end with, for a test: a key of FAILURES
        path = folder / "state.json"
        state = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.resources: dict[str, Json] = state.get("resources", {})
        self.operations: dict[str, Json] = state.get("operations", {})
        self.keys: dict[str, list[str]] = state.get("keys", {})

    def save(self) -> None:
        """Write the state."""
        state = {"resources": self.resources, "operations": self.operations, "keys": self.keys}
        write_text(self.folder / "state.json", json.dumps(state, indent=1))

    def restore(self) -> None:
        """Start the servers that ran, and finish the operations that were under way."""
        with self.lock:
            for path in list(self.resources):
                if "/onlineendpoints/" in path and "/deployments/" not in path:
                    self.route(path)
            for path, body in list(self.resources.items()):
                state = body["properties"].get("provisioningState")
                if "/onlineendpoints/" not in path:
                    continue
                if state == "Deleting":
                    self.later(path, self.removed)
                elif "/deployments/" in path and state != "Failed":
                    self.later(path, self.deployed, self.pending(path))
                elif state in BUSY:
                    self.later(path, self.routed, self.pending(path))

    def pending(self, path: str) -> str:
        """Return the id of the operation under way on a resource, or a new one."""
        for name, operation in self.operations.items():
            if operation["resource"] == path and operation["status"] == "InProgress":
                return name
        return str(uuid.uuid4())

    # Operations ---------------------------------------------------------------------------------

    def later(self, path: str, work: Callable[[str], None], name: str = "") -> str:
        """Run `work` on a resource in the background; return the operation's id."""
        name = name or str(uuid.uuid4())
        self.operations[name] = {"resource": path, "status": "InProgress"}

        def run() -> None:
            try:
                work(path)
                outcome: Json = {"status": "Succeeded"}
            except RefusedError as error:
                outcome = {"status": "Failed"} | error.body
            except Exception as error:  # what went wrong is the operation's answer
                body = RefusedError(500, "InternalServerError", repr(error)).body
                outcome = {"status": "Failed"} | body
            with self.lock:
                self.operations[name] |= outcome
                if path in self.resources:
                    self.resources[path]["properties"]["provisioningState"] = outcome["status"]
                self.save()

        self.save()
        self.workers.submit(run)
        return name

    def route(self, path: str) -> None:
        """Give the router an endpoint's keys and weights."""
        body = self.resources[path]
        traffic = body["properties"].get("traffic") or {}
        keys = self.keys[path]
        if body["properties"]["authMode"].lower() == "aadtoken":
            keys = [self.token]  # whoever is logged in
        self.router.endpoints[body["name"]] = Endpoint(keys, dict(traffic))

    def routed(self, path: str) -> None:
        """Let an endpoint's settings come into force."""
        with self.lock:
            self.route(path)

    def place(self, path: str) -> tuple[str, str]:
        """Return (endpoint, deployment) of a deployment's path."""
        parts = path.split("/")
        return self.resources["/".join(parts[:-2])]["name"], self.resources[path]["name"]

    def home(self, path: str) -> Path:
        """Return the folder of a deployment."""
        return self.folder / "deployments" / "_".join(path.split("/")[-5::2])

    def deployed(self, path: str) -> None:
        """Fetch code and model and start the server."""
        if self.failure:
            raise RefusedError(400, *FAILURES[self.failure])
        properties = self.resources[path]["properties"]
        home = self.home(path)
        home.mkdir(parents=True, exist_ok=True)
        log = home / "log.txt"
        code, model = self.asset(properties["codeConfiguration"]["codeId"]), properties["model"]
        code_home = home / "code"
        self.storage["fetch"](code["properties"]["codeUri"], code_home)
        uri = self.asset(model)["properties"]["modelUri"]
        self.storage["fetch"](uri, home / "model" / uri.rstrip("/").split("/")[-1])
        env = properties.get("environmentVariables") or {}
        if any(
            str(collection.get("dataCollectionMode")).lower() == "enabled"
            for collection in (properties.get("dataCollector") or {})
            .get("collections", {})
            .values()
        ):
            env = env | {"AZUREML_MDC_ENABLED": "true"}
        try:
            self.router.start(
                self.place(path), code_home, home / "model", env, log, HEALTHY_SECONDS
            )
        except DigitsError as error:
            message = f"User container has crashed or terminated: {error}."
            raise RefusedError(400, "ResourceNotReady", message) from None

    def asset(self, identity: str) -> Json:
        """Return a registered asset by its id."""
        path = identity.removeprefix("azureml:").lower()
        if path not in self.resources:
            raise RefusedError(400, "BadArgument", f"The asset {identity} does not exist.")
        return self.resources[path]

    def removed(self, path: str) -> None:
        """Stop what runs below a resource and forget it."""
        below = [key for key in list(self.resources) if key == path or key.startswith(path + "/")]
        for key in below:
            if "/deployments/" in key:
                self.router.stop(self.place(key))
                shutil.rmtree(self.home(key), ignore_errors=True)
        with self.lock:
            if "/deployments/" not in path:
                self.router.endpoints.pop(self.resources[path]["name"], None)
                self.keys.pop(path, None)
            for key in below:
                del self.resources[key]

    # Calls --------------------------------------------------------------------------------------

    def get(self, path: str, key: str, body: Json) -> Answered:
        """Return a resource."""
        if key not in self.resources:
            raise RefusedError(404, "ResourceNotFound", f"The resource {path} was not found.")
        return 200, copy.deepcopy(self.resources[key]), ""

    def listing(self, path: str, key: str, body: Json) -> Answered:
        """Return the resources of one kind, newest first."""
        inside = re.compile(re.escape(key) + "/[^/]+")
        found = [value for name, value in self.resources.items() if inside.fullmatch(name)]
        if key.endswith("/versions") and "/codes/" not in key and not found:
            raise RefusedError(404, "UserError", f"The container of {path} was not found.")
        return 200, {"value": copy.deepcopy(found[::-1])}, ""

    def put_asset(self, path: str, key: str, body: Json) -> Answered:
        """Register one version of an asset; what a version holds cannot change."""
        known = self.resources.get(key)
        content = ("modelUri", "codeUri", "image", "condaFile", "dataUri")
        if known:
            for name in content:
                if known["properties"].get(name) != body["properties"].get(name):
                    message = f"{path} already exists with another {name}, which cannot change."
                    raise RefusedError(409, "UserError", message)
        stored = self.stored(path, body, known)
        if "/data/" not in key:
            stored["properties"]["provisioningState"] = "Succeeded"
        stored["properties"] = {"properties": {}, "tags": {}} | stored["properties"]
        stored["properties"].setdefault("flavors", {}) if "/models/" in key else None
        self.resources[key] = stored
        self.save()
        return 200 if known else 201, copy.deepcopy(stored), ""

    def container(self, path: str, key: str, body: Json) -> Answered:
        """Return what all versions of an asset share."""
        versions = [name for name in self.resources if name.startswith(key + "/versions/")]
        if not versions:
            raise RefusedError(404, "ResourceNotFound", f"The resource {path} was not found.")
        numbers = [int(name.split("/")[-1]) for name in versions if name.split("/")[-1].isdigit()]
        following = {"nextVersion": str(max(numbers, default=0) + 1), "properties": {}, "tags": {}}
        return 200, self.stored(path, {"properties": following}, None), ""

    def containers(self, path: str, key: str, body: Json) -> Answered:
        """Return what the versions of each asset share."""
        kept = [body["id"] for name, body in self.resources.items() if name.startswith(key + "/")]
        places = sorted({place.split("/versions/")[0] for place in kept})
        return 200, {"value": [self.container(one, one.lower(), {})[1] for one in places]}, ""

    def delete_plain(self, path: str, key: str, body: Json) -> Answered:
        """Forget a resource that has nothing running."""
        found = self.resources.pop(key, None)
        self.save()
        return 200 if found else 204, None, ""

    def put_plain(self, path: str, key: str, body: Json) -> Answered:
        """Keep a resource that has nothing running."""
        known = self.resources.get(key)
        self.resources[key] = self.stored(path, body, known)
        self.save()
        return 200 if known else 201, copy.deepcopy(self.resources[key]), ""

    def put_endpoint(self, path: str, key: str, body: Json) -> Answered:
        """Create an endpoint, or replace its settings, traffic and tags."""
        name = path.rstrip("/").split("/")[-1]
        known = self.resources.get(key)
        if not ENDPOINT_NAME.match(name):
            message = f"The endpoint name {name} is invalid: 3 to 32 letters, digits and hyphens."
            raise RefusedError(400, "BadArgument", message)
        taken = [path for path, body in self.resources.items() if body["name"] == name]
        if not known and any("/onlineendpoints/" in path for path in taken):
            message = f"The endpoint name {name} is already taken in this region."
            raise RefusedError(400, "NameNotAvailable", message)
        self.refuse_busy(key)
        tags = body.get("tags") or {}
        if len(tags) > TAGS or any(len(value) > TAG_LENGTH for value in tags.values()):
            message = f"At most {TAGS} tags of at most {TAG_LENGTH} characters each."
            raise RefusedError(400, "InvalidTagValueLength", message)
        traffic = body["properties"].setdefault("traffic", {})
        unknown = [
            name for name in traffic if f"{key}/deployments/{name.lower()}" not in self.resources
        ]
        if unknown:
            raise RefusedError(400, "BadArgument", f"Traffic names no deployment: {unknown[0]}.")
        if sum(traffic.values()) not in (0, 100):
            message = f"The traffic percentages must sum to 0 or 100, not {sum(traffic.values())}."
            raise RefusedError(400, "BadArgument", message)
        stored = self.stored(path, body, known)
        stored["properties"] |= {
            "scoringUri": f"{self.router.url}/{name}/score",
            "swaggerUri": f"{self.router.url}/{name}/swagger.json",
            "provisioningState": "Updating" if known else "Creating",
        }
        stored["properties"].pop("keys", None)
        stored["properties"] = {"properties": {}, "mirrorTraffic": {}} | stored["properties"]
        if stored.get("identity", {}).get("type") == "SystemAssigned":
            ids = {
                name: str(uuid.uuid5(uuid.NAMESPACE_URL, name + key))
                for name in ("principalId", "tenantId")
            }
            stored["identity"] |= ids
        self.resources[key] = stored
        self.keys.setdefault(key, [uuid.uuid4().hex, uuid.uuid4().hex])
        answer = copy.deepcopy(stored)
        return 200 if known else 201, answer, self.later(key, self.routed)

    def put_deployment(self, path: str, key: str, body: Json) -> Answered:
        """Create a deployment, or replace it."""
        endpoint = key.split("/deployments/")[0]
        if endpoint not in self.resources:
            raise RefusedError(404, "ResourceNotFound", f"The endpoint of {path} was not found.")
        if not ENDPOINT_NAME.match(path.split("/")[-1]):
            raise RefusedError(400, "BadArgument", f"The deployment name in {path} is invalid.")
        self.refuse_busy(endpoint)
        self.refuse_busy(key)
        size, count = body["properties"].get("instanceType"), body["sku"]["capacity"]
        if size not in SIZES:
            raise RefusedError(
                400, "BadArgument", f"The size {size} is not one of {', '.join(SIZES)}."
            )
        cores, family = SIZES[size]
        if self.used(family, but=key) + reserved(cores, count) > QUOTA[family]:
            raise RefusedError(400, *FAILURES["quota"])
        known = self.resources.get(key)
        stored = self.stored(path, body, known)
        given = {"properties": {}, "scaleSettings": {"scaleType": "Default"}}
        stored["properties"] = given | stored["properties"]
        stored["properties"]["provisioningState"] = "Updating" if known else "Creating"
        self.resources[key] = stored
        answer = copy.deepcopy(stored)
        return 200 if known else 201, answer, self.later(key, self.deployed)

    def delete(self, path: str, key: str, body: Json) -> Answered:
        """Delete an endpoint with all below it, or a deployment without traffic."""
        if key not in self.resources:
            return 204, None, ""
        self.refuse_busy(key)
        endpoint, _, name = key.partition("/deployments/")
        traffic = self.resources[endpoint]["properties"].get("traffic") or {}
        if any(name == live.lower() and weight for live, weight in traffic.items()):
            message = f"The deployment {name} has traffic; set it to 0 before deleting."
            raise RefusedError(400, "BadRequest", message)
        if name:
            self.refuse_busy(endpoint)
            traffic.pop(self.resources[key]["name"], None)
        self.resources[key]["properties"]["provisioningState"] = "Deleting"
        return 202, None, self.later(key, self.removed)

    def refuse_busy(self, key: str) -> None:
        """Refuse to change what is being changed."""
        state = self.resources.get(key, {"properties": {}})["properties"].get("provisioningState")
        if state in BUSY:
            raise RefusedError(409, "Conflict", f"{key} is {state}: try again when that is done.")

    def used(self, family: str, but: str = "") -> int:
        """Return the cores of a family in use."""
        taken = 0
        for path, body in self.resources.items():
            if "/onlineendpoints/" in path and "/deployments/" in path and path != but:
                cores, its = SIZES[body["properties"]["instanceType"]]
                taken += reserved(cores, body["sku"]["capacity"]) * (its == family)
        return taken

    def stored(self, path: str, body: Json, known: Json | None) -> Json:
        """Return a resource as Azure gives it back."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made = {"createdBy": "local", "createdByType": "User", "createdAt": now}
        made = known["systemData"] if known else made
        changed = {"lastModifiedBy": "local", "lastModifiedByType": "User", "lastModifiedAt": now}
        resource: Json = {"id": path, "name": path.rstrip("/").split("/")[-1]}
        # .../providers/P/workspaces/NAME/models/NAME is of type P/workspaces/models
        parts = path.split("/providers/")[-1].split("/")
        resource["type"] = "/".join([parts[0], *parts[1::2]])
        resource |= copy.deepcopy(body) | {"systemData": made | changed}
        return resource
