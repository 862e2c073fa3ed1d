"""Run `az` and `gh`, the commands of Azure and GitHub; explain what failed."""

import json
import os
import re
import shlex
import shutil
import subprocess
from typing import Any

from core.errors import DigitsError
from mlops import git
from mlops.azure.errors import known_cause

QUERY_SECONDS = 60  # commands that create or delete have no limit
LOGIN = {"az": "az login", "gh": "gh auth login"}
NOT_FOUND = ("ResourceGroupNotFound", "StackNotFound", "ResourceNotFound", "Upgrade to GitHub")
FAILED = ("failed", "fix this and run it again: it continues where it stopped")


def execute(
    command: tuple[str, ...], seconds: int | None
) -> subprocess.CompletedProcess[str] | None:
    """Run a command, for at most `seconds`; return None when it is not installed."""
    program = shutil.which(command[0])
    if program is None:
        return None
    return subprocess.run(
        [program, *command[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | {"AZURE_CORE_OUTPUT": "json"},  # whatever `az configure` has set
        encoding="utf-8",
        errors="replace",  # on Windows az writes names in the code page of the locale
        timeout=seconds,
    )


def try_json(*command: str) -> Any:
    """Return a command's answer in JSON, None when it is missing, fails or does not answer."""
    try:
        done = execute(command, QUERY_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _parse(done.stdout) if done and done.returncode == 0 else None


def run(*command: str) -> Any:
    """Print and run a command; return its answer in JSON, None when it gives none.

    Raises DigitsError with cause and fix when it is missing or fails.
    """
    print(f"  {shlex.join(command)}", flush=True)
    return _execute_or_explain(command, None)


def get_or_none(*command: str) -> Any:
    """Return the answer in JSON of a command that looks something up, None when it is not found.

    Raises DigitsError, as `run`, for any other failure.
    """
    return _execute_or_explain(command, QUERY_SECONDS, NOT_FOUND)


def _execute_or_explain(
    command: tuple[str, ...], seconds: int | None, not_found: tuple[str, ...] = ()
) -> Any:
    shown = f"`{shlex.join(command[:4])} ...`"
    try:
        done = execute(command, seconds)
    except subprocess.TimeoutExpired:
        raise DigitsError(f"{shown}: no answer in {seconds} s. Run it again.") from None
    if done is None:
        program = command[0]
        raise DigitsError(f"{program}: not found. Install it, then: {LOGIN[program]}")
    if done.returncode:
        text = " ".join((done.stderr or done.stdout).split())
        if any(mark in text for mark in not_found):
            return None
        cause, fix = known_cause(text) or FAILED
        raise DigitsError(f"{shown}: {cause}. Fix: {fix} ({text[:600]})")
    return _parse(done.stdout)


def _parse(text: str) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def require_subscription(connected: str | None) -> None:
    """Raise DigitsError when `az` uses another subscription than the connected one."""
    subscription = (get_or_none("az", "account", "show") or {}).get("id")
    if connected and subscription != connected:
        raise DigitsError(
            f"az: expected the connected subscription {connected}, found {subscription}. Fix: "
            f"az account set --subscription {connected}"
        )


def origin() -> str | None:
    """Return OWNER/NAME of the clone's origin, None when that is not on GitHub."""
    url = git.line("remote", "get-url", "origin")
    slug = re.search(r"github\.com[:/]([^/]+/[^/]+?)(\.git)?/?$", url)
    return slug[1] if slug else None


def repository_facts(repository: str) -> dict[str, Any]:
    """Return what GitHub has on a repository, and whether its plan has `environments`.

    Private repositories of the plan Free have none, and GitHub does not list their rulesets
    ("Upgrade to GitHub Pro"): docs.github.com, "Managing environments", "About rulesets".
    """
    facts = get_or_none("gh", "api", f"repos/{repository}")
    rulesets = get_or_none("gh", "api", f"repos/{repository}/rulesets")
    return facts | {"environments": not facts["private"] or rulesets is not None}


def github_variables(repository: str) -> dict[str, str] | None:
    """Return the variables of a repository on GitHub, None without an answer."""
    rows = try_json("gh", "variable", "list", "--repo", repository, "--json", "name,value")
    return None if rows is None else {row["name"]: row["value"] for row in rows}


def subject_prefix(repository: str) -> str | None:
    """Return what the subjects of a repository's tokens begin with, None without an answer."""
    answer = try_json("gh", "api", f"repos/{repository}/actions/oidc/customization/sub")
    return answer.get("sub_claim_prefix") if isinstance(answer, dict) else None
