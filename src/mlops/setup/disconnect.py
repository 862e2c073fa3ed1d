"""List what `digits azure connect` made, or the endpoints of a class, and remove it."""

import re
from collections.abc import Iterable
from types import SimpleNamespace

from core.errors import DigitsError
from mlops import options
from mlops.azure import connection
from mlops.setup import access, az

VERSION = f"api-version={connection.API}"
WORKSPACE, VAULT = "Microsoft.MachineLearningServices/workspaces", "Microsoft.KeyVault/vaults"


def refuse_another(group: str, variables: dict[str, str]) -> None:
    """Raise DigitsError when this clone, or its repository on GitHub, has another group."""
    for place, values in (
        (connection.WORKSPACE, connection.load_connection()),
        ("GitHub", variables),
    ):
        connected = values.get("AZURE_RESOURCE_GROUP", group)
        if connected.lower() != group.lower():
            raise DigitsError(
                f"{place}: connected with the resource group {connected}, not {group}. Give "
                f"--resource-group {connected}. To delete what an older one left in {group}: "
                f"`az stack group delete --name {access.STACK} --resource-group {group} "
                "--action-on-unmanage deleteResources`."
            )


def resources(group: str) -> list[str]:
    """Return the ids of the stack's resources that still exist, none without a stack.

    Raises DigitsError without an answer of `az`.
    """
    place = ("--name", access.STACK, "--resource-group", group)
    stack = az.get_or_none("az", "stack", "group", "show", *place) or {}
    return [row["id"] for row in stack.get("properties", stack).get("resources") or ()]


def of_type(kind: str, ids: Iterable[str]) -> list[str]:
    """Return the ids of resources of a type."""
    return [one for one in ids if re.search(rf"/{kind}/[^/]+$", one)]


def exists(resource: str) -> bool:
    """Return whether a resource is still there, which an earlier run may have deleted."""
    return az.get_or_none("az", "resource", "show", "--ids", resource) is not None


def endpoints(workspace: str) -> dict[str, str]:
    """Return the ids of a workspace's endpoints by name."""
    found: dict[str, str] = {}
    for kind in ("onlineEndpoints", "batchEndpoints"):
        url = ("--url", f"{workspace}/{kind}", "--url-parameters", VERSION)
        answer = az.run("az", "rest", "--method", "get", *url) or {}
        found |= {
            row["name"]: f"{workspace}/{kind}/{row['name']}" for row in answer.get("value", ())
        }
    return found


def of_class(prefix: str, delete: bool, yes: bool) -> None:
    """List the endpoints whose names begin with `prefix`; delete them with all that they run."""
    if not prefix:
        raise DigitsError("--prefix is empty, which would name every endpoint; give the class's")
    workspace = connection.workspace_id(connection.load_connection())
    found = {name: place for name, place in endpoints(workspace).items() if name.startswith(prefix)}
    print(*(found or [f"No endpoint begins with {prefix}."]), sep="\n")
    if found and delete:
        if not yes:
            options.confirm("all endpoints that begin with", prefix)
        for place in found.values():
            az.run("az", "rest", "--method", "delete", "--url", place, "--url-parameters", VERSION)
        print("Azure deletes them within minutes. What they collected stays in the workspace.")


def purge(ids: list[str]) -> None:
    """Delete the workspace and the vault among some resources; their names are free again.

    Without permission to purge a vault, it prints that its name is kept for a while.
    """
    for workspace in filter(exists, of_type(WORKSPACE, ids)):
        url = ("--url", workspace, "--url-parameters", VERSION, "forceToPurge=true")
        az.run("az", "rest", "--method", "delete", *url)
        az.run("az", "resource", "wait", "--deleted", "--ids", workspace)
    for vault in of_type(VAULT, ids):
        if exists(vault):
            az.run("az", "resource", "delete", "--ids", vault)
        try:
            for one in az.run("az", "keyvault", "list-deleted", "--resource-type", "vault") or ():
                if one["properties"]["vaultId"].lower() == vault.lower():
                    az.run("az", "keyvault", "purge", "--name", one["name"])
        except DigitsError as error:
            if "AuthorizationFailed" not in str(error):
                raise
            print(f"The deleted key vault keeps its name, because you may not purge it: {error}")


def remove_group(group: str) -> None:
    """Delete the resource group, if `digits azure connect` made it and nothing is left there."""
    found = az.get_or_none("az", "group", "show", "--name", group)
    if found is None:
        return
    rest = az.try_json("az", "resource", "list", "--resource-group", group)
    name, _, value = access.MADE.partition("=")
    if rest == [] and (found.get("tags") or {}).get(name) == value:
        az.run("az", "group", "delete", "--name", group, "--yes")
        return
    names = ", ".join(f"{row['type']} {row['name']}" for row in rest or ()) or "none"
    print(f"The group {group} is kept. Other resources in it: {names}.")


def main(given: SimpleNamespace) -> None:
    """Disconnect the repository."""
    group, repository = given.resource_group, given.repository or az.origin()
    known = az.github_variables(repository) if repository else None
    refuse_another(group, known or {})
    az.require_subscription(connection.load_connection().get("AZURE_SUBSCRIPTION_ID"))
    ids = resources(group)
    print("Made by `digits azure connect`:", *(ids or ["nothing"]), sep="\n  ")
    for workspace in filter(exists, of_type(WORKSPACE, ids)):
        if names := endpoints(workspace):  # they would stop a removal half-way
            raise DigitsError(
                f"The workspace has endpoints: {', '.join(names)}. Remove that of this repository "
                "with `digits deploy destroy --workspace azure`."
            )
    if not given.yes:
        print("All blobs in main and review, models, and collected data are deleted with it.")
        options.confirm("the resource group", group)
    if ids:
        purge(ids)
        place = ("--name", access.STACK, "--resource-group", group)
        action = ("--action-on-unmanage", "deleteResources", "--yes")
        az.run("az", "stack", "group", "delete", *place, *action)
    remove_group(group)
    files = ", ".join(path.as_posix() for path in connection.save_connection(None))
    print(f"Removed from {files}; commit it." if files else "Removed from no file.")
    for name in access.load().variables:
        if repository and name in (known or {}):
            az.run("gh", "variable", "delete", name, "--repo", repository)
    print("GitHub's environments stay: they hold no rights without these identities.")
