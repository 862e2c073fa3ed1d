"""Show the report of a run of pull-request.yml as one comment and one commit status.

report.json was written by the pull request's own code, maybe a fork's, so it is untrusted: it is
parsed strictly, and rendered here. The pull request is found by GitHub's record of the run: its
head is the commit of the run.
"""

import base64
import json
import math
import os
import re
from typing import Any

from core.errors import DigitsError
from mlops.bot import change, github
from mlops.review import render, schema
from mlops.review.schema import Report

REPORT_BYTES = 4_000_000
COMMENT_CHARACTERS = 65_000  # GitHub's limit is 65,536
STATUS_CHARACTERS = 140  # docs.github.com/rest/commits/statuses
MARKER = re.compile(r"<!-- digits-review run=(\d+) attempt=(\d+) -->")
TAKE = """\
dvc.lock or a table differs from what the pipeline computes{why}. Add its files to the branch:

```
gh run download {run} --repo {repository} --name lock
git add dvc.lock data
git commit --message 'New dvc.lock and metrics'
```"""
PRESS = """\
**The results of this run are committed** as {made}. Its checks wait: somebody with write access \
now presses "Approve workflows to run" below, or "Re-run all jobs" of the waiting run, or closes \
and reopens the pull request."""
NO_PRESS = "**The results of this run are committed** as {made}. Its checks run."
NO_MERGE = """\
Main was not merged{why}. In a clone, on this branch, after `git merge origin/main` (in a rebase \
use `--theirs` instead of `--ours`):

```
{commands}
```"""


def main(arguments: list[str]) -> str:
    """Show the run RUN (an id); return what was done."""
    run = change.run_of(github.setting("RUN"))
    if run["status"] != "completed":
        return status(run, "pending", "The metrics are being computed")
    if run["conclusion"] == "action_required":
        return "The run waits for approval: nothing to comment yet."
    pulls = change.pull_requests(run, os.environ.get("MADE", ""))
    if not pulls:
        return f"No open pull request has the head {run['head_sha']}: nothing to comment."
    try:
        report, problem = read(run), ""
    except DigitsError as error:
        report, problem = None, str(error)
    done = [show(pull["number"], run, comment(run, pull, report, problem)) for pull in pulls]
    return "\n".join([*done, status(run, *figure(run, report))])


def read(run: dict[str, Any]) -> Report:
    """Return the report that a run uploaded; raise DigitsError when it has none."""
    files = github.artifact(run["id"], "report", REPORT_BYTES)
    if not files or "report.json" not in files:
        raise DigitsError("the run ended before it wrote a report")
    return schema.parse(files["report.json"])


def figure(run: dict[str, Any], report: Report | None) -> tuple[str, str]:
    """Return state and text of the commit status: the first metric of the gate."""
    if report is None:
        return "error", f"No report: the run ended with {run['conclusion']}"
    state = "success" if report.gate.passed else "failure"
    for row in report.metrics:
        if row.bounds and row.difference is not None:
            words = ", not significant" if row.verdict == "noise" else ""
            difference = render.figure(row.difference, "+").replace("-", "−")
            figures = f"{render.figure(row.after)} ({difference}{words})"
            return state, f"{render.name_of(row)} {figures}"
    return state, render.VERDICTS[report.verdict]


def status(run: dict[str, Any], state: str, text: str) -> str:
    """Set the status `metrics` of the run's commit; return what was done."""
    values = {"state": state, "context": "metrics", "target_url": run["html_url"]}
    values["description"] = text[:STATUS_CHARACTERS]
    github.api("POST", f"/statuses/{run['head_sha']}", values)
    return f"{state}: {text}"


def stale(run: dict[str, Any]) -> str:
    """Return as Markdown what happened to a run's new lock and tables; empty without any."""
    made, why = os.environ.get("MADE", ""), render.plain(os.environ.get("LEFT", ""), 300)
    if made:
        text = NO_PRESS if os.environ.get("APP") else PRESS
        return text.format(made=made[:10])
    why = f" ({why})" if why else ""
    if run["event"] == "workflow_dispatch" and (why or run["conclusion"] != "success"):
        return NO_MERGE.format(why=why, commands=render.MERGE_BY_HAND)
    if github.api("GET", f"/actions/runs/{run['id']}/artifacts?name=lock")["artifacts"]:
        return TAKE.format(why=why, run=run["id"], repository=github.repository())
    return ""


def notices(run: dict[str, Any], pull: dict[str, Any], served: str) -> tuple[list[str], list[str]]:
    """Return notices as Markdown from GitHub's own data: which files are code, and the outcome."""
    code = change.code(pull["base"]["ref"], run["head_sha"])
    more = f" and {len(code) - 3} more" if len(code) > 3 else ""
    first = (
        f"⚠️ **This changes code**: {', '.join(map(render.plain, code[:3]))}{more}. The report was "
        "computed by that code. After the merge main's own code reproduces everything, before it "
        "deploys."
    )
    last = []
    if text := stale(run):
        last.append(text.replace("\n", "\n  "))
    base = pull["base"]["ref"]
    if served and (commits := change.compare(served, base)["ahead_by"]):
        last.append(
            f"Production is not at {base}: it serves {served[:10]}, {commits} commits back."
        )
    return [first] if code else [], last


def metrics(commit: str) -> dict[tuple[str, str], float]:
    """Return the metrics of a commit of main by source and name: finite numbers only."""
    try:
        row = github.api("GET", f"/contents/data/evaluation/metrics.json?ref={commit}")
        values = json.loads(base64.b64decode(row["content"]))
    except (DigitsError, ValueError):  # the commit does not exist, or its metrics are elsewhere
        return {}
    return {
        (source, name): float(value)
        for source, named in values.items()
        if isinstance(named, dict)
        for name, value in named.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def comment(run: dict[str, Any], pull: dict[str, Any], report: Report | None, problem: str) -> str:
    """Return the comment's body: the marker, the verdict, facts from GitHub itself, the report."""
    marker = f"<!-- digits-review run={run['run_number']} attempt={run['run_attempt']} -->"
    link = run["html_url"]
    facts = (
        f"[Run {run['run_number']}]({link}) of {run['head_sha'][:10]} ended with "
        f"**{run['conclusion']}**. [Artifacts]({link}#artifacts)."
    )
    served = github.api("GET", "/deployments?environment=production&per_page=1")
    served = served[0]["sha"] if served else ""
    said = notices(run, pull, served)
    lines = "\n".join(f"- {text}" for part in said for text in part)
    if report is None:
        return f"{marker}\n## No report: {render.plain(problem, 300)}\n\n{lines}\n\n{facts}\n"
    body = f"{marker}\n{render.write(report, said, facts, metrics(served) if served else None)}"
    if len(body) > COMMENT_CHARACTERS:
        body = body.partition("<details>")[0] + "The rest is too long for a comment.\n"
    return body


def show(number: int, run: dict[str, Any], body: str) -> str:
    """Write or update the one comment of a pull request, unless it belongs to a newer run."""
    for old in github.everything(f"/issues/{number}/comments?sort=created"):
        mark = MARKER.match(old["body"])
        if not mark or old["user"]["login"] != github.BOT:
            continue  # a person may write the marker, too
        if (int(mark[1]), int(mark[2])) > (run["run_number"], run["run_attempt"]):
            return f"#{number}: its comment belongs to the newer run {mark[1]}; not changed."
        github.api("PATCH", f"/issues/comments/{old['id']}", {"body": body})
        return f"#{number}: comment updated."
    github.api("POST", f"/issues/{number}/comments", {"body": body})
    return f"#{number}: comment written."


if __name__ == "__main__":
    github.script(main)
