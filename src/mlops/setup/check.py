"""`digits azure check`: what stands in the way of data, review and deployment, each with its mend.

It changes nothing. What only GitHub and Azure know is asked of their own commands, `gh` and `az`;
where one is missing or not logged in, the finding says so and nothing is guessed.
"""

import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator

from azure.core.exceptions import AzureError

from core.errors import DigitsError
from mlops.azure import connection
from mlops.azure.workspace import connect, cores
from mlops.deploy import release
from mlops.setup import local
from mlops.setup.az import asked, github_variables, origin, subject_prefix, told
from mlops.setup.findings import Finding, judged, show

# DVC and the SDK take these before anybody's own login.
STRAY = (
    "STORAGE_CONNECTION_STRING",
    "STORAGE_KEY",
    "STORAGE_SAS_TOKEN",
    "CLIENT_SECRET",
    "CLIENT_CERTIFICATE_PATH",
    "USERNAME",
    "PASSWORD",
)
CHOICE = "AZURE_TOKEN_CREDENTIALS"  # which logins the SDK tries; these values keep that of `az`
KEEPING = ("", "dev", "azureclicredential")
ISSUER = "https://token.actions.githubusercontent.com"


def here() -> Iterator[Finding]:
    """Look at this machine and clone."""
    yield from local.tools()
    for name, mend in (("gh", "gh auth login"), ("az", "az login")):
        if shutil.which(name) is None:
            yield Finding("unknown", f"{name}: not found", f"install it, then `{mend}`")
    shallow = told("git", "rev-parse", "--is-shallow-repository")
    yield judged(shallow == "false", f"shallow clone: {shallow}", "git fetch --unshallow")
    settings = told(sys.executable, "-m", "dvc", "config", "--list") or ""
    for remote in ("main", "review"):
        keys = dict(re.findall(rf"^remote\.{remote}\.(\S+?)=(.*)$", settings, re.M))
        place = keys.get("account_name", "by string" if "connection_string" in keys else None)
        mend = f"`digits azure connect`, `dvc remote modify --local {remote} account_name "
        mend += "MYACCOUNT`, or `make storage`"
        said = f"remote {remote}: {keys.get('url', 'absent')}, account {place or 'missing'}"
        yield judged(place and "url" in keys, said, mend)
    stray = [f"AZURE_{name}" for name in STRAY if os.environ.get(f"AZURE_{name}")]
    if os.environ.get(CHOICE, "").strip().lower() not in KEEPING:
        stray.append(CHOICE)
    said = f"stray variables: {', '.join(stray) or 'none'}"
    mend = f"unset {' '.join(stray)}: they go before `az login` and OIDC, or leave them out"
    yield judged(not stray, said, mend)
    yield from elsewhere()


def elsewhere() -> Iterator[Finding]:
    """Look for variables that lead commands to another workspace than the repository's."""
    try:
        kept = connection.kept()
    except DigitsError as error:
        yield Finding("wrong", str(error))
        return
    for name, value in kept.items():
        other = os.environ.get(name) or value
        said = f"{name}: {other}; {connection.WORKSPACE} has {value}"
        mend = f"unset {name}: with it `digits deploy` works on another workspace"
        yield judged(other == value, said, mend)


def github(repository: str | None) -> Iterator[Finding]:
    """Look at the repository on GitHub, and at what Azure lets in from there."""
    prefix = repository and subject_prefix(repository)
    if repository is None:
        mend = "git remote add origin, or --repository OWNER/NAME"
        yield Finding("unknown", "origin: not on GitHub", mend)
    elif prefix is None:
        owner, _, name = repository.partition("/")
        mend = "`gh auth login`, so that GitHub can be asked; made or renamed since July 2026 it "
        mend += f"has numeric ids in its subjects: repo:{owner}@OWNER_ID/{name}@REPOSITORY_ID"
        yield Finding("unknown", "whether the subjects carry numeric ids", mend)
    expected: dict[str, list[str]] = {}
    jobs = list(connection.jobs(prefix or f"repo:{repository or 'OWNER/NAME'}"))
    for job in jobs:
        expected.setdefault(job.subject, []).append(job.name)
    found = connection.rights()
    trusted = {subject.rpartition(":")[2]: subject for subject in expected}
    for subject, names in expected.items():
        known = subject.rpartition(":environment:")[2] in found.logins.values()
        mend = f"give the job an environment that {connection.TEMPLATE} has a login for"
        yield judged(known, f"subject {subject}: of {', '.join(names)}", mend)
    values: dict[str, str] = {}
    if repository:
        yield from environments(repository, connection.protected(jobs))
        listed = github_variables(repository)
        values = listed or {}
        if listed is None:
            yield Finding("unknown", "GitHub's variables", "`gh auth login`")
        for name in connection.variables() if listed is not None else ():
            mend = f"gh variable set {name} --body VALUE; `digits azure connect` knows it"
            yield judged(name in values, f"variable {name}", mend)
    scopes = places(values)
    if scopes is None:
        mend = "`az login`, and `az account set --subscription` that of the workspace"
        yield Finding("unknown", "what the roles must be on: Azure not asked", mend)
    identities = {row["clientId"]: row for row in asked("az", "identity", "list") or ()}
    for name, environment in found.logins.items():
        variable = connection.variable(name)
        subject = trusted.get(environment, f"no job has the environment {environment}")
        client = values.get(variable)
        yield from credential(client, identities.get(client or ""), variable, subject)
        yield from roles(client, variable, name, scopes)
    if scopes:
        ids = {row["id"].lower(): client for client, row in identities.items()}
        for name in found.inside:
            place = connection.identity(scopes["workspace"], name)
            if place.lower() not in ids:
                yield Finding("wrong", f"{name}: no {place}", "digits azure connect --run")
            yield from roles(ids.get(place.lower()), f"digits-{name}", name, scopes)
        yield from clusters(scopes["workspace"])


def environments(repository: str, names: list[str]) -> Iterator[Finding]:
    """Look whether the environments that only main may use are limited to a branch."""
    answer = asked("gh", "api", f"repos/{repository}/environments")
    if answer is None:
        yield Finding("unknown", "GitHub's environments", "`gh auth login`")
        return
    limited = {row["name"]: row["deployment_branch_policy"] for row in answer["environments"]}
    for name in names:
        mend = "any branch may use it: `digits azure connect --github`, or Settings, Environments"
        yield judged(limited.get(name), f"environment {name}: for the default branch alone", mend)


def places(values: dict[str, str]) -> dict[str, str] | None:
    """Return the ids of what roles are given on, None when Azure does not tell them."""
    if not {"AZURE_STORAGE_ACCOUNT", *connection.SETTINGS} <= set(values):
        return None
    workspace = connection.workspace_id(values)
    query = "properties.{storage: storageAccount, registry: containerRegistry}"
    of = asked("az", "resource", "show", "--ids", workspace, "--query", query, "--output", "json")
    named = ("--name", values["AZURE_STORAGE_ACCOUNT"], "--query", "id", "--output", "tsv")
    account = told("az", "storage", "account", "show", *named)
    if not account or not of:
        return None
    return connection.scopes(account, workspace, of["storage"], of["registry"] or "")


def credential(
    client: str | None, managed: dict[str, str] | None, variable: str, subject: str
) -> Iterator[Finding]:
    """Compare whom an identity trusts with the subject that its jobs have.

    `managed` is it as a user-assigned identity; else it is an app registration.
    """
    kind = "az identity federated-credential" if managed else "az ad app federated-credential"
    place = ["--id", client or "CLIENT_ID"]
    mend = f'--parameters \'{{"name": "digits", "issuer": "{ISSUER}", "subject": "{subject}", '
    mend += '"audiences": ["api://AzureADTokenExchange"]}\''
    if managed:
        place = ["--identity-name", managed["name"], "--resource-group", managed["resourceGroup"]]
        mend = f"--name digits --issuer {ISSUER} --subject {subject}"
        mend += " --audiences api://AzureADTokenExchange"
    mend = f"{kind} create {' '.join(place)} {mend}"
    if client is None:
        yield Finding("unknown", f"{variable}: not known; subject {subject}", mend)
        return
    found = asked(*kind.split(), "list", *place)
    if found is None:
        yield Finding("unknown", f"{variable}: Azure not asked; subject {subject}", "`az login`")
        return
    known = {row["subject"] for row in found if row.get("issuer", ISSUER).rstrip("/") == ISSUER}
    said = f"{variable}: subject {subject}"
    if subject not in known:
        said += f" is not among {', '.join(sorted(known)) or 'none'}"
    yield judged(subject in known, said, mend)
    for other in sorted(known - {subject}):
        mend = f"{kind} delete {' '.join(place)}, the one with that subject"
        yield Finding("wrong", f"{variable}: lets in {other}, which no job of its needs", mend)


def roles(
    client: str | None, variable: str, name: str, scopes: dict[str, str] | None
) -> Iterator[Finding]:
    """Compare the roles that an identity has, and on what, with those of the template."""
    if client is None or scopes is None:
        return
    rows = asked("az", "role", "assignment", "list", "--assignee", client, "--all")
    if rows is None:
        yield Finding("unknown", f"{variable}: its roles", "`az login`")
        return
    needed = {
        (grant.role, scopes[grant.on].lower()): (grant.role, scopes[grant.on])
        for grant in connection.rights().grants
        if grant.to == name
    }
    has = {(row["roleDefinitionName"], row["scope"].lower()): row["scope"] for row in rows}
    for key in sorted(set(needed) - set(has)):
        role, scope = needed[key]
        mend = f'az role assignment create --assignee {client} --role "{role}" --scope {scope}'
        yield Finding("wrong", f"{variable}: lacks {role} on {scope}", mend)
    for key in sorted(set(has) - set(needed)):
        mend = f'az role assignment delete --assignee {client} --role "{key[0]}" --scope {has[key]}'
        yield Finding("wrong", f"{variable}: has {key[0]} on {has[key]} beyond its needs", mend)
    if set(has) == set(needed):
        yield Finding("ok", f"{variable}: has its {len(needed)} roles, each on the right thing")


def clusters(workspace: str) -> Iterator[Finding]:
    """Look for the clusters that jobs and batches are to run on; a batch's may be left out."""
    settings = release.load()[0]
    for name in sorted({settings.job.compute or "", settings.batch.compute} - {""}):
        place = f"{workspace}/computes/{name}"
        there = asked("az", "resource", "show", "--ids", place, "--output", "json")
        mend = "`digits azure connect --run` makes cpu-cluster where the quota holds a node; or "
        mend += "name another in params.yaml"
        if there or name == settings.job.compute:
            yield judged(there, f"cluster {name}", mend)
        else:
            said = f"cluster {name}: only `digits score --workspace azure` needs it"
            yield Finding("absent", said, mend)


def quota(kind: str) -> Iterator[Finding]:
    """Look at the cores that the workspace's region has free."""
    settings = release.load()[0]
    try:
        each, family, free = cores(connect(kind).client, settings.instance_type)
    except (DigitsError, AzureError) as error:
        mend = "" if isinstance(error, DigitsError) else "`az login`"  # which tells its own
        yield Finding("unknown", f"quota: {' '.join(str(error).split())[:200]}", mend)
        return
    needed = release.reserved(each, settings.instance_count)
    said = f"quota: {needed} cores of {family} needed for one more revision, {free} free"
    mend = "ask for more, or set azure.strategy to in_place"
    enough = free is None or free >= needed or settings.strategy == "in_place"
    yield judged(enough, said, mend)


def main(workspace: str = "azure", repository: str | None = None, as_json: bool = False) -> None:
    """Print what was found; raise DigitsError when something is wrong."""
    looks = (here(), github(repository or origin()), quota(workspace))
    show(itertools.chain.from_iterable(looks), as_json)
