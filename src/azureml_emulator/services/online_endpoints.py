"""Managed online endpoints and their deployments."""

import math
import re
import shutil
import time
import uuid
from pathlib import Path

from azureml_emulator.router import Endpoint
from azureml_emulator.state import BUSY, Answer, Json, RefusedError, State
from azureml_emulator.web import EmulatorError

SIZES = {  # name: cores, and the family whose quota they are taken from
    "Standard_DS2_v2": (2, "standardDSv2Family"),
    "Standard_DS3_v2": (4, "standardDSv2Family"),
    "Standard_F4s_v2": (4, "standardFSv2Family"),
}
QUOTA = {"standardDSv2Family": 24, "standardFSv2Family": 24}  # cores
INSTANCES = 50  # of a deployment: learn.microsoft.com/azure/machine-learning/how-to-manage-quotas
OUT_OF_QUOTA = (  # as github.com/MicrosoftLearning/mslearn-azure-ml/issues/30 shows it
    "BadRequest",
    "The request is invalid.",
    {
        "code": "InferencingClientCreateDeploymentFailed",
        "message": "InferencingClient HttpRequest error, error detail: "
        '{"errors":{"VmSize":["Not enough quota available for this size in SubscriptionId '
        "local. Please see troubleshooting guide, available here: "
        'https://aka.ms/oe-tsg#error-outofquota"]},"status":400}',
    },
)
# 3 to 32 characters (ran), no two hyphens beside each other
NAME = re.compile(r"^(?=.{3,32}$)[a-zA-Z](-?[a-zA-Z0-9])+$")
HEALTHY_SECONDS = 120.0
TAGS, TAG_LENGTH = 50, 256  # of a resource
LOG_LINES = 500


def reserved_cores(cores: int, instances: int) -> int:
    """Return the cores that a deployment takes: of a fifth more instances, in whole ones."""
    return cores * math.ceil(instances * 6 / 5)


def used_cores(state: State, family: str, but: str = "") -> int:
    """Return the cores of a family in use, those of one deployment left out."""
    taken = 0
    for path, body in state.resources.items():
        if "/onlineendpoints/" in path and "/deployments/" in path and path != but:
            cores, its = SIZES[body["properties"]["instanceType"]]
            taken += reserved_cores(cores, body["sku"]["capacity"]) * (its == family)
    return taken


# Work of operations ------------------------------------------------------------------------------


def route(state: State, path: str) -> None:
    """Give the router an endpoint's keys and weights."""
    with state.lock:
        body = state.resources[path]
        traffic = body["properties"].get("traffic") or {}
        keys = state.keys[path]
        if body["properties"]["authMode"].lower() == "aadtoken":
            keys = [state.token]  # whoever is logged in
        state.router.endpoints[body["name"]] = Endpoint(keys, dict(traffic))


def place_of(state: State, path: str) -> tuple[str, str]:
    """Return (endpoint, deployment) of a deployment's path."""
    endpoint = path.split("/deployments/")[0]
    return state.resources[endpoint]["name"], state.resources[path]["name"]


def folder_of(state: State, path: str) -> Path:
    """Return the folder of a deployment."""
    return state.folder / "deployments" / "_".join(path.split("/")[-5::2])


def deploy(state: State, path: str) -> None:
    """Fetch code and model and start the server."""
    properties = state.resources[path]["properties"]
    home = folder_of(state, path)
    home.mkdir(parents=True, exist_ok=True)
    code, model = state.asset(properties["codeConfiguration"]["codeId"]), properties["model"]
    state.storage.fetch(code["properties"]["codeUri"], home / "code")
    uri = state.asset(model)["properties"]["modelUri"]
    state.storage.fetch(uri, home / "model" / uri.rstrip("/").split("/")[-1])
    env = properties.get("environmentVariables") or {}
    collections = (properties.get("dataCollector") or {}).get("collections", {}).values()
    if any(str(one.get("dataCollectionMode")).lower() == "enabled" for one in collections):
        env = env | {"AZUREML_MDC_ENABLED": "true"}
    asked, count = properties.get("requestSettings") or {}, state.resources[path]["sku"]["capacity"]
    limit = 2 * (asked.get("maxConcurrentRequestsPerInstance") or 1) * count
    start = (place_of(state, path), home / "code", home / "model", env, home / "log.txt")
    try:
        state.router.start(
            *start, HEALTHY_SECONDS, limit, seconds_of(asked.get("requestTimeout") or "PT5S")
        )
    except EmulatorError as error:
        message = f"User container has crashed or terminated: {error}."
        raise RefusedError(400, "ResourceNotReady", message) from None


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration in ISO 8601 of hours, minutes and seconds."""
    match = re.fullmatch(r"P(?:0D)?T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?", duration)
    if match is None:
        raise RefusedError(400, "BadArgument", f"{duration} is no duration such as PT5S.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def remove(state: State, path: str) -> None:
    """Stop what runs below a resource and forget it."""
    below = [key for key in list(state.resources) if key == path or key.startswith(path + "/")]
    for key in below:
        if "/deployments/" in key:
            state.router.stop(place_of(state, key))
            shutil.rmtree(folder_of(state, key), ignore_errors=True)
    with state.lock:
        if "/deployments/" not in path:
            state.router.endpoints.pop(state.resources[path]["name"], None)
            state.keys.pop(path, None)
        for key in below:
            del state.resources[key]


def restore(state: State) -> None:
    """Start the servers that ran, and finish the operations that were under way."""
    with state.lock:
        paths = [path for path in state.resources if "/onlineendpoints/" in path]
        for path in paths:
            if "/deployments/" not in path:
                route(state, path)
        for path in paths:
            status = state.resources[path]["properties"].get("provisioningState")
            if status == "Deleting":
                state.later(path, lambda path: remove(state, path))
            elif "/deployments/" in path and status != "Failed":
                state.later(path, lambda path: deploy(state, path), state.pending(path))
            elif status in BUSY:
                state.later(path, lambda path: route(state, path), state.pending(path))


# Calls -------------------------------------------------------------------------------------------


def check_name(path: str) -> str:
    """Return the last name of a path. Raises RefusedError (400) unless it follows the rules."""
    name = path.rstrip("/").split("/")[-1]
    if not NAME.match(name):
        message = f"The name {name} is invalid: 3 to 32 letters, digits and hyphens."
        raise RefusedError(400, "BadArgument", message)
    return name


def put_endpoint(state: State, path: str, key: str, body: Json) -> Answer:
    """Create an endpoint, or replace its settings, traffic and tags."""
    name = check_name(path)
    taken = [path for path, body in state.resources.items() if body["name"] == name]
    if key not in state.resources and any("/onlineendpoints/" in path for path in taken):
        message = f"The endpoint name {name} is already taken in this region."
        raise RefusedError(400, "NameNotAvailable", message)
    state.refuse_busy(key)
    tags = body.get("tags") or {}
    if len(tags) > TAGS or any(len(value) > TAG_LENGTH for value in tags.values()):
        message = f"At most {TAGS} tags of at most {TAG_LENGTH} characters each."
        raise RefusedError(400, "InvalidTagValueLength", message)
    properties = {"properties": {}, "mirrorTraffic": {}, "traffic": {}} | body["properties"]
    traffic = properties["traffic"]
    unknown = [
        name for name in traffic if f"{key}/deployments/{name.lower()}" not in state.resources
    ]
    if unknown:
        raise RefusedError(400, "BadArgument", f"Traffic names no deployment: {unknown[0]}.")
    if sum(traffic.values()) not in (0, 100):
        message = f"The traffic percentages must sum to 0 or 100, not {sum(traffic.values())}."
        raise RefusedError(400, "BadArgument", message)
    properties |= {
        "scoringUri": f"{state.router.url}/{name}/score",  # the SDK takes no null here (ran)
        "swaggerUri": f"{state.router.url}/{name}/swagger.json",
    }
    properties.pop("keys", None)
    if body.get("identity", {}).get("type") == "SystemAssigned":
        body["identity"] |= {
            name: str(uuid.uuid5(uuid.NAMESPACE_URL, name + key))
            for name in ("principalId", "tenantId")
        }
    state.keys.setdefault(key, [uuid.uuid4().hex, uuid.uuid4().hex])
    body["properties"] = properties
    return state.put_later(path, key, body, lambda path: route(state, path))


def put_deployment(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a deployment, or replace it."""
    endpoint = key.split("/deployments/")[0]
    if endpoint not in state.resources:
        raise RefusedError(404, "ResourceNotFound", f"The endpoint of {path} was not found.")
    check_name(path)
    state.refuse_busy(endpoint)
    state.refuse_busy(key)
    size, count = body["properties"].get("instanceType"), body["sku"]["capacity"]
    if size not in SIZES:
        message = f"The size {size} is not one of {', '.join(SIZES)}."
        raise RefusedError(400, "BadArgument", message)
    if not 1 <= count <= INSTANCES:
        message = f"{count} instances: a deployment has 1 to {INSTANCES}."
        raise RefusedError(400, "BadArgument", message)
    cores, family = SIZES[size]
    if used_cores(state, family, but=key) + reserved_cores(cores, count) > QUOTA[family]:
        raise RefusedError(400, *OUT_OF_QUOTA)
    given = {"properties": {}, "scaleSettings": {"scaleType": "Default"}}  # no null (ran)
    body["properties"] = given | body["properties"]
    return state.put_later(path, key, body, lambda path: deploy(state, path))


def delete(state: State, path: str, key: str, body: Json) -> Answer:
    """Delete an endpoint with all below it, or a deployment without traffic."""
    if key not in state.resources:
        return 204, None, ""
    state.refuse_busy(key)
    endpoint, _, name = key.partition("/deployments/")
    traffic = state.resources[endpoint]["properties"].get("traffic") or {}
    if any(name == live.lower() and weight for live, weight in traffic.items()):
        message = f"The deployment {name} has traffic; set it to 0 before deleting."
        raise RefusedError(400, "BadRequest", message)
    if name:
        state.refuse_busy(endpoint)
        traffic.pop(state.resources[key]["name"], None)
    state.resources[key]["properties"]["provisioningState"] = "Deleting"
    return 202, None, state.later(key, lambda path: remove(state, path))


def list_keys(state: State, path: str, key: str, body: Json) -> Answer:
    """Return an endpoint's keys."""
    endpoint = key.rsplit("/", 1)[0]
    state.get(path, endpoint, body)
    first, second = state.keys[endpoint]
    return 200, {"primaryKey": first, "secondaryKey": second}, ""


def get_token(state: State, path: str, key: str, body: Json) -> Answer:
    """Return an endpoint's token, which here is its first key."""
    endpoint = key.rsplit("/", 1)[0]
    state.get(path, endpoint, body)
    until = int(time.time()) + 3600
    times = {"expiryTimeUtc": until, "refreshAfterTimeUtc": until - 600, "tokenType": "Bearer"}
    return 200, {"accessToken": state.keys[endpoint][0]} | times, ""


def get_logs(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the last lines of a deployment's server."""
    deployment = key.rsplit("/", 1)[0]
    state.get(path, deployment, body)
    log = folder_of(state, deployment) / "log.txt"
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    return 200, {"content": "\n".join(lines[-(body.get("tail") or LOG_LINES) :])}, ""
