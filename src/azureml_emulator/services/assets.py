"""Models, codes, environments and data: versions of registered assets."""

import json
import uuid
from typing import Any

import yaml
from azure.core.exceptions import ResourceNotFoundError

from azureml_emulator.state import Answer, Json, RefusedError, State, need
from azureml_emulator.web import EmulatorError

CONTENT = ("modelUri", "codeUri", "image", "condaFile", "dataUri", "dataType")  # immutable
URIS = ("modelUri", "codeUri", "dataUri")


def put_version(state: State, path: str, key: str, body: Json) -> Answer:
    """Register one version of an asset; the content of a version cannot change."""
    need(body, "properties")
    known = state.resources.get(key)
    if known:
        for name in CONTENT:
            before, now = (normal(name, one["properties"].get(name)) for one in (known, body))
            if before != now:
                message = f"{path} already exists with another {name}, which cannot change."
                raise RefusedError(409, "UserError", message)
    given: Json = {"properties": {}, "tags": {}}
    if "/models/" in key:
        given["flavors"] = {}  # the SDK does not accept null here (observed)
    given |= body["properties"]
    given["properties"] = {name: str(value) for name, value in given["properties"].items()}
    if "/data/" not in key:
        given["provisioningState"] = "Succeeded"
    if given.get("condaFile"):
        given["condaFile"] = json.dumps(normal("condaFile", given["condaFile"]))
    state.contents[key] = content_of(state, given)
    return state.put(path, key, body | {"properties": given})


def normal(name: str, value: str | None) -> Any:
    """Return a part of a version's content as Azure compares it.

    Azure returns a conda file as JSON with dates as text, and a URI in another case
    (azure-sdk-assets, recordings). Raises RefusedError (400) if a conda file is not YAML.
    """
    if name != "condaFile" or value is None:
        return value.lower().rstrip("/") if value and name in URIS else value
    try:
        return json.loads(json.dumps(yaml.safe_load(value), default=str))
    except yaml.YAMLError as error:
        raise RefusedError(400, "UserError", f"condaFile is not valid YAML: {error}.") from None


def delete_version(state: State, path: str, key: str, body: Json) -> Answer:
    """Delete one version of a model or a code that no deployment uses.

    Azure deletes no data asset by design (learn.microsoft.com/azure/machine-learning/
    how-to-create-data-assets; 400 in github.com/microsoft/vscode-tools-for-ai/issues/1761), and
    environments are archived instead (github.com/Azure/azure-cli/issues/21957): a PUT with
    isArchived, as the SDK's `archive` sends.
    """
    if "/data/" in key or "/environments/" in key:
        raise RefusedError(400, "UserError", f"{path} cannot be deleted. Archive it instead.")
    for place, one in state.resources.items():
        if "/deployments/" in place and f'{key}"' in json.dumps(one["properties"]).lower():
            raise RefusedError(409, "Conflict", f"{path} is used by {one['id']}.")
    return state.delete(path, key, body)


def content_of(state: State, properties: Json) -> Json | None:
    """Return the sizes of an asset's blobs by name, None if they are not stored here."""
    uri = next((properties[name] for name in URIS if properties.get(name)), "")
    try:
        return state.storage.find(uri)[2] or None
    except (EmulatorError, ResourceNotFoundError):  # the latter if its container was lost
        return None


def restore(state: State) -> None:
    """Leave out assets whose blobs Azurite lost: it writes its index to disk some seconds late."""
    for key, body in list(state.resources.items()):
        content = state.contents.get(key)
        if content and content_of(state, body["properties"]) != content:
            state.leave_out(key, "its content was lost when the blob store was killed")


def list_versions(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the versions of an asset; 404 if it has none, except for a code."""
    status, found, operation = state.listing(path, key, body)
    assert found
    if "/codes/" not in key and not any(name.startswith(f"{key}/") for name in state.resources):
        raise RefusedError(404, "UserError", f"The container of {path} was not found.")
    if wanted := body.get("hash"):  # as the SDK looks for a code that exists already
        found["value"] = [
            one
            for one in found["value"]
            if one["properties"]["properties"].get("hash_sha256") == wanted
        ]
    return status, found, operation


def get_container(state: State, path: str, key: str, body: Json) -> Answer:
    """Return what all versions of an asset share."""
    versions = [name for name in state.resources if name.startswith(key + "/versions/")]
    if not versions:
        raise RefusedError(404, "ResourceNotFound", f"The resource {path} was not found.")
    numbers = [int(name.split("/")[-1]) for name in versions if name.split("/")[-1].isdigit()]
    following = {"nextVersion": str(max(numbers, default=0) + 1), "properties": {}, "tags": {}}
    following["latestVersion"] = versions[-1].split("/")[-1]  # the one registered last
    if kind := state.resources[versions[-1]]["properties"].get("dataType"):
        following["dataType"] = kind
    return 200, state.stored(path, {"properties": following}, None), ""


def list_containers(state: State, path: str, key: str, body: Json) -> Answer:
    """Return what the versions of each asset share."""
    kept = [body["id"] for name, body in state.resources.items() if name.startswith(key + "/")]
    places = sorted({place.split("/versions/")[0] for place in kept})
    return 200, {"value": [get_container(state, one, one.lower(), {})[1] for one in places]}, ""


def start_pending_upload(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the address for an upload of code, which the SDK then uses (observed)."""
    place, signed = state.storage.offer(str(uuid.uuid5(uuid.NAMESPACE_URL, key)))
    credential = {"credentialType": "SAS", "sasUri": signed}
    reference = {"blobUri": place, "storageAccountArmId": "/local", "credential": credential}
    kind = {"pendingUploadId": str(uuid.uuid4()), "pendingUploadType": "TemporaryBlobReference"}
    return 200, {"blobReferenceForConsumption": reference} | kind, ""
