"""Commit the dvc.lock and the small tables that a run made to the branch of its pull request.

The files come from the pull request's own code: no other path is taken, none is run. They are
committed for an author of this repository who pushed the commit himself and changes data alone;
all others take them themselves, as the comment describes. A commit of the bot is never committed
upon, so there is no loop. A run that a person started by hand has merged main, if it has moved on:
its commit has two parents.
"""

import re
import subprocess
import urllib.parse
from typing import Any

from core.errors import DigitsError
from mlops.bot import change, github
from mlops.bot.change import PLAIN_FILE
from mlops.review.schema import TABLES

MADE = re.compile(rf"dvc\.lock|{TABLES}")
MERGED = re.compile(rf"params\.yaml|{MADE.pattern}")
MERGED_COMMIT = "merged"  # the file of the artifact that names the commit of main
BYTES, FILES = 5_000_000, 50


def main(arguments: list[str]) -> str:
    """Commit the artifact `lock` of the run RUN (an id); return what was done.

    Gives the comment, by GITHUB_OUTPUT, `made`, the commit's id, or `left`, why there is none.
    """
    run = change.run_of(github.setting("RUN"))
    files = github.artifact(run["id"], "lock", BYTES)
    if not files:
        return "dvc.lock is up to date: nothing to commit."
    if left := refusal(run, change.pull_requests(run)):
        github.output(left=left)
        return f"Left to the author: {left}."
    head, place = run["head_sha"], f"/git/refs/heads/{urllib.parse.quote(run['head_branch'])}"
    try:
        if MERGED_COMMIT in files:
            made = merge(head, files)
        else:
            text = "dvc.lock and metrics as the pipeline makes them"
            made = commit([head], text, additions(files, MADE))
        # Refused when the branch has moved on: it is then no ancestor.
        github.api("PATCH", place, {"sha": made, "force": False}, token="COMMIT_TOKEN")
    except DigitsError as error:
        github.output(left=error)
        raise
    github.output(made=made)
    return f"{run['head_branch']} is now at {made}."


def refusal(run: dict[str, Any], pulls: list[dict[str, Any]]) -> str:
    """Return why nothing is committed to the branch of a run, empty when it is."""
    if not pulls:
        return f"no open pull request has the head {run['head_sha']}"
    if run["head_repository"]["full_name"] != github.repository():
        return "its branch is in a fork"
    if run["head_branch"] == github.setting("DEFAULT_BRANCH"):
        return "its branch is the default branch"
    actor = run["actor"] or {"type": "User", "login": ""}  # an account that has been deleted
    if actor["type"] == "Bot":
        return "the last commit is of a bot"
    author = (pulls[0]["user"] or {}).get("login")
    if run["event"] != "workflow_dispatch" and actor["login"] != author:
        return f"{actor['login']} pushed to the branch of {author}"
    code = change.code(pulls[0]["base"]["ref"], run["head_sha"])
    return f"it changes code ({code[0]})" if code else ""


def git(*arguments: str, codes: tuple[int, ...] = (0,)) -> bytes:
    """Return what git prints in this clone; raise DigitsError when it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True)
    if done.returncode not in codes:
        raise DigitsError(f"git {arguments[0]}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def merge(head: str, files: dict[str, bytes]) -> str:
    """Make a commit that merges main, with these files in place of those in conflict; return it.

    Raises DigitsError when other files are in conflict.
    """
    default = f"origin/{github.setting('DEFAULT_BRANCH')}"
    main = files.pop(MERGED_COMMIT).decode(errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{40}", main):
        raise DigitsError(f"the artifact names no commit of {default}: {main[:50]!r}")
    git("merge-base", "--is-ancestor", main, default)
    options = ("--write-tree", "--name-only", "--no-messages", "-z")
    listing = git("merge-tree", *options, main, head, codes=(0, 1)).decode(errors="replace")
    tree, *conflicts = filter(None, listing.split("\0"))
    if others := [name for name in conflicts if name not in files]:
        raise DigitsError(f"{others[0]} is in conflict with main")
    known = {row.split()[2] for row in git("ls-tree", "-r", "-z", main).split(b"\0") if row}
    rows = git("diff-tree", "-r", "-z", "--no-renames", head, tree).split(b"\0")
    entries = additions(files, MERGED)
    for row, name in zip(rows[::2], rows[1::2], strict=False):
        _, mode, _, blob, _ = row.split()
        entry: dict[str, Any] = {"path": name.decode(), "type": "blob", "mode": mode.decode()}
        if entry["path"] in files:
            continue
        if mode == b"000000":  # main has deleted it
            entry |= {"mode": PLAIN_FILE, "sha": None}
        elif blob in known:
            entry["sha"] = blob.decode()
        else:  # git has merged two texts
            entry["content"] = git("cat-file", "blob", blob.decode()).decode()
        entries.append(entry)
    return commit([head, main], f"Merge {default}, reproduced", entries)


def commit(parents: list[str], message: str, entries: list[dict[str, Any]]) -> str:
    """Make a commit that changes these entries of its first parent's tree; return its id.

    No branch has it yet. createCommitOnBranch cannot give a commit two parents.
    """
    base = github.api("GET", f"/git/trees/{parents[0]}")["sha"]
    values = {"base_tree": base, "tree": entries}
    tree = github.api("POST", "/git/trees", values, token="COMMIT_TOKEN")["sha"]
    values = {"message": message, "tree": tree, "parents": parents}
    return str(github.api("POST", "/git/commits", values, token="COMMIT_TOKEN")["sha"])


def additions(files: dict[str, bytes], allowed: re.Pattern[str]) -> list[dict[str, Any]]:
    """Return the entries of a tree; raise DigitsError for a file that is not allowed or no text."""
    if len(files) > FILES:
        raise DigitsError(f"{len(files)} files handed over; at most {FILES} are committed")
    for name in files:
        if not allowed.fullmatch(name):
            raise DigitsError(f"{name}: is not among the files that may be committed")
    try:
        return [
            {"path": name, "mode": PLAIN_FILE, "type": "blob", "content": content.decode()}
            for name, content in sorted(files.items())
        ]
    except UnicodeDecodeError as error:
        raise DigitsError(f"a file to be committed is no text: {error}") from None


if __name__ == "__main__":
    github.script(main)
