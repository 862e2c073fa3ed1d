"""Managed online endpoints and their deployments."""

import math
import re
import secrets
import time
import uuid
from functools import partial

from azureml_emulator.services.deployments import deploy, folder_of, route
from azureml_emulator.services.sign_in import SECONDS
from azureml_emulator.state import Answer, Json, RefusedError, State, need

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
# 3 to 32 characters (observed), no two hyphens in a row
NAME = re.compile(r"^(?=.{3,32}$)[a-zA-Z](-?[a-zA-Z0-9])+$")
TAGS, TAG_LENGTH = 50, 256  # of a resource
LOG_LINES = 500
AUTH_MODES = ("key", "amltoken", "aadtoken")


def reserved_cores(cores: int, instances: int) -> int:
    """Return the cores that a deployment reserves: 20 % more instances, rounded up."""
    return cores * math.ceil(instances * 6 / 5)


def used_cores(state: State, family: str, but: str = "") -> int:
    """Return the cores of a family in use, without those of deployment `but`."""
    taken = 0
    for path, body in state.resources.items():
        if "/onlineendpoints/" in path and "/deployments/" in path and path != but:
            cores, its = state.settings.sizes.get(body["properties"]["instanceType"], (0, ""))
            taken += reserved_cores(cores, body["sku"]["capacity"]) * (its == family)
    return taken


def size_of(state: State, asked: str) -> str:
    """Return the size with a name, ignoring case. Raises RefusedError (400) if there is none."""
    for size in state.settings.sizes:
        if size.lower() == asked.lower():
            return size
    known = ", ".join(state.settings.sizes)
    raise RefusedError(400, "BadArgument", f"The size {asked} is not one of {known}.")


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
    need(body, "properties.authMode")
    names = {
        body["name"].lower()
        for place, body in state.resources.items()
        if body["type"].lower().endswith("/onlineendpoints") and place != key
    }
    if name.lower() in names:
        message = f"The endpoint name {name} is already taken in this region."
        raise RefusedError(400, "NameNotAvailable", message)
    tags = body.get("tags") or {}
    if len(tags) > TAGS or any(len(value) > TAG_LENGTH for value in tags.values()):
        message = f"At most {TAGS} tags of at most {TAG_LENGTH} characters each."
        raise RefusedError(400, "InvalidTagValueLength", message)
    properties = {"properties": {}, "mirrorTraffic": {}, "traffic": {}} | body["properties"]
    if properties["authMode"].lower() not in AUTH_MODES:
        message = f"authMode is {properties['authMode']}: expected Key, AMLToken or AADToken."
        raise RefusedError(400, "BadArgument", message)
    if properties["mirrorTraffic"]:
        raise RefusedError(501, "NotImplemented", "The emulator does not emulate mirrorTraffic.")
    places = {name: f"{key}/deployments/{name.lower()}" for name in properties["traffic"]}
    unknown = [name for name, place in places.items() if place not in state.resources]
    if unknown:
        raise RefusedError(400, "BadArgument", f"Traffic: unknown deployment {unknown[0]}.")
    traffic = {
        state.resources[places[name]]["name"]: weight
        for name, weight in properties["traffic"].items()
    }
    if sum(traffic.values()) not in (0, 100) or any(weight < 0 for weight in traffic.values()):
        message = f"The traffic percentages must sum to 0 or 100, not {sum(traffic.values())}."
        raise RefusedError(400, "BadArgument", message)
    known = state.resources.get(key, {"properties": {}})["properties"]
    uris = {uri: known.get(uri) for uri in ("scoringUri", "swaggerUri")}  # null until it is ready
    properties |= {"traffic": traffic} | uris
    properties.pop("keys", None)
    if body.get("identity", {}).get("type") == "SystemAssigned":
        body["identity"] |= {
            name: str(uuid.uuid5(uuid.NAMESPACE_URL, name + key))
            for name in ("principalId", "tenantId")
        }
    body |= {"properties": properties, "kind": "Managed"}
    return state.put_later(path, key, body, partial(route, state))


def put_deployment(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a deployment, or replace it."""
    endpoint = key.split("/deployments/")[0]
    if endpoint not in state.resources:
        raise RefusedError(404, "ResourceNotFound", f"The endpoint of {path} was not found.")
    check_name(path)
    state.refuse_busy(endpoint)
    need(body, "properties.instanceType", "sku.capacity")
    properties, count = body["properties"], body["sku"]["capacity"]
    size = size_of(state, properties["instanceType"])
    if not 1 <= count <= INSTANCES:
        message = f"{count} instances: a deployment has 1 to {INSTANCES}."
        raise RefusedError(400, "BadArgument", message)
    cores, family = state.settings.sizes[size]
    quota = state.settings.quota.get(family, 0)
    if used_cores(state, family, but=key) + reserved_cores(cores, count) > quota:
        raise RefusedError(400, *OUT_OF_QUOTA)
    if not (properties.get("codeConfiguration") or {}).get("codeId"):
        model = state.asset(properties["model"]) if properties.get("model") else {}
        if model.get("properties", {}).get("modelType") != "mlflow_model":
            message = "codeConfiguration is required unless the model is of type mlflow_model."
            raise RefusedError(400, "BadArgument", message)
    collector = properties.get("dataCollector", {})
    sampled = [one.get("samplingRate", 1) for one in collector.get("collections", {}).values()]
    if any(rate != 1 for rate in sampled) or collector.get("rollingRate", "Hour") != "Hour":
        message = "The emulator emulates only samplingRate 1 and rollingRate Hour."
        raise RefusedError(501, "NotImplemented", message)
    given = {"properties": {}, "scaleSettings": {"scaleType": "Default"}}  # no null (observed)
    body["properties"] = given | properties | {"instanceType": size}
    return state.put_later(path, key, body, partial(deploy, state))


def endpoint_of(state: State, path: str, key: str, auth_mode: str) -> str:
    """Return the path of the endpoint of an action; 400 if it has another authMode."""
    endpoint = key.rsplit("/", 1)[0]
    state.get(path, endpoint, {})
    mode = state.resources[endpoint]["properties"]["authMode"]
    if mode.lower() != auth_mode:
        raise RefusedError(400, "BadRequest", f"The endpoint's authMode is {mode}.")
    return endpoint


def list_keys(state: State, path: str, key: str, body: Json) -> Answer:
    """Return an endpoint's keys."""
    primary, secondary = state.keys[endpoint_of(state, path, key, "key")][:2]
    return 200, {"primaryKey": primary, "secondaryKey": secondary}, ""


def regenerate_keys(state: State, path: str, key: str, body: Json) -> Answer:
    """Replace an endpoint's primary or secondary key with a given value or a new one."""
    endpoint = endpoint_of(state, path, key, "key")
    keys = state.keys[endpoint]
    need(body, "keyType")
    if body["keyType"] not in ("Primary", "Secondary"):
        raise RefusedError(400, "BadArgument", "keyType: expected Primary or Secondary.")
    state.refuse_busy(endpoint)
    given = body.get("keyValue")  # the SDK sends the current key, which requests a new one
    new = given if given and given not in keys else secrets.token_urlsafe(24)
    keys[body["keyType"] == "Secondary"] = new
    return 202, None, state.later(endpoint, partial(route, state))


def get_token(state: State, path: str, key: str, body: Json) -> Answer:
    """Return a token of an endpoint whose authMode is AMLToken."""
    token = state.tokens.issue(endpoint_of(state, path, key, "amltoken"))
    until = int(time.time()) + SECONDS
    times = {"expiryTimeUtc": until, "refreshAfterTimeUtc": until - 600, "tokenType": "Bearer"}
    return 200, {"accessToken": token} | times, ""


def get_logs(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the last lines of a deployment's server."""
    deployment = key.rsplit("/", 1)[0]
    state.get(path, deployment, body)
    log = folder_of(state, deployment) / "log.txt"
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    return 200, {"content": "\n".join(lines[-(body.get("tail") or LOG_LINES) :])}, ""
