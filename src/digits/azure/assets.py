"""What is registered in the workspace for revisions and batches, what uses it, and its removal."""

from collections.abc import Iterable
from typing import Any

from digits.azure import connection, manager, revisions
from digits.azure.revisions import ENVIRONMENT, MODEL
from digits.azure.workspace import Workspace, empty, store

BATCH_ENVIRONMENT = f"{ENVIRONMENT}-batch"


def registered(client: Any, endpoint: str) -> set[str]:
    """Return what is registered for an endpoint, also for revisions that no tag tells of."""
    versions = [("models", one) for one in client.models.list(name=MODEL)]
    for name in (ENVIRONMENT, BATCH_ENVIRONMENT):
        versions += [("environments", one) for one in client.environments.list(name=name)]
    found = {f"{kind}/{one.name}/versions/{one.version}" for kind, one in versions}
    rows = [one.name for one in client.data.list() if one.name.startswith(f"{endpoint}-r")]
    return found | {f"data/{name}/versions/1" for name in rows}


def of(deployments: Iterable[Any]) -> set[str]:
    """Return what deployments are made of; some have no code or environment."""
    found = set()
    for one in deployments:
        code = getattr(getattr(one, "code_configuration", None), "code", None)
        for part in (getattr(one, "model", None), getattr(one, "environment", None), code):
            found.add("/".join(str(part).split("/")[-4:]))
    return found


def used(client: Any, but: str) -> set[str]:
    """Return what all endpoints but one online endpoint are made of, or may go back to."""
    found = set[str]()
    for online in client.online_endpoints.list():
        if online.name != but:
            found |= revisions.assets(online) | of(client.online_deployments.list(online.name))
    for batch in client.batch_endpoints.list():
        found |= of(client.batch_deployments.list(batch.name))
    return found


def forget(workspace: Workspace, place: str) -> None:
    """Delete an asset by its id, if it is there, with the files of a model."""
    known = manager.ask(workspace, "GET", place, connection.API)
    if known is None:
        return
    _, _, folder = known["properties"].get("modelUri", "").partition("/paths/")
    manager.ask(workspace, "DELETE", place, connection.API)
    if folder:
        empty(store(workspace), folder)
