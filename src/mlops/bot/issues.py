"""Write the issues: of drift in production, with its retraining, and of the weekly run.

Each issue is found again by a hidden marker. An alarm has one retraining at most: whoever closes
its pull request has decided. Bad images have none, since the model would learn the fault.
"""

import datetime
import json
import os
import re
from pathlib import Path
from typing import Any

from core.errors import DigitsError
from mlops.bot import commit, github
from mlops.review import render, schema

DRIFT, WEEKLY = "<!-- digits-drift -->", "<!-- digits-weekly -->"
BRANCH = "retrain-"  # which the branches of retrainings start with
NEEDED: tuple[str, ...] = ("drift", "since", "window", "windows", "requests", "action")
NEEDED += ("recent_requests", "contributing_signals")
LABELLED = r"data/labelled/([a-z][a-z0-9]*_\w+\.csv\.dvc|\.gitignore)"
RETRAINED = re.compile(rf"params\.yaml|{commit.MADE.pattern}|{LABELLED}")
BYTES = 20_000_000
SETTING = (
    "if it is not permitted: Settings, Actions, General, 'Allow GitHub Actions to create and "
    "approve pull requests'; see .github/SETUP.md"
)
TODO = """\
What to do:

- Look at the digits in the report: `report.html` in the [artifacts]({link}#artifacts).
{remedy}

This issue is closed when the alarm ends."""
LABEL = """\
- Are they digits that the model never learnt? Label some, and merge the pull request that
  retrains it, if its report convinces you.
- Are the images bad (a scanner, a cropped image)? Fix that: a model that learns it hides it."""
FIX = """\
- The images are bad: fix what takes them (a scanner, a lamp, cropping). No retraining is
  proposed while they are among the requests: a model that learns them hides the fault.
- Are new digits still unusual? `digits monitor --since TIME` looks at those alone, and with
  `--labelled data/labelled` takes them for `digits retrain`."""


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
    github.api("PATCH", f"/issues/{issue['number']}", {"body": body})
    return issue, f"#{issue['number']}: updated."


def close(issue: dict[str, Any], remark: str) -> str:
    """Close an issue with a remark; return what was done."""
    github.api("POST", f"/issues/{issue['number']}/comments", {"body": remark})
    github.api("PATCH", f"/issues/{issue['number']}", {"state": "closed"})
    return f"#{issue['number']}: closed."


# The weekly run of a fresh clone with the newest versions


def weekly() -> str:
    """Open the issue, update it, or close it when the run succeeded."""
    result, link = github.setting("RESULT"), github.setting("LINK")
    issue = find(WEEKLY)
    if result == "success":
        remark = f"[This run]({link}) succeeded."
        return close(issue, remark) if issue else "The run succeeded; no issue is open."
    changes = os.environ.get("CHANGES", "").splitlines()
    body = f"{WEEKLY}\nThe [weekly run]({link}) ended with **{render.plain(result)}**.\n"
    if changes:
        body += f"\nNewer than the lock:\n\n{render.code(changes)}\n"
    return put(issue, "A fresh clone with the newest versions fails", body)[1]


# Drift


def drift() -> str:
    """Open, update or close the issue by the file MONITORING, as `digits monitor` writes it.

    Gives later jobs, by GITHUB_OUTPUT, the issue's number, and whether PROPOSE and what is seen
    call for a retraining.
    """
    found, link = read(Path(github.setting("MONITORING"))), github.setting("LINK")
    issue = find(DRIFT)
    if not found["drift"]:
        if issue is None:
            return "No drift; no issue is open."
        if found["requests"] < found["window"]:  # as after a deployment, by its smoke test
            return f"#{issue['number']}: left as it is, since no window of requests is full."
        remark = f"The alarm has ended; [this run]({link}) found no drift.\n\n{table(found)}"
        return close(issue, remark)
    issue, done = put(issue, "Production drifts", body(found, link))
    wanted = github.setting("PROPOSE") == "true" and found["action"] == "retrain"
    made = proposed(issue["created_at"]) if wanted else None
    with Path(github.setting("GITHUB_OUTPUT")).open("a", encoding="utf-8") as file:
        file.write(f"issue={issue['number']}\nretrain={str(wanted and not made).lower()}\n")
    return f"{done} Its retraining is #{made}; no other is proposed." if made else done


def read(path: Path) -> dict[str, Any]:
    """Return monitoring.json; raise DigitsError when it is not what `digits monitor` writes."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return found | {key: found[key] for key in NEEDED}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DigitsError(f"{path}: is no monitoring.json ({error!r}); see job look") from None


def table(found: dict[str, Any]) -> str:
    """Return the state of production as Markdown."""

    def share(key: str, otherwise: str) -> str:
        value = found.get(key)
        return f"{value:.1%}" if isinstance(value, int | float) else otherwise

    rows = {
        "at least since" if found.get("onset_censored") else "since": found["since"] or "–",
        "judged": f"{found['requests']:,} requests in {found['windows']:,} windows",
        "accuracy by the labels that have come": share("accuracy", "no labels yet"),
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
    parts = [DRIFT, text, table(found), todo, f"[The latest run]({link})"]
    return "\n\n".join(parts) + "\n"


def proposed(since: str) -> int | None:
    """Return the newest retraining's pull request, if one is open or was made since `since`.

    Times are GitHub's, whose order is that of their letters; the newest 100 are looked at.
    """
    pulls = github.api("GET", "/pulls?state=all&sort=created&direction=desc&per_page=100")
    for pull in pulls:
        own = (pull["head"]["repo"] or {}).get("full_name") == github.repository()
        late = pull["state"] == "open" or pull["created_at"] >= since
        if own and late and pull["head"]["ref"].startswith(BRANCH):
            return int(pull["number"])
    return None


# The retraining


def retrain() -> str:
    """Propose the artifact `retraining` of the run RUN to BASE at HEAD.

    Branch, commit and pull request are all there at the end, or none is.
    """
    base, head, issue = map(github.setting, ("BASE", "HEAD", "ISSUE"))
    files = github.artifact(int(github.setting("RUN")), "retraining", BYTES) or {}
    report = schema.parse(files.pop("report.json", b""))
    names = {name.removeprefix("files/"): content for name, content in files.items()}
    added = commit.additions(names, RETRAINED)
    branch = f"{BRANCH}{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    text = (
        f"Production drifts: #{issue}. This is an experiment with the digits of production whose "
        "labels have come; below is what it changes. Merging it deploys the new model; when the "
        f"requests are no longer unusual for it, the alarm ends.\n\n{render.write(report)}"
    )
    ref, title = f"refs/heads/{branch}", "Retrain: production drifts"
    try:
        github.api("POST", "/git/refs", {"ref": ref, "sha": head}, token="COMMIT_TOKEN")
    except DigitsError as error:
        raise DigitsError(f"{error}; if {branch} is there already, delete it first") from None
    try:
        commit.commit(branch, head, title, added)
        pull = {"title": title, "head": branch, "base": base, "body": text[:65_000]}
        number = github.api("POST", "/pulls", pull, token="COMMIT_TOKEN")["number"]
    except DigitsError as error:
        github.api("DELETE", f"/git/{ref}", token="COMMIT_TOKEN")
        raise DigitsError(f"no pull request is made: {error}; {SETTING}") from None
    return f"#{number}: opened from {branch}."


if __name__ == "__main__":
    github.script(main)
