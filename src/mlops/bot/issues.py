"""Write the issues about drift in production, with its retraining, and about the weekly run.

Each issue is found again by a hidden marker. An alarm leads to at most one retraining, and to none
if images are bad: the model would learn them.

A run proposes a branch. A person opens its pull request by a link in the issue, so that its
checks start at once; a GitHub App opens it by itself. The repository's setting "Allow GitHub
Actions to create and approve pull requests" stays off: with it, any writer
could let a workflow open their change, and approve it themselves.
"""

import datetime
import json
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

from core.errors import DigitsError
from mlops.bot import commit, github
from mlops.review import render, schema

DRIFT, WEEKLY = "<!-- digits-drift -->", "<!-- digits-weekly -->"
RETRAIN, NEWEST = "retrain-", "newest-"  # prefixes of the branches of proposals
LABELLED = r"data/labelled/([a-z][a-z0-9]*_\w+\.csv\.dvc|\.gitignore)"
RETRAINED = re.compile(rf"params\.yaml|{commit.MADE.pattern}|{LABELLED}")
LOCKS = r"requirements(-dev|-serve)?\.txt|\.github/actions/review/requirements\.txt"
LOCKS += r"|(\.dvc/vega/)?package-lock\.json"
RELOCKED = re.compile(rf"{LOCKS}|{commit.MADE.pattern}")
KINDS: dict[str, Any] = {"drift": bool, "contributing_signals": list, "since": object}
KINDS |= {"action": object, "requests": int, "window": int, "windows": int, "recent_requests": int}
BYTES = 20_000_000
READY = "A retraining is ready:"  # the beginning of a comment: a proposal exists
TODO = """\
- Look at the digits in the report: `report.html` in the [artifacts]({link}#artifacts).
{remedy}

This issue is closed when the alarm ends."""
LABEL = """\
- Are they digits that the model never learnt? Label some, and merge the retraining if it is good.
- Are the images bad (a scanner, a cropped image)? Fix the source: training would hide the fault."""
FIX = """\
- The images are bad: fix their source (a scanner, cropping). Nothing is retrained meanwhile.
- Are new digits still unusual? `digits monitor --since TIME` analyses only those, and with
  `--labelled data/labelled` writes them for `digits retrain`."""


def main(arguments: list[str]) -> str:
    """Write the issue that the first argument names; return what was done."""
    return {"drift": drift, "retrain": retrain, "weekly": weekly}[arguments[0]]()


def find(marker: str) -> dict[str, Any] | None:
    """Return the open issue of the bot with a marker."""
    for issue in github.everything(f"/issues?state=open&creator={github.BOT}"):
        if "pull_request" not in issue and (issue["body"] or "").startswith(marker):
            return issue
    return None


def put(issue: dict[str, Any] | None, title: str, body: str) -> tuple[dict[str, Any], str]:
    """Open an issue, or update it; return it and what was done."""
    if issue is None:
        issue = github.api("POST", "/issues", {"title": title, "body": body})
        return issue, f"#{issue['number']}: opened."
    github.api("PATCH", f"/issues/{issue['number']}", {"title": title, "body": body})
    return issue, f"#{issue['number']}: updated."


def close(issue: dict[str, Any], remark: str) -> str:
    """Close an issue with a remark; return what was done."""
    github.api("POST", f"/issues/{issue['number']}/comments", {"body": remark})
    github.api("PATCH", f"/issues/{issue['number']}", {"state": "closed"})
    return f"#{issue['number']}: closed."


# The weekly run of a fresh clone with the newest versions


def weekly() -> str:
    """Open the issue, update it, or close it when the run succeeded and nothing is newer.

    A run that succeeded with newer versions has uploaded the artifact `newest`: the locks, and
    the pipeline's results with them. It becomes a branch.
    """
    result, link = github.setting("RESULT"), github.setting("LINK")
    issue = find(WEEKLY)
    changes = os.environ.get("CHANGES", "").splitlines()
    if result == "success" and not changes:
        remark = f"[This run]({link}) succeeded."
        return close(issue, remark) if issue else "The run succeeded; no issue is open."
    title, proposal = "A fresh clone with the newest versions fails", ""
    if result == "success":
        title = "The newest versions are locked and tested"
        rows = github.api("GET", f"/git/matching-refs/heads/{NEWEST}")
        made = [row["ref"].removeprefix("refs/heads/") for row in rows]
        proposal = f"The branch `{made[0]}` exists already. Merge or delete it." if made else ""
        if not made:
            files = github.artifact(int(github.setting("RUN")), "newest", BYTES) or {}
            added = commit.additions(files, RELOCKED)
            proposal = propose(NEWEST, title, f"Locked and tested by {link}", added)
    body = f"{WEEKLY}\nThe [weekly run]({link}) ended with **{render.plain(result)}**. {proposal}\n"
    if changes:
        body += f"\nNewer than the lock:\n\n{render.code(changes)}\n"
    return put(issue, title, body)[1]


# Proposals


def propose(prefix: str, title: str, body: str, added: list[dict[str, Any]]) -> str:
    """Commit to a new branch of HEAD; return its pull request, or the link that opens it.

    The branch and, with an App, the pull request are either both created or neither.
    """
    base, branch = github.setting("BASE"), f"{prefix}{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    made = commit.commit([github.setting("HEAD")], title, added)
    ref = f"refs/heads/{branch}"
    try:
        github.api("POST", "/git/refs", {"ref": ref, "sha": made}, token="COMMIT_TOKEN")
    except DigitsError as error:
        raise DigitsError(f"{error}; if {branch} exists already, delete it first") from None
    if os.environ.get("APP"):
        pull = {"title": title, "head": branch, "base": base, "body": body}
        try:
            return f"#{github.api('POST', '/pulls', pull, token='COMMIT_TOKEN')['number']}"
        except DigitsError:
            github.api("DELETE", f"/git/{ref}", token="COMMIT_TOKEN")
            raise
    values = urllib.parse.urlencode({"quick_pull": 1, "title": title, "body": body})
    root = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{github.repository()}"
    return f"[Open the pull request]({root}/compare/{base}...{branch}?{values}) from `{branch}`."


# Drift


def drift() -> str:
    """Open, update or close the issue by the file MONITORING, as `digits monitor` writes it.

    Passes to later jobs, by GITHUB_OUTPUT, the issue's number, and whether PROPOSE and the findings
    call for a retraining.
    """
    found, link = findings(Path(github.setting("MONITORING"))), github.setting("LINK")
    issue = find(DRIFT)
    if not found["drift"]:
        if issue is None:
            return "No drift; no issue is open."
        if found["requests"] < found["window"]:  # for instance, only those of a smoke test
            return f"#{issue['number']}: not changed, since no window of requests is complete."
        remark = f"The alarm has ended; [this run]({link}) found no drift.\n\n{table(found)}"
        return close(issue, remark)
    issue, done = put(issue, "Production drifts", body(found, link))
    wanted = github.setting("PROPOSE") == "true" and found["action"] == "retrain"
    remarks = github.everything(f"/issues/{issue['number']}/comments?sort=created")
    own = [row["body"] for row in remarks if row["user"]["login"] == github.BOT]
    made = any(text.startswith(READY) for text in own)
    github.output(issue=issue["number"], retrain=str(wanted and not made).lower())
    return f"{done} Its retraining is proposed already." if made else done


def findings(path: Path) -> dict[str, Any]:
    """Return what `digits monitor` found; raise DigitsError if the file is invalid."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if wrong := [name for name, kind in KINDS.items() if not isinstance(found[name], kind)]:
            raise ValueError(f"{wrong[0]} is {found[wrong[0]]!r}")
        return found
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DigitsError(f"{path}: is invalid ({error!r:.200}). Run the workflow again") from None


def table(found: dict[str, Any]) -> str:
    """Return the state of production as Markdown."""

    def share(key: str, otherwise: str) -> str:
        value = found.get(key)
        return f"{value:.1%}" if isinstance(value, int | float) else otherwise

    rows = {
        "at least since" if found.get("onset_censored") else "since": found["since"] or "–",
        "analysed": f"{found['requests']:,} requests in {found['windows']:,} windows",
        "accuracy by the labels so far": share("accuracy", "no labels yet"),
        "accuracy estimated without labels": share("estimated_accuracy", "not known"),
        f"out of distribution, of the last {found['recent_requests']:,}": share(
            "ood_share", "not known"
        ),
        "contributing signals": ", ".join(map(str, found["contributing_signals"])) or "–",
    }
    return render.table(["", ""], [[key, render.plain(row)] for key, row in rows.items()])


def body(found: dict[str, Any], link: str) -> str:
    """Return the issue's text."""
    where = " ".join(str(found.get(key, "")) for key in ("endpoint", "model_version"))
    text = f"Requests differ from the data that the model was trained with: {render.plain(where)}."
    todo = TODO.format(link=link, remedy=FIX if found["action"] == "fix_input" else LABEL)
    return "\n\n".join([DRIFT, text, table(found), todo, f"[The latest run]({link})"]) + "\n"


def retrain() -> str:
    """Propose the artifact `retraining` of run RUN, for branch BASE at HEAD, in issue ISSUE."""
    issue = github.setting("ISSUE")
    files = github.artifact(int(github.setting("RUN")), "retraining", BYTES) or {}
    report = schema.parse(files.pop("report.json", b""))
    names = {name.removeprefix("files/"): content for name, content in files.items()}
    text = (
        f"Production drifts: #{issue}. This is an experiment with the digits of production that "
        "have labels. Merging it deploys the new model; when the requests are no longer "
        "unusual for it, the alarm ends."
    )
    made = propose(RETRAIN, "Retrain: production drifts", text, commit.additions(names, RETRAINED))
    remark = f"{READY} {made}\n\n{render.write(report)}"[:65_000]
    github.api("POST", f"/issues/{issue}/comments", {"body": remark})
    return made


if __name__ == "__main__":
    github.script(main)
