"""Commit the dvc.lock and the small metrics that a run made, then start the checks.

The files come from the pull request's own code; no other path is taken, none is run. A push by
a job's token starts no workflow, so the checks of the new commit are started by name; the
started run may not commit again, so there is no loop.
"""

import base64
import re
import urllib.parse
from pathlib import Path

from core.errors import DigitsError
from mlops.bot import github

SMALL = r"data/(evaluation|model|monitoring|production)/[a-z_]+\.(json|csv)"
ALLOWED = re.compile(rf"dvc\.lock|{SMALL}")
FILE_BYTES, FILES = 1_000_000, 50
CHECKS = ("ci.yml", "pull-request.yml")  # the ruleset waits for their jobs
MUTATION = """
mutation ($input: CreateCommitOnBranchInput!) {
  createCommitOnBranch(input: $input) { commit { oid } }
}
"""


def main(arguments: list[str]) -> str:
    """Commit the files in a folder to BRANCH, whose head must still be HEAD; say what was done."""
    base, branch, head = map(github.setting, ("BASE", "BRANCH", "HEAD"))
    additions = files(Path(arguments[0]), ALLOWED)
    others = [] if github.setting("ANY_CHANGE") == "true" else authors_files(base, head)
    if others:
        return (
            f"Left to the author, whose change is more than params.yaml ({others[0]}): "
            "the report says how to take the files."
        )
    made = commit(branch, head, "dvc.lock and metrics as the pipeline makes them", additions)
    if github.setting("START_CHECKS") == "true":
        start_checks(branch)
    return f"{branch} is now at {made}."


def commit(branch: str, head: str, headline: str, additions: list[dict[str, str]]) -> str:
    """Commit to a branch whose head must still be `head`; return the new commit's id."""
    given = {
        "branch": {"repositoryNameWithOwner": github.repository(), "branchName": branch},
        "message": {"headline": headline},
        "expectedHeadOid": head,
        "fileChanges": {"additions": additions},
    }
    query = {"query": MUTATION, "variables": {"input": given}}
    answer = github.api("POST", "/graphql", query)
    if answer.get("errors"):
        reason = answer["errors"][0].get("message", "")
        raise DigitsError(f"no commit: {reason}; if the branch has moved on, its newer run does it")
    return str(answer["data"]["createCommitOnBranch"]["commit"]["oid"])


def start_checks(branch: str) -> None:
    """Start on a branch what the ruleset waits for."""
    for workflow in CHECKS:
        inputs = {"relock": "false"} if workflow == "pull-request.yml" else {}
        path = f"/actions/workflows/{workflow}/dispatches"
        github.api("POST", path, {"ref": branch, "inputs": inputs})


def files(folder: Path, allowed: re.Pattern[str]) -> list[dict[str, str]]:
    """Return the additions of a commit; raise DigitsError for any file that is not allowed."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if len(found) > FILES:
        raise DigitsError(f"{len(found)} files handed over; at most {FILES} are committed")
    additions = []
    for path in found:
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file() or not allowed.fullmatch(name):
            raise DigitsError(f"{name}: only dvc.lock and small metrics in data/ are committed")
        if path.stat().st_size > FILE_BYTES:
            raise DigitsError(f"{name}: more than {FILE_BYTES} bytes; give it to DVC instead")
        contents = base64.b64encode(path.read_bytes()).decode()
        additions.append({"path": name, "contents": contents})
    return additions


def authors_files(base: str, head: str) -> list[str]:
    """Return what the branch changes beside params.yaml and what is committed here."""
    span = f"{urllib.parse.quote(base, safe='')}...{head}"
    changed = github.api("GET", f"/compare/{span}")["files"]
    names = [row["filename"] for row in changed]
    names += [row["previous_filename"] for row in changed if "previous_filename" in row]
    others = [name for name in names if name != "params.yaml" and not ALLOWED.fullmatch(name)]
    return others or (["300 files or more"] if len(changed) >= 300 else [])


if __name__ == "__main__":
    github.script(main)
