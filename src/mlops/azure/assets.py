"""Find and delete the registered assets of revisions and batch deployments."""

from collections.abc import Iterable
from typing import Any

from azure.core.exceptions import ResourceNotFoundError

from mlops.azure import connection, manager, revisions
from mlops.azure.revisions import ENVIRONMENT, MODEL
from mlops.azure.workspace import Workspace, empty, store

BATCH_ENVIRONMENT = f"{ENVIRONMENT}-batch"
OWNER = "endpoint"  # the tag that names the online endpoint for which an asset was registered


def versions(operations: Any, name: str) -> list[Any]:
    """Return all versions of a model or an environment, [] if it does not exist."""
    try:
        return list(operations.list(name=name))
    except ResourceNotFoundError:
        return []


def registered(client: Any, endpoint: str) -> set[str]:
    """Return the assets registered for an endpoint, including those of unrecorded revisions."""
    known = [("models", one) for one in versions(client.models, MODEL)]
    for name in (ENVIRONMENT, BATCH_ENVIRONMENT):
        known += [("environments", one) for one in versions(client.environments, name)]
    found = {
        f"{kind}/{one.name}/versions/{one.version}"
        for kind, one in known
        if (one.tags or {}).get(OWNER) == endpoint
    }
    rows = [one.name for one in client.data.list() if one.name.startswith(f"{endpoint}-r")]
    return found | {f"data/{name}/versions/1" for name in rows}


def of(deployments: Iterable[Any]) -> set[str]:
    """Return the assets of deployments; some have no code or environment."""
    found = set()
    for one in deployments:
        code = getattr(getattr(one, "code_configuration", None), "code", None)
        for part in (getattr(one, "model", None), getattr(one, "environment", None), code):
            found.add("/".join(str(part).split("/")[-4:]))
    return found


def used(client: Any, but: str) -> set[str]:
    """Return the assets used by all endpoints except `but`, including those of a rollback."""
    found = set[str]()
    for online in client.online_endpoints.list():
        if online.name != but:
            found |= revisions.assets(online) | of(client.online_deployments.list(online.name))
            found |= registered(client, online.name)
    for batch in client.batch_endpoints.list():
        found |= of(client.batch_deployments.list(batch.name))
    return found


def remove(workspace: Workspace, scope: str, going: set[str]) -> list[str]:
    """Delete assets of the workspace `scope`, and files of models that no other model uses.

    Azure does not delete data assets and environments; archive them and return what remains.
    """
    staying = {
        folder_of(one.path)
        for one in versions(workspace.client.models, MODEL)
        if f"models/{MODEL}/versions/{one.version}" not in going
    }
    left = []
    for asset in sorted(going):
        call = (f"{scope}/{asset}", connection.API)
        known = manager.ask(workspace, "GET", *call)
        if known is None:
            continue
        if known["properties"].get("isArchived"):
            left.append(f"{asset} (archived)")
            continue
        if manager.refusal(workspace, "DELETE", *call):
            known["properties"]["isArchived"] = True
            reason = manager.refusal(workspace, "PUT", *call, body=known)
            left.append(f"{asset} ({reason or 'archived'})")
            continue
        folder = folder_of(known["properties"].get("modelUri"))
        if folder and folder not in staying:
            empty(store(workspace), folder)
    return left


def folder_of(uri: str | None) -> str:
    """Return the folder of the blob store that a model's address names; models may share one."""
    return str(uri).partition("/paths/")[2].rstrip("/")
