"""What connects this repository with Azure: rights, logins, and what the repository keeps of it.

Who may do what stands in the ARM template, as whom jobs log in in the workflows. The repository
keeps the storage account in .dvc/config and the workspace where Azure's SDK looks for it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import configobj
import yaml

from core.errors import DigitsError
from core.files import write_text

TEMPLATE = Path(".github/azure.json")
WORKFLOWS = Path(".github/workflows")
DVC = Path(".dvc/config")
WORKSPACE = Path(".azureml/config.json")  # what MLClient.from_config reads
API = "2025-12-01"  # the version of Azure ML's own, as the template and the SDK have it
STACK = "digits"  # the deployment stack: Azure's own list of what a template made
REMOTES = ("main", "review")
# The variables by which workflows and commands know the workspace, and their names in that file.
NAME = "AZURE_ML_WORKSPACE"
SETTINGS = {
    "AZURE_SUBSCRIPTION_ID": "subscription_id",
    "AZURE_RESOURCE_GROUP": "resource_group",
    NAME: "workspace_name",
}


@dataclass(frozen=True)
class Grant:
    """A role, to an identity or a person, on a key of `scopes`."""

    to: str
    role: str
    on: str


@dataclass(frozen=True)
class Rights:
    """Who may do what."""

    logins: dict[str, str]  # identity: the GitHub environment whose jobs it serves
    grants: tuple[Grant, ...]

    @property
    def inside(self) -> list[str]:
        """The identities of what runs in the workspace."""
        others = {grant.to for grant in self.grants} - set(self.logins) - {"person"}
        return sorted(others)


@dataclass(frozen=True)
class Job:
    """A job that asks GitHub for a token, and how that token is named."""

    name: str  # WORKFLOW: JOB
    environment: str | None
    subject: str
    open: bool  # a pull request can start it


def rights() -> Rights:
    """Return what the template gives; raise DigitsError where it cannot be read."""
    try:
        values = json.loads(TEMPLATE.read_text("utf-8"))["variables"]
        grants = tuple(Grant(**row) for row in (*values["grants"], *values["personal"]))
        return Rights({row["identity"]: row["environment"] for row in values["logins"]}, grants)
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = f"run this from the repository; `git checkout {TEMPLATE}` brings it back"
        raise DigitsError(f"{TEMPLATE}: {error!r}; {mend}") from None


def variable(identity: str) -> str:
    """Return GitHub's variable with an identity's client id."""
    return f"AZURE_{identity.upper()}_CLIENT_ID"


def variables() -> list[str]:
    """Return the names of GitHub's variables, which are those of the template's outputs too."""
    clients = [variable(identity) for identity in rights().logins]
    return ["AZURE_STORAGE_ACCOUNT", "AZURE_TENANT_ID", *SETTINGS, *clients]


def jobs(prefix: str) -> Iterator[Job]:
    """Yield the jobs that ask for a token, with their subjects.

    With an environment the subject is that, whatever the event; without, it is the event
    `pull_request`, or the branch.
    """
    for path in sorted(WORKFLOWS.glob("*.yml")):
        workflow = yaml.safe_load(path.read_text("utf-8"))
        events = set(workflow[True])  # YAML's `on`
        for name, job in workflow["jobs"].items():
            if job["permissions"].get("id-token") != "write":
                continue
            label, opened = f"{path.name}: {name}", "pull_request" in events
            environment = job.get("environment")
            if environment:
                yield Job(label, environment, f"{prefix}:environment:{environment}", opened)
                continue
            if opened:
                yield Job(label, None, f"{prefix}:pull_request", True)
            if events - {"pull_request"}:
                yield Job(label, None, f"{prefix}:ref:refs/heads/main", False)


def protected(known: list[Job]) -> list[str]:
    """Return the environments that only main's jobs may use: no pull request's job needs them."""
    opened = {job.environment for job in known if job.open}
    return sorted({str(job.environment) for job in known if job.environment} - opened)


def scopes(account: str, workspace: str, storage: str, registry: str) -> dict[str, str]:
    """Return the resource id of all that roles are given on."""
    containers = {name: f"{account}/blobServices/default/containers/{name}" for name in REMOTES}
    return containers | {
        "storage": storage,
        "workspace": workspace,
        "registry": registry,
        "endpoint": identity(workspace, "endpoint"),
    }


def identity(workspace: str, name: str) -> str:
    """Return the resource id of one of the template's identities, beside its workspace."""
    group = workspace.partition("/providers/")[0]
    return f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/digits-{name}"


def workspace_id(values: dict[str, str]) -> str:
    """Return the workspace's resource id, from the variables in SETTINGS."""
    subscription, group, name = (values[key] for key in SETTINGS)
    provider = "Microsoft.MachineLearningServices/workspaces"
    return f"/subscriptions/{subscription}/resourceGroups/{group}/providers/{provider}/{name}"


def vault() -> str | None:
    """Return the id of the key vault that the template made for what the repository keeps.

    The template ends the names of both, storage account and vault, with the same letters. None
    when the repository keeps no such account, or no workspace.
    """
    settings, account = kept(), _remotes(_config())[0].get("account_name")
    ending = re.fullmatch("digits([a-z0-9]+)", str(account))
    if not settings or ending is None:
        return None
    group = workspace_id(settings).partition("/providers/")[0]
    return f"{group}/providers/Microsoft.KeyVault/vaults/digits-{ending[1]}"


def kept() -> dict[str, str]:
    """Return the variables in SETTINGS that the repository has; raise DigitsError for nonsense."""
    if not WORKSPACE.exists():
        return {}
    try:
        values = json.loads(WORKSPACE.read_text("utf-8"))
        return {name: str(values[key]) for name, key in SETTINGS.items()}
    except (ValueError, KeyError, TypeError) as error:
        fix = "`digits azure connect` writes it anew"
        raise DigitsError(f"{WORKSPACE}: {error!r}; {fix}") from None


def keep(values: dict[str, str] | None) -> list[Path]:
    """Write what the repository has of the connection, or with None nothing; return what changed.

    Needs AZURE_STORAGE_ACCOUNT and the variables in SETTINGS.
    """
    config = _config()
    for section in _remotes(config):
        if values:
            section["account_name"] = values["AZURE_STORAGE_ACCOUNT"]
        else:
            section.pop("account_name", None)
    wanted = {DVC: "\n".join([*config.write(), ""]), WORKSPACE: ""}
    if values:
        found = {key: values[name] for name, key in SETTINGS.items()}
        wanted[WORKSPACE] = json.dumps(found, indent=2) + "\n"
    changed = []
    for path, text in wanted.items():
        if text == (path.read_text("utf-8") if path.exists() else ""):
            continue
        changed.append(path)
        if text:
            write_text(path, text)
        else:
            path.unlink()
    return changed


def _config() -> configobj.ConfigObj:
    try:
        config = configobj.ConfigObj(DVC.read_text("utf-8").splitlines())
        _remotes(config)
    except (OSError, KeyError, configobj.ConfigObjError) as error:
        mend = f"git checkout {DVC}, in the repository's folder"
        raise DigitsError(f"{DVC}: {error}; {mend}") from None
    return config


def _remotes(config: configobj.ConfigObj) -> list[dict[str, str]]:
    return [config[f'remote "{remote}"'] for remote in REMOTES]
