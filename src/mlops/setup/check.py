"""Check the requirements of reviews and deployments on this machine, GitHub and Azure.

Output: a finding for each check, with the fix where it failed. Nothing is changed. GitHub and Azure
are queried by `gh` and `az`; if one is missing, its checks are reported as unknown.
"""

import os
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

from core.errors import DigitsError
from mlops import dvc, git
from mlops.azure import connection
from mlops.azure.settings import load
from mlops.setup import access, az
from mlops.setup.local import Finding, expect, show

# DVC and the SDK prefer these variables to the user's login.
OVERRIDES = (
    "STORAGE_CONNECTION_STRING",
    "STORAGE_KEY",
    "STORAGE_SAS_TOKEN",
    "CLIENT_SECRET",
    "CLIENT_CERTIFICATE_PATH",
    "USERNAME",
    "PASSWORD",
)
CHOICE = "AZURE_TOKEN_CREDENTIALS"  # which logins the SDK tries; these values keep that of `az`
WITH_AZ = ("", "dev", "azureclicredential")
ISSUER = "https://token.actions.githubusercontent.com"
CONNECT = "digits azure connect, with the resource group: it can be repeated"


def machine() -> Iterator[Finding]:
    """Check this machine and clone."""
    for tool, login in az.LOGIN.items():
        if shutil.which(tool) is None:
            yield Finding("optional", f"{tool}: not found", f"install it, then: {login}")
    shallow = git.line("rev-parse", "--is-shallow-repository")
    yield expect(shallow == "false", f"shallow clone: {shallow}", "git fetch --unshallow")
    overrides = [f"AZURE_{name}" for name in OVERRIDES if os.environ.get(f"AZURE_{name}")]
    if os.environ.get(CHOICE, "").strip().lower() not in WITH_AZ:
        overrides.append(CHOICE)
    text = f"variables that override the login: {', '.join(overrides) or 'none'}"
    yield expect(not overrides, text, f"unset {' '.join(overrides)}")
    yield from environment()


def sharing() -> Iterator[Finding]:
    """Check DVC's remotes: that each is named, and answers if it has an account."""
    for remote in connection.REMOTES:
        try:
            account = dvc.probe(remote)
            fix = "to share data: digits azure connect; or for local storage: make storage"
            text = f"remote {remote}: account {account or 'missing'}"
            yield Finding("ok" if account else "optional", text, fix)
        except DigitsError as error:
            yield Finding("failed", str(error))


def environment() -> Iterator[Finding]:
    """Check that no variable selects another workspace than the repository's."""
    try:
        settings = connection.load_connection()
    except DigitsError as error:
        yield Finding("failed", str(error))
        return
    for name, value in settings.items():
        used = os.environ.get(name) or value
        text = f"{name}: {used}; {connection.WORKSPACE} has {value}"
        yield expect(used == value, text, f"unset {name}: `digits deploy` uses it")


def github(repository: str | None) -> Iterator[Finding]:
    """Check the repository on GitHub, by default the origin, and what Azure grants its jobs."""
    repository = repository or az.origin()
    if repository is None:
        fix = "git remote add origin URL, or --repository OWNER/NAME"
        yield Finding("unknown", "origin: not on GitHub", fix)
        return
    values, prefix = az.github_variables(repository), az.subject_prefix(repository)
    if values is None or prefix is None:
        yield Finding("unknown", f"GitHub: no answer about {repository}", az.LOGIN["gh"])
        return
    template = access.load()
    try:
        facts = az.repository_facts(repository)
        yield from switched_off(repository, facts)
        if not values.keys() & set(connection.SETTINGS):
            text = f"GitHub: {repository} is not connected to Azure, so merges deploy nothing"
            yield Finding("optional", text, CONNECT)
            return
        for name in template.variables:
            yield expect(name in values, f"variable {name}", CONNECT)
        yield from limits(repository, facts, values)
        subjects = {row.identity: f"{prefix}:{row.claim(facts)}" for row in template.logins}
        yield from azure_resources(template, values, subjects)
    except DigitsError as error:  # no answer from `gh` or `az`
        yield Finding("unknown", str(error))


def switched_off(repository: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """Check what GitHub disables in forks and after 60 idle days, and the branch's name."""
    rows = az.get_or_none("gh", "api", f"repos/{repository}/actions/workflows")["workflows"]
    off = [row["name"] for row in rows if row["state"] != "active"]
    branch, on = facts["default_branch"], f"https://github.com/{repository}/actions"
    yield expect(branch == git.MAIN, f"default branch: {branch}", "name it main, as workflows do")
    fix = f"gh repo edit {repository} --enable-issues: drift is reported in one"
    yield expect(facts["has_issues"], f"issues: {facts['has_issues']}", fix)
    yield expect(rows, f"workflows that GitHub knows: {len(rows)}", f"switch Actions on: {on}")
    fix = f"gh workflow enable NAME --repo {repository}"
    yield expect(not off, f"workflows that are off: {', '.join(off) or 'none'}", fix)


def limits(repository: str, facts: dict[str, Any], values: dict[str, str]) -> Iterator[Finding]:
    """Check that jobs name environments if the plan has them, those of main limited to a branch."""
    expected, found = "limited" if facts["environments"] else "none", values.get("ENVIRONMENTS")
    text = f"variable ENVIRONMENTS: {found}; by plan and visibility: {expected}"
    yield expect(found == expected, text, CONNECT)
    if expected == "none":
        text = "no GitHub App: without environments its key is open to every branch"
        fix = f"gh variable delete REVIEW_APP_CLIENT_ID --repo {repository}"
        yield expect("REVIEW_APP_CLIENT_ID" not in values, text, fix)
        return
    rows = az.get_or_none("gh", "api", f"repos/{repository}/environments")["environments"]
    limited = {row["name"] for row in rows if row["deployment_branch_policy"]}
    for name in [name for name, protected in access.ENVIRONMENTS.items() if protected]:
        fix = f"any branch may use it: {CONNECT}"
        yield expect(name in limited, f"environment {name}: for the default branch alone", fix)


def azure_resources(
    template: access.Access, values: dict[str, str], subjects: dict[str, str]
) -> Iterator[Finding]:
    """Check the identities in Azure, whom they trust and their roles, and the clusters.

    `values` are GitHub's variables, which name the resources; `subjects` are those of the tokens of
    each identity's jobs. Raises DigitsError without an answer of `az`.
    """
    if not {"AZURE_STORAGE_ACCOUNT", *connection.SETTINGS} <= set(values):
        return  # reported by the findings of the variables
    workspace = connection.workspace_id(values)
    scopes = access.scopes(values["AZURE_STORAGE_ACCOUNT"], workspace)
    az.require_subscription(values["AZURE_SUBSCRIPTION_ID"])
    group = ("--resource-group", values["AZURE_RESOURCE_GROUP"])
    rows = az.get_or_none("az", "identity", "list", *group) or ()
    clients = {row["name"]: row["clientId"] for row in rows}
    for login in template.logins:
        identity = f"digits-{login.identity}"
        matches = clients.get(identity, "") == values.get(login.variable)
        yield expect(matches, f"{login.variable}: the client id of {identity}", CONNECT)
        if identity in clients:
            place = ("--identity-name", identity, *group)
            yield credential(place, subjects[login.identity])
    for name in template.identities:
        client = clients.get(f"digits-{name}")
        yield roles(f"digits-{name}", client, template.roles(name, scopes))
    yield from clusters(workspace)


def credential(place: tuple[str, ...], subject: str) -> Finding:
    """Compare the subjects that an identity trusts with that of its jobs."""
    command = ("az", "identity", "federated-credential")
    rows = az.get_or_none(*command, "list", *place) or ()
    trusted = {row["subject"]: row["name"] for row in rows if row["issuer"].rstrip("/") == ISSUER}
    text = f"{place[1]}: expected to trust {subject} alone"
    if set(trusted) != {subject}:
        text += f", trusts {', '.join(sorted(trusted)) or 'nobody'}"
    fixes = [] if trusted.pop(subject, None) else [CONNECT]
    fixes += [shlex.join((*command, "delete", *place, "--name", x)) for x in trusted.values()]
    return expect(not fixes, text, "; ".join(fixes))


def roles(identity: str, client: str | None, needed: set[tuple[str, str]]) -> Finding:
    """Compare an identity's roles, each with the id of its resource, with those it needs."""
    command = ("az", "role", "assignment", "list", "--all", "--assignee")
    rows = az.get_or_none(*command, client) if client else None
    found = {row["id"]: (row["roleDefinitionName"], row["scope"].lower()) for row in rows or ()}
    present = needed & set(found.values())
    extra = [place for place, role in found.items() if role not in needed]
    text = f"{identity}: has {len(present)} of {len(needed)} roles"
    text += f" and {len(extra)} more than it needs" if extra else ""
    fixes = [] if present == needed else [CONNECT]
    fixes += [f"az role assignment delete --ids {' '.join(extra)}"] if extra else []
    return expect(not fixes, text, "; ".join(fixes))


def clusters(workspace: str) -> Iterator[Finding]:
    """Check the clusters that jobs and batch scoring run on; the latter is optional."""
    settings = load()
    for name in sorted({settings.job.compute or "", settings.batch.compute} - {""}):
        exists = az.try_json("az", "resource", "show", "--ids", f"{workspace}/computes/{name}")
        fix = f"{CONNECT}, and creates cpu-cluster if the quota allows a node; or name another "
        fix += "in params.yaml"
        if exists or name == settings.job.compute:
            yield expect(exists, f"cluster {name}", fix)
        else:
            text = f"cluster {name}: only `digits score --workspace azure` needs it"
            yield Finding("optional", text, fix)


def main(repository: str | None = None, as_json: bool = False) -> None:
    """Print the findings; raise DigitsError when a check failed."""
    show({"local": machine(), "sharing": sharing(), "cloud": github(repository)}, as_json)
