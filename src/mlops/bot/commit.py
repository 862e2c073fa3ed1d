"""Commit the dvc.lock and the small tables that a run made to the branch of its pull request.

The files come from the pull request's own code: no other path is taken, none is run. They are
committed for an author of this repository who changes data alone; all others take them themselves,
as the comment describes. A commit of the bot is never committed upon, so there is no loop.
"""

import base64
import re
from typing import Any

from core.errors import DigitsError
from mlops.bot import change, github
from mlops.review.schema import TABLES

MADE = re.compile(rf"dvc\.lock|{TABLES}")
BYTES, FILES = 5_000_000, 50
MUTATION = """
mutation ($input: CreateCommitOnBranchInput!) {
  createCommitOnBranch(input: $input) { commit { oid } }
}
"""


def main(arguments: list[str]) -> str:
    """Commit the artifact `lock` of the run RUN (an id); return what was done."""
    run = change.run_of(github.setting("RUN"))
    files = github.artifact(run["id"], "lock", BYTES)
    if not files:
        return "dvc.lock is up to date: nothing to commit."
    pulls = change.pull_requests(run)
    if left := refusal(run, pulls):
        return f"Left to the author: {left}."
    made = commit(
        run["head_branch"],
        run["head_sha"],
        "dvc.lock and metrics as the pipeline makes them",
        additions(files, MADE),
    )
    return f"{run['head_branch']} is now at {made}."


def refusal(run: dict[str, Any], pulls: list[dict[str, Any]]) -> str:
    """Return why nothing is committed to the branch of a run, empty when it is."""
    if not pulls:
        return f"no open pull request has the head {run['head_sha']}"
    if run["head_repository"]["full_name"] != github.repository():
        return "its branch is in a fork"
    if run["head_branch"] == github.setting("DEFAULT_BRANCH"):
        return "its branch is the default branch"
    if (run["actor"] or {}).get("type") == "Bot":
        return "the last commit is of a bot"
    code = change.code(pulls[0]["base"]["ref"], run["head_sha"])
    return f"it changes code ({code[0]})" if code else ""


def commit(branch: str, head: str, headline: str, added: list[dict[str, str]]) -> str:
    """Commit to a branch whose head must still be `head`; return the new commit's id."""
    given = {
        "branch": {"repositoryNameWithOwner": github.repository(), "branchName": branch},
        "message": {"headline": headline},
        "expectedHeadOid": head,
        "fileChanges": {"additions": added},
    }
    query = {"query": MUTATION, "variables": {"input": given}}
    answer = github.api("POST", "/graphql", query, token="COMMIT_TOKEN")
    if answer.get("errors"):
        reason = answer["errors"][0].get("message", "")
        raise DigitsError(f"no commit: {reason}; if the branch has moved on, its newer run does it")
    return str(answer["data"]["createCommitOnBranch"]["commit"]["oid"])


def additions(files: dict[str, bytes], allowed: re.Pattern[str]) -> list[dict[str, str]]:
    """Return the additions of a commit; raise DigitsError for any file that is not allowed."""
    if len(files) > FILES:
        raise DigitsError(f"{len(files)} files handed over; at most {FILES} are committed")
    for name in files:
        if not allowed.fullmatch(name):
            raise DigitsError(f"{name}: is not among the files that may be committed")
    return [
        {"path": name, "contents": base64.b64encode(content).decode()}
        for name, content in sorted(files.items())
    ]


if __name__ == "__main__":
    github.script(main)
