"""`digits azure disconnect`: list what `digits azure connect` made, and remove it."""

import re
import shlex
from types import SimpleNamespace

from core.errors import DigitsError
from mlops.azure import connection
from mlops.setup import az

VERSION = f"api-version={connection.API}"


def refuse_another(group: str, variables: dict[str, str]) -> None:
    """Raise DigitsError when this clone, or its repository on GitHub, has another group."""
    key = "AZURE_RESOURCE_GROUP"
    for place, values in ((connection.WORKSPACE, connection.kept()), ("GitHub", variables)):
        mine = values.get(key, group)
        if mine.lower() != group.lower():
            raise DigitsError(
                f"{place}: connected with the resource group {mine}, not {group}: give "
                f"--resource-group {mine}; what an older connection left in {group} goes with `az "
                f"stack group delete --name {connection.STACK} --resource-group {group} "
                "--action-on-unmanage deleteResources`"
            )


def listed(group: str) -> list[str]:
    """Return the ids of what the stack made, none when there is no stack any more.

    Raises DigitsError when `az` cannot tell, or looks at another subscription.
    """
    account = az.must("az", "account", "show", "--output", "json") or {}
    mine = connection.kept().get("AZURE_SUBSCRIPTION_ID")
    if mine and account.get("id") != mine:
        raise DigitsError(
            f"`az` looks at subscription {account.get('id')}, this repository is connected with "
            f"{mine}: `az account set --subscription {mine}`"
        )
    where = ("--name", connection.STACK, "--resource-group", group, "--output", "json")
    stack = az.found("az", "stack", "group", "show", *where) or {}
    resources = stack.get("properties", stack).get("resources") or ()
    return [row["id"] for row in resources]


def of_type(kind: str, ids: list[str]) -> str | None:
    """Return the first id of a resource of a type, None when there is none."""
    return next((one for one in ids if re.search(rf"/{kind}/[^/]+$", one)), None)


def refuse_endpoints(workspace: str) -> None:
    """Raise DigitsError while endpoints run in the workspace: they would be left in between."""
    names = []
    for kind in ("onlineEndpoints", "batchEndpoints"):
        url = ("--url", f"{workspace}/{kind}", "--url-parameters", VERSION)
        answer = az.must("az", "rest", "--method", "get", *url, "--output", "json")
        names += [row["name"] for row in (answer or {}).get("value", ())]
    if names:
        mend = "`digits deploy destroy --workspace azure` removes that of this repository"
        raise DigitsError(f"the workspace has endpoints ({', '.join(names)}): {mend}")


def remove(group: str, workspace: str | None) -> None:
    """Delete what a stack made; a deleted workspace's name is free again."""
    if workspace:
        url = ("--url", workspace, "--url-parameters", VERSION, "forceToPurge=true")
        az.must("az", "rest", "--method", "delete", *url)
        az.must("az", "resource", "wait", "--deleted", "--ids", workspace)
    where = ("--name", connection.STACK, "--resource-group", group)
    az.must(
        *("az", "stack", "group", "delete", *where, "--action-on-unmanage", "deleteResources"),
        "--yes",
    )


def purge(vault: str) -> None:
    """Free the name of a deleted key vault, or tell that somebody else has to."""
    told = ("--resource-type", "vault", "--output", "json")
    try:
        for one in az.must("az", "keyvault", "list-deleted", *told) or ():
            if one["properties"]["vaultId"].lower() == vault.lower():
                az.must("az", "keyvault", "purge", "--name", one["name"])
    except DigitsError as error:
        if "AuthorizationFailed" not in str(error):
            raise
        print(f"A deleted key vault keeps its name for a while, for you may not purge it: {error}")


def remove_group(group: str) -> None:
    """Delete the resource group, if `digits azure connect` made it and nothing is left there."""
    found = az.found("az", "group", "show", "--name", group, "--output", "json")
    if found is None:
        return
    rest = az.asked("az", "resource", "list", "--resource-group", group, "--output", "json")
    made = (found.get("tags") or {}).get("made-by") == "digits"
    if made and rest == []:
        az.must("az", "group", "delete", "--name", group, "--yes")
        return
    names = ", ".join(f"{row['type']} {row['name']}" for row in rest or ()) or "nothing else"
    print(f"The group {group} stays; in it: {names}.")


def main(given: SimpleNamespace) -> None:
    """Disconnect."""
    group, repository = given.resource_group, given.repository or az.origin()
    known = az.github_variables(repository) if repository else None
    refuse_another(group, known or {})
    ids = listed(group)
    workspace = of_type("Microsoft.MachineLearningServices/workspaces", ids)
    vault = of_type("Microsoft.KeyVault/vaults", ids)
    shown = list(ids)
    if vault is None and (vault := connection.vault()):  # an earlier run came so far
        shown.append(f"{vault}, deleted, if it still keeps its name")
    lines = [f"  {one}" for one in shown or ["nothing"]]
    print("\n".join(["Made by `digits azure connect`:", *lines]))
    if workspace and az.found("az", "resource", "show", "--ids", workspace) is None:
        workspace = None  # an earlier run came so far
    if workspace:
        refuse_endpoints(workspace)
    if not given.yes:
        print("With it go all blobs in main and review, models, and what production collected.")
        try:
            answer = input(f"Type the group's name ({group}) to remove it: ")
        except EOFError:
            answer = ""
        if answer != group:
            raise DigitsError("nothing is removed; --yes does it without asking")
    if ids:
        remove(group, workspace)
    if vault:
        purge(vault)
    remove_group(group)
    changed = connection.keep(None)
    print(f"Taken out of {', '.join(path.as_posix() for path in changed) or 'no file'}; commit it.")
    print("GitHub's variables:")
    for name in connection.variables():
        if known is not None and name not in known:
            continue
        step = ("gh", "variable", "delete", name, "--repo", repository or "OWNER/NAME")
        if given.github:
            az.must(*step)
        else:
            print(f"  {shlex.join(step)}")
    print("GitHub's environments stay: they hold no rights without these identities.")
