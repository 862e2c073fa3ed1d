"""`az` and `gh`, Azure's and GitHub's own commands: asked, or run with what failed explained."""

import json
import re
import shlex
import shutil
import subprocess
from typing import Any

from core.errors import DigitsError

SECONDS = 60  # for a question; what makes or deletes something takes its time
LOGIN = {"az": "az login", "gh": "gh auth login"}
ABSENT = ("ResourceGroupNotFound", "DeploymentStackNotFound", "ResourceNotFound")
CAUSES = (  # what an error's text holds, the cause, the mend
    ("az login", "nobody is logged in, or no longer", "az login"),
    ("AADSTS", "nobody is logged in, or no longer", "az login"),
    ("gh auth login", "nobody is logged in", "gh auth login"),
    ("HTTP 40", "GitHub refuses it", "be an administrator of the repository"),
    ("misspelled or not recognized", "this `az` is too old", "az upgrade, to 2.61 or newer"),
    ("MissingSubscriptionRegistration", "never used here", "az provider register --namespace"),
    ("AuthorizationFailed", "you may not do that", "be Owner of the group, to give roles in it"),
    ("RoleAssignmentExists", "given by hand before", "az role assignment delete --ids"),
    (
        "RoleAssignmentUpdateNotPermitted",
        "an identity was made anew, and the roles of the old one are in the way",
        "az role assignment list --all shows them without a principalName; "
        "az role assignment delete --ids",
    ),
    ("ResourceGroupNotFound", "there is no such group", "give --location, to make it"),
    ("InvalidResourceGroupLocation", "the group is elsewhere", "leave --location out"),
    ("LocationNotAvailable", "that is not offered there", "another --location"),
    ("ConflictError", "a deleted key vault keeps its name", "az keyvault purge --name"),
    ("RequestDisallowedByPolicy", "your organisation forbids it", "ask who made that policy"),
    ("vCPU quota", "no quota for one node", "--without-cluster, or ask for quota and run it again"),
    ("QuotaExceeded", "a quota is used up", "ask for more, or another --location"),
    ("Max retries exceeded", "no answer came", "is the network there?"),
)


def run(command: tuple[str, ...], seconds: int | None) -> subprocess.CompletedProcess[str] | None:
    """Run a command, for at most so many seconds; return None when there is no such command."""
    program = shutil.which(command[0])
    if program is None:
        return None
    return subprocess.run(
        [program, *command[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # on Windows az writes names in the code page of the locale
        timeout=seconds,
    )


def told(*command: str) -> str | None:
    """Return what a command prints, None when it is missing, fails or does not answer."""
    try:
        done = run(command, SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done and done.returncode == 0 else None


def asked(*command: str) -> Any:
    """Return a command's answer in JSON, None when there is none."""
    return _read(told(*command) or "")


def must(*command: str) -> Any:
    """Run a command to its end; return its answer in JSON, None when it gives none.

    Raises DigitsError with cause and mend when it is missing or fails.
    """
    print(f"  {shlex.join(command)}", flush=True)
    return _explained(command, None)


def found(*command: str) -> Any:
    """Ask for something; return the answer in JSON, None when it says that there is no such thing.

    Raises DigitsError, as `must`, when it cannot tell.
    """
    return _explained(command, SECONDS, ABSENT)


def _explained(command: tuple[str, ...], seconds: int | None, nothing: tuple[str, ...] = ()) -> Any:
    try:
        done = run(command, seconds)
    except subprocess.TimeoutExpired:
        raise DigitsError(
            f"`{shlex.join(command[:4])} ...`: no answer came; run it again"
        ) from None
    if done is None:
        raise DigitsError(f"{command[0]}: not found; install it, then `{LOGIN[command[0]]}`")
    if done.returncode:
        text = " ".join((done.stderr or done.stdout).split())
        if any(mark in text for mark in nothing):
            return None
        cause, mend = "it failed", "mend that and run this again: it goes on where it stopped"
        for mark, *known in CAUSES:
            if mark in text:
                cause, mend = known
                break
        raise DigitsError(f"`{shlex.join(command[:4])} ...`: {cause}; {mend} ({text[:600]})")
    return _read(done.stdout)


def _read(text: str) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def origin() -> str | None:
    """Return OWNER/NAME of the clone's origin, None when that is not on GitHub."""
    url = told("git", "remote", "get-url", "origin") or ""
    slug = re.search(r"github\.com[:/]([^/]+/[^/]+?)(\.git)?/?$", url)
    return slug[1] if slug else None


def github_variables(repository: str) -> dict[str, str] | None:
    """Return the variables of a repository on GitHub, None when it is silent."""
    rows = asked("gh", "variable", "list", "--repo", repository, "--json", "name,value")
    return None if rows is None else {row["name"]: row["value"] for row in rows}


def subject_prefix(repository: str) -> str | None:
    """Return what the subjects of a repository's tokens begin with, None when GitHub is silent."""
    answer = asked("gh", "api", f"repos/{repository}/actions/oidc/customization/sub")
    return answer.get("sub_claim_prefix") if isinstance(answer, dict) else None
