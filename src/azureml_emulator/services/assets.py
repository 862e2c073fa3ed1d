"""Models, codes, environments and data: versions of registered assets."""

import uuid

from azureml_emulator.state import Answer, Json, RefusedError, State, need
from azureml_emulator.web import EmulatorError

CONTENT = ("modelUri", "codeUri", "image", "condaFile", "dataUri")  # of a version, for good
URIS = ("modelUri", "codeUri", "dataUri")


def put_version(state: State, path: str, key: str, body: Json) -> Answer:
    """Register one version of an asset; what a version holds cannot change."""
    need(body, "properties")
    known = state.resources.get(key)
    if known:
        for name in CONTENT:
            if known["properties"].get(name) != body["properties"].get(name):
                message = f"{path} already exists with another {name}, which cannot change."
                raise RefusedError(409, "UserError", message)
    given: Json = {"properties": {}, "tags": {}}
    if "/models/" in key:
        given["flavors"] = {}  # the SDK takes no null here (ran)
    given |= body["properties"]
    if "/data/" not in key:
        given["provisioningState"] = "Succeeded"
    state.contents[key] = content_of(state, given)
    return state.put(path, key, body | {"properties": given})


def content_of(state: State, properties: Json) -> Json | None:
    """Return the sizes of an asset's blobs by name, None if it has none here."""
    uri = next((properties[name] for name in URIS if properties.get(name)), "")
    try:
        return state.storage.find(uri)[2] or None
    except EmulatorError:
        return None


def restore(state: State) -> None:
    """Leave out assets whose blobs Azurite lost: it writes its index to disk some seconds late."""
    for key, body in list(state.resources.items()):
        content = state.contents.get(key)
        if content and content_of(state, body["properties"]) != content:
            state.leave_out(key, "its content was lost when the blob store was killed")


def list_versions(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the versions of an asset, newest first; 404 if it has none, but not of a code."""
    status, found, operation = state.listing(path, key, body)
    if "/codes/" not in key and found == {"value": []}:
        raise RefusedError(404, "UserError", f"The container of {path} was not found.")
    assert found
    if wanted := body.get("hash"):  # as the SDK asks for a code that is there already
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
    return 200, state.stored(path, {"properties": following}, None), ""


def list_containers(state: State, path: str, key: str, body: Json) -> Answer:
    """Return what the versions of each asset share."""
    kept = [body["id"] for name, body in state.resources.items() if name.startswith(key + "/")]
    places = sorted({place.split("/versions/")[0] for place in kept})
    found = [get_container(state, one, one.lower(), {})[1] for one in places]
    return 200, {"value": found}, ""


def start_pending_upload(state: State, path: str, key: str, body: Json) -> Answer:
    """Return where code may be uploaded to: the SDK takes the address given here (ran)."""
    place, signed = state.storage.offer(str(uuid.uuid5(uuid.NAMESPACE_URL, key)))
    credential = {"credentialType": "SAS", "sasUri": signed}
    reference = {"blobUri": place, "storageAccountArmId": "/local", "credential": credential}
    kind = {"pendingUploadId": str(uuid.uuid4()), "pendingUploadType": "TemporaryBlobReference"}
    return 200, {"blobReferenceForConsumption": reference} | kind, ""
