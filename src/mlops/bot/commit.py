"""Commit the dvc.lock and the small tables of a run to the branch of its pull request.

The files come from the pull request's own code: only these paths are accepted, and nothing is run.
They are committed only if the author belongs to this repository, pushed the commit and changes only
data; others commit them by hand, as the comment describes. Nothing is committed on top of the bot's
commit, so there is no loop. A run started by hand merges main if main has new commits; its
commit then has two parents.
"""

import re
import urllib.parse
from typing import Any

from core.errors import DigitsError
from mlops.bot import change, github
from mlops.bot.change import PLAIN_FILE
from mlops.review import schema

MADE = re.compile(schema.MADE)
MERGED = re.compile(rf"params\.yaml|{MADE.pattern}")
MERGED_COMMIT = "merged"  # the file of the artifact that names the commit of main
BYTES, FILES = 5_000_000, 50


def main(arguments: list[str]) -> str:
    """Commit the artifact `lock` of the run RUN (an id); return what was done.

    Passes to the comment, by GITHUB_OUTPUT, `made` (the commit's id) or `left` (why not).
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
        # Refused if the branch has new commits: it is not a fast-forward then.
        github.api("PATCH", place, {"sha": made, "force": False}, token="COMMIT_TOKEN")
    except DigitsError as error:
        github.output(left=error)
        raise
    github.output(made=made)
    return f"{run['head_branch']} is now at {made}."


def refusal(run: dict[str, Any], pulls: list[dict[str, Any]]) -> str:
    """Return why nothing may be committed to a run's branch; empty if files may be."""
    if not pulls:
        return f"no open pull request has the head {run['head_sha']}"
    if run["head_repository"]["full_name"] != github.repository():
        return "its branch is in a fork"
    if run["head_branch"] == github.setting("DEFAULT_BRANCH"):
        return "its branch is the default branch"
    actor = run["actor"] or {"type": "User", "login": ""}  # a deleted account
    if actor["type"] == "Bot":
        return "the last commit is by a bot"
    author = (pulls[0]["user"] or {}).get("login")
    if run["event"] != "workflow_dispatch" and actor["login"] != author:
        return f"{actor['login']} pushed to the branch of {author}"
    code = change.code(pulls[0]["base"]["ref"], run["head_sha"])
    return f"it changes code ({code[0]})" if code else ""


def merge(head: str, files: dict[str, bytes]) -> str:
    """Create a commit that merges main into a branch that only changes data; return its id.

    Its tree is main's, with the files that the branch has changed. The run's files replace those of
    both. Raises DigitsError when both changed a file that the run did not write.
    """
    main = files.pop(MERGED_COMMIT).decode(errors="replace").strip()
    default = github.setting("DEFAULT_BRANCH")
    if not re.fullmatch(r"[0-9a-f]{40}", main) or change.compare(main, default)["behind_by"]:
        raise DigitsError(f"the artifact names no commit of {default}: {main[:50]!r}")
    theirs = change.names(change.compare(head, main))
    if len(theirs) >= change.FILES:
        raise DigitsError(f"{default} has changed more files than GitHub lists")
    entries = additions(files, MERGED)
    for row in change.compare(main, head)["files"]:
        name = row["filename"]
        if name in files:
            continue
        if {name, row.get("previous_filename")} & set(theirs):
            raise DigitsError(f"{name} is changed here and on {default}")
        sha = None if row["status"] == "removed" else row["sha"]
        entries.append({"path": name, "mode": PLAIN_FILE, "type": "blob", "sha": sha})
        if row["status"] == "renamed":
            entries.append({**entries[-1], "path": row["previous_filename"], "sha": None})
    return commit([head, main], f"Merge {default}, reproduced", entries, main)


def commit(parents: list[str], message: str, entries: list[dict[str, Any]], tree: str = "") -> str:
    """Create a commit: the tree of commit `tree`, by default the first parent, with new entries.

    Returns its id; it is on no branch yet. createCommitOnBranch cannot give a commit two parents.
    """
    base = github.api("GET", f"/git/trees/{tree or parents[0]}")["sha"]
    values = {"base_tree": base, "tree": entries}
    made = github.api("POST", "/git/trees", values, token="COMMIT_TOKEN")["sha"]
    values = {"message": message, "tree": made, "parents": parents}
    return str(github.api("POST", "/git/commits", values, token="COMMIT_TOKEN")["sha"])


def additions(files: dict[str, bytes], allowed: re.Pattern[str]) -> list[dict[str, Any]]:
    """Return the entries of a tree; raise DigitsError for a file not allowed or not text."""
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
        raise DigitsError(f"a file to be committed is not text: {error}") from None


if __name__ == "__main__":
    github.script(main)
