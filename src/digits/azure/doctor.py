"""`digits doctor`: what stands in the way of data, review and deployment, each with its mend.

It changes nothing. What only GitHub and Azure know is asked of their own commands, `gh` and `az`;
where one is missing or not logged in, the finding says so and nothing is guessed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from azure.core.exceptions import AzureError

from digits.azure import release
from digits.azure.workspace import SETTINGS, connect, cores
from digits.errors import DigitsError

WORKFLOWS = Path(".github/workflows")
SECONDS = 60  # for one command
OLDEST_NODE = 20
# DVC and the SDK take these before anybody's own login.
STRAY = ("STORAGE_CONNECTION_STRING", "STORAGE_KEY", "STORAGE_SAS_TOKEN", "CLIENT_SECRET")
# Each identity: the variable with its client id, the environment whose jobs it serves, its roles.
READ, WRITE = "Storage Blob Data Reader", "Storage Blob Data Contributor"
SCIENTIST = "AzureML Data Scientist"
IDENTITIES = (
    ("AZURE_READER_CLIENT_ID", "review-read", {READ}),
    ("AZURE_REVIEWER_CLIENT_ID", "review-write", {WRITE}),
    ("AZURE_MAIN_CLIENT_ID", "main-write", {WRITE, "Reader"}),
    ("AZURE_DEPLOYER_CLIENT_ID", "production", {READ, SCIENTIST}),
)
VARIABLES = ("AZURE_STORAGE_ACCOUNT", "AZURE_TENANT_ID", *SETTINGS)
ISSUER = "https://token.actions.githubusercontent.com"


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    state: Literal["ok", "wrong", "unknown"]
    what: str
    mend: str = ""


def judged(good: object, what: str, mend: str) -> Finding:
    """Return what was found, ok or wrong."""
    return Finding("ok" if good else "wrong", what, mend)


def told(*command: str) -> str | None:
    """Return what a command prints, None when it is missing, fails or does not answer."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, encoding="utf-8", timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def asked(*command: str) -> Any:
    """Return a command's answer in JSON, None when there is none."""
    try:
        return json.loads(told(*command) or "null")
    except ValueError:
        return None


def here() -> Iterator[Finding]:
    """Look at this machine and clone."""
    for tool in ("git", "npm"):
        found = shutil.which(tool)
        yield judged(found, f"{tool}: {found or 'not found'}", "install it")
    version = (told("node", "--version") or "v0").lstrip("v")
    new = int(version.partition(".")[0]) >= OLDEST_NODE
    yield judged(new, f"node: {version}", f"install {OLDEST_NODE} or newer")
    for name, mend in (("gh", "gh auth login"), ("az", "az login")):
        if shutil.which(name) is None:
            yield Finding("unknown", f"{name}: not found", f"install it, then `{mend}`")
    shallow = told("git", "rev-parse", "--is-shallow-repository")
    yield judged(shallow == "false", f"shallow clone: {shallow}", "git fetch --unshallow")
    settings = told(sys.executable, "-m", "dvc", "config", "--list") or ""
    for remote in ("main", "review"):
        keys = dict(re.findall(rf"^remote\.{remote}\.(\S+?)=(.*)$", settings, re.M))
        place = keys.get("account_name", "by string" if "connection_string" in keys else None)
        mend = f"dvc remote modify --local {remote} account_name MYACCOUNT, or `make storage`"
        said = f"remote {remote}: {keys.get('url', 'absent')}, account {place or 'missing'}"
        yield judged(place and "url" in keys, said, mend)
    stray = [f"AZURE_{name}" for name in STRAY if os.environ.get(f"AZURE_{name}")]
    said = f"stray variables: {', '.join(stray) or 'none'}"
    mend = f"unset {' '.join(stray)}: they go before `az login` and OIDC"
    yield judged(not stray, said, mend)


def subjects(prefix: str) -> dict[str, str]:
    """Return the subjects of the tokens that the workflows' jobs ask for, by environment.

    Each has an environment, and so that in its subject, whatever the event; without one it would
    be `PREFIX:pull_request` or a branch.
    """
    found = {}
    for path in sorted(WORKFLOWS.glob("*.yml")):
        workflow = yaml.safe_load(path.read_text("utf-8"))
        for job in workflow["jobs"].values():
            if job["permissions"].get("id-token") == "write":
                environment = job["environment"]
                found[environment] = f"{prefix}:environment:{environment}"
    return found


def github() -> Iterator[Finding]:
    """Look at the repository on GitHub, and at what Azure lets in from there."""
    url = told("git", "remote", "get-url", "origin") or ""
    slug = re.search(r"github\.com[:/]([^/]+/[^/]+?)(\.git)?/?$", url)
    if slug is None:
        yield Finding("unknown", f"origin: {url or 'none'}, not on GitHub", "git remote add origin")
        return
    answer = asked("gh", "api", f"repos/{slug[1]}/actions/oidc/customization/sub")
    prefix = answer.get("sub_claim_prefix") if isinstance(answer, dict) else None
    expected = subjects(prefix or f"repo:{slug[1]}")
    if prefix is None:
        owner, _, name = slug[1].partition("/")
        mend = "`gh auth login`, so that GitHub can be asked; made or renamed since July 2026 it "
        mend += f"has numeric ids in its subjects: repo:{owner}@OWNER_ID/{name}@REPOSITORY_ID"
        yield Finding("unknown", "whether the subjects carry numeric ids", mend)
    listed = asked("gh", "variable", "list", "--repo", slug[1], "--json", "name,value")
    values = {row["name"]: row["value"] for row in listed or ()}
    if listed is None:
        yield Finding("unknown", "GitHub's variables", "`gh auth login`")
    for name in VARIABLES if listed is not None else ():
        yield judged(name in values, f"variable {name}", f"gh variable set {name} --body VALUE")
    for variable, environment, roles in IDENTITIES:
        subject = expected.get(environment, f"no job has the environment {environment}")
        yield from identity(values.get(variable), variable, subject, roles)


def credentials(client: str) -> tuple[list[Any] | None, str]:
    """Return an identity's federated credentials, None when unknown, and what makes another.

    An app registration is known by its client id; a user-assigned identity is to be found first.
    """
    make, parameters = "az ad app federated-credential create", f"--id {client}"
    found = asked("az", "ad", "app", "federated-credential", "list", "--id", client)
    if found is None:
        ours = f"[?clientId=='{client}']"
        for row in asked("az", "identity", "list", "--query", ours, "--output", "json") or ():
            place = ["--identity-name", row["name"], "--resource-group", row["resourceGroup"]]
            found = asked("az", "identity", "federated-credential", "list", *place)
            make, parameters = "az identity federated-credential create", " ".join(place)
    return found, f"{make} {parameters}"


def identity(client: str | None, variable: str, subject: str, roles: set[str]) -> Iterator[Finding]:
    """Compare one identity's federated credentials and roles with what its jobs need."""
    make = "az ad app federated-credential create --id CLIENT_ID"
    found = None
    if client is not None:
        found, make = credentials(client)
    if "--identity-name" in make:
        mend = f"{make} --name digits --issuer {ISSUER} --subject {subject}"
        mend += " --audiences api://AzureADTokenExchange"
    else:
        mend = f'{make} --parameters \'{{"name": "digits", "issuer": "{ISSUER}", '
        mend += f'"subject": "{subject}", "audiences": ["api://AzureADTokenExchange"]}}\''
    if client is None:
        yield Finding("unknown", f"{variable}: not known; subject {subject}", mend)
        return
    if found is None:
        yield Finding("unknown", f"{variable}: Azure not asked; subject {subject}", "`az login`")
        return
    known = {row["subject"] for row in found if row.get("issuer", ISSUER).rstrip("/") == ISSUER}
    said = f"{variable}: subject {subject}"
    if subject not in known:
        said += f" is not among {', '.join(sorted(known)) or 'none'}"
    yield judged(subject in known, said, mend)
    rows = asked("az", "role", "assignment", "list", "--assignee", client, "--all")
    has = {row["roleDefinitionName"] for row in rows or ()}
    said = f"{variable}: lacks {', '.join(sorted(roles - has))}" if roles - has else ""
    mend = f"az role assignment create --assignee {client} --role ROLE --scope RESOURCE"
    yield judged(not said, said or f"{variable}: has its roles", mend)


def quota(kind: str) -> Iterator[Finding]:
    """Look at the cores that the workspace's region has free."""
    settings = release.load()[0]
    try:
        each, family, free = cores(connect(kind).client, settings.instance_type)
    except (DigitsError, AzureError) as error:
        yield Finding("unknown", f"quota: {' '.join(str(error).split())[:200]}", "`az login`")
        return
    needed = release.reserved(each, settings)
    said = f"quota: {needed:g} cores of {family} needed for one more revision, {free} free"
    mend = "ask for more, or set azure.strategy to in_place"
    yield judged(free is None or free >= needed, said, mend)


def main(arguments: list[str]) -> None:
    """Print what was found; raise DigitsError when something is wrong."""
    parser = argparse.ArgumentParser(prog="digits doctor", description=__doc__)
    parser.add_argument("--workspace", choices=("azure", "local"), default="azure")
    kind = parser.parse_args(arguments).workspace
    wrong = 0
    for look in (here(), github(), quota(kind)):
        for finding in look:
            mend = "" if finding.state == "ok" else f"\n         {finding.mend}"
            print(f"{finding.state:8} {finding.what}{mend}", flush=True)
            wrong += finding.state == "wrong"
    if wrong:
        raise DigitsError(f"{wrong} findings are wrong; what mends each stands below it")
