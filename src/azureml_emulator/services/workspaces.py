"""A workspace: its datastores, operations, quota, and settings of Azure Monitor and storage."""

import uuid

from azureml_emulator.services.online_endpoints import used_cores
from azureml_emulator.state import LOCATION, PROVIDER, Answer, Json, RefusedError, State, need
from azureml_emulator.storage import ACCOUNT, CONTAINER

# An endpoint's logs: learn.microsoft.com/azure/azure-monitor/reference/supported-logs/
# microsoft-machinelearningservices-workspaces-onlineendpoints-logs.
LOGS = {f"AmlOnlineEndpoint{kind}Log" for kind in ("Console", "Event", "Traffic")}
STORES = ("workspaceblobstore", "workspaceartifactstore")


def get(state: State, path: str, key: str, body: Json) -> Answer:
    """Return a workspace; any name is accepted."""
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, key))
    group = path.split("/providers/")[0]
    account = f"{group}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
    properties = {"workspaceId": identity, "storageAccount": account, "mlFlowTrackingUri": ""}
    properties["discoveryUrl"] = f"{state.url}/discovery"
    return 200, state.stored(path, {"properties": properties}, None) | {"location": LOCATION}, ""


def get_datastore(state: State, path: str, key: str, body: Json) -> Answer:
    """Return one of the workspace's two names for its blob store."""
    if path.split("/")[-1].lower() not in STORES:
        raise RefusedError(404, "ResourceNotFound", f"The datastore {path} was not found.")
    credentials = "None" if state.settings.identity_datastores else "AccountKey"
    properties = {
        "datastoreType": "AzureBlob",
        "accountName": ACCOUNT,
        "containerName": CONTAINER,
        "endpoint": "core.windows.net",
        "protocol": "https",
        "isDefault": key.endswith("/workspaceblobstore"),
        "credentials": {"credentialsType": credentials},
        "tags": {},
    }
    return 200, state.stored(path, {"properties": properties}, None), ""


def list_datastores(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the workspace's blob stores; with `?isDefault=true`, only the first."""
    only_default = str(body.get("isDefault")).lower() == "true"
    places = [f"{path}/{name}" for name in (STORES[:1] if only_default else STORES)]
    return 200, {"value": [get_datastore(state, one, one.lower(), {})[1] for one in places]}, ""


def list_secrets(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the blob store's key. An identity datastore has none (azure-sdk-assets)."""
    get_datastore(state, path.rsplit("/", 1)[0], key.rsplit("/", 1)[0], {})
    if state.settings.identity_datastores:
        raise RefusedError(400, "UserError", "No secrets for credentials of type None.")
    return 200, {"secretsType": "AccountKey", "key": state.storage.key}, ""


def get_operation(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the status of an operation."""
    name = key.split("/")[-1]
    if name not in state.operations:
        raise RefusedError(404, "NotFound", f"There is no operation {name}.")
    known = {key: value for key, value in state.operations[name].items() if key != "resource"}
    return 200, {"id": path, "name": name} | known, ""


def list_usages(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the quota of each family of sizes, in cores."""
    usage = {"id": path, "type": f"{PROVIDER}/vm/dedicatedCores", "unit": "Count"}
    found = []
    for family, limit in state.settings.quota.items():
        name = {"value": family, "localizedValue": family}
        used = used_cores(state, family)
        found.append(usage | {"name": name, "currentValue": used, "limit": limit})
    return 200, {"value": found}, ""


def list_sizes(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the available sizes."""
    rest: Json = {"gpus": 0, "osVhdSizeMB": 1, "maxResourceVolumeMB": 1, "memoryGB": 7.0}
    rest |= {"premiumIO": True, "supportedComputeTypes": ["AmlCompute"]}
    value = [
        {"name": name, "vCPUs": cores, "family": family, "lowPriorityCapable": False} | rest
        for name, (cores, family) in state.settings.sizes.items()
    ]
    return 200, {"value": value}, ""


def put_autoscale(state: State, path: str, key: str, body: Json) -> Answer:
    """Store a deployment's autoscale setting of Azure Monitor; it has no effect here."""
    need(body, "properties.targetResourceUri", "properties.profiles")
    target = body["properties"]["targetResourceUri"]
    if target.lower() not in state.resources:
        raise RefusedError(400, "ResourceNotFound", f"The target {target} was not found.")
    for profile in body["properties"]["profiles"]:
        bounds = [int(profile["capacity"][name]) for name in ("minimum", "default", "maximum")]
        if bounds != sorted(bounds):
            raise RefusedError(400, "InvalidProfile", f"{bounds} are not in order.")
    return state.put(path, key, body)


def put_diagnostics(state: State, path: str, key: str, body: Json) -> Answer:
    """Store where logs go; source: learn.microsoft.com/rest/api/monitor/diagnostic-settings."""
    state.get(path, key.rpartition("/providers/")[0], {})
    need(body, "properties.workspaceId", "properties.logs")
    if unknown := {log.get("category") for log in body["properties"]["logs"]} - LOGS:
        raise RefusedError(400, "BadRequest", f"Category '{unknown.pop()}' is not supported.")
    return 200, *state.put(path, key, body)[1:]


def put_retention(state: State, path: str, key: str, body: Json) -> Answer:
    """Store a storage account's rules; they delete no blobs here.

    The one policy is named default and each rule is complete: learn.microsoft.com/rest/api/
    storagerp/management-policies/create-or-update.
    """
    if not key.endswith("/default"):
        raise RefusedError(400, "InvalidResourceName", f"{path}: the policy's name is default.")
    need(body, "properties.policy.rules")
    for rule in body["properties"]["policy"]["rules"]:
        need(rule, "name", "type", "definition.actions")
    return state.put(path, key, body)
