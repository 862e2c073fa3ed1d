"""Facts about a pull request from GitHub itself: where its head is, and whether it changes code.

A pull request that changes only data is judged by main's code, so its verdict holds. One that
changes code may have changed its own judge: the comment states this, and main's own code reproduces
the results after the merge. Nothing here is read from the pull request's output.
"""

import re
import urllib.parse
from typing import Any

from core.errors import DigitsError
from mlops.bot import github
from mlops.review.schema import MADE

WORKFLOW = ".github/workflows/pull-request.yml"
FILES = 300  # maximum number of files in a comparison: docs.github.com/rest/commits/commits
# Data, in plain files; all else is code: dvc.yaml, .dvc/, scripts, names that begin with a dot, and
# names that Windows cannot have (learn.microsoft.com/windows/win32/fileio/naming-a-file).
NAME = r"(?!\.|(?i:con|prn|aux|nul|com\d|lpt\d)(?:[./]|$))[^/\\:*?\"<>|\x00-\x1f]+"
FOLDERS = rf"data/(?:{NAME}/)*"
FORMATS = "csv|dvc|gif|gz|idx|jpeg|jpg|json|npy|npz|parquet|pdf|png|tif|tiff|txt|ubyte|webp|zip"
DATA = re.compile(
    rf"params\.yaml|{MADE}|(?:[^/]+/)*[^/]+\.md|{FOLDERS}\.gitignore|"
    rf"{FOLDERS}{NAME}\.(?:{FORMATS})",
    re.S,
)
PLAIN_FILE = "100644"  # git's mode of a file, not of a program, link or submodule


def run_of(number: str) -> dict[str, Any]:
    """Return a run of pull-request.yml by its id; raise DigitsError for any other."""
    if not number.isdecimal():
        raise DigitsError(f"{number!r} is not a run's id: the number in its address")
    run = github.api("GET", f"/actions/runs/{number}")
    if run["path"].partition("@")[0] != WORKFLOW:
        raise DigitsError(f"run {run['id']} is of {run['path']}, not of {WORKFLOW}")
    return run


def pull_requests(run: dict[str, Any], made: str = "") -> list[dict[str, Any]]:
    """Return the open pull requests from the run's repository and branch whose head is its commit.

    The head may also be `made`, the commit that the bot created from the run's artifact.
    """
    source = run["head_repository"]
    if source is None:  # the fork has been deleted
        return []
    head = f"{source['owner']['login']}:{run['head_branch']}"
    query = urllib.parse.urlencode({"state": "open", "head": head})
    return [
        pull
        for pull in github.everything(f"/pulls?{query}")
        if pull["head"]["sha"] in (run["head_sha"], made)
        and (pull["head"]["repo"] or {}).get("full_name") == source["full_name"]
    ]


def compare(base: str, head: str) -> dict[str, Any]:
    """Return GitHub's comparison of a head with its merge base."""
    return github.api("GET", f"/compare/{urllib.parse.quote(base, safe='')}...{head}")


def names(comparison: dict[str, Any]) -> list[str]:
    """Return the paths of the files that a comparison lists, both paths of renamed ones."""
    rows = comparison["files"]
    return [row[key] for key in ("filename", "previous_filename") for row in rows if key in row]


def code(base: str, head: str) -> list[str]:
    """Return the files of a change that are code, empty when it only changes data."""
    paths = names(compare(base, head))
    if len(paths) >= FILES:
        return [f"{FILES} files or more"]
    found = [name for name in paths if not DATA.fullmatch(name)]
    tree = github.api("GET", f"/git/trees/{head}?recursive=1")
    if tree["truncated"]:
        return [*found, "more files than GitHub lists"]
    modes = {row["path"]: row["mode"] for row in tree["tree"]}
    return found + [
        f"{name} (not a plain file)"
        for name in paths
        if name not in found and modes.get(name, PLAIN_FILE) != PLAIN_FILE
    ]
