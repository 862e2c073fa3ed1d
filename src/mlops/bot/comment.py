"""Show the report of a run of pull-request.yml as one comment on its pull request.

report.json was written by the pull request's own code, a fork's perhaps, so it is hostile: it is
parsed strictly, and rendered here. It does not say where it belongs: the pull request is the one
whose head is the commit that GitHub says the run was of.
"""

import re
from typing import Any

from core.errors import DigitsError
from mlops.bot import change, github
from mlops.review import render, schema

REPORT_BYTES = 4_000_000
COMMENT_CHARACTERS = 65_000  # GitHub takes 65,536
MARKER = re.compile(r"<!-- digits-review run=(\d+) attempt=(\d+) -->")
STALE = """\
dvc.lock or a table is not what the pipeline makes. Put what this run made into the branch:

```
gh run download {run} --repo {repository} --name lock
git add dvc.lock data
git commit --message 'New dvc.lock and metrics'
```"""
COMMITTED = """\
dvc.lock or a table is not what the pipeline makes: what this run made is committed to the branch. \
If the checks of that commit wait, press "Approve workflows to run"."""


def main(arguments: list[str]) -> str:
    """Comment the report of the run RUN (an id); return what was done."""
    run = change.run_of(github.setting("RUN"))
    if run["conclusion"] == "action_required":
        return "The run waits for approval: nothing to comment yet."
    pulls = change.pull_requests(run)
    if not pulls:
        return f"No open pull request has the head {run['head_sha']}: nothing to comment."
    return "\n".join(show(pull["number"], run, comment(run, pull)) for pull in pulls)


def facts(run: dict[str, Any], pull: dict[str, Any]) -> str:
    """Return as Markdown what GitHub itself says of a run and of what the author changed."""
    link = run["html_url"]
    parts = [
        f"[Run {run['run_number']}]({link}) of {run['head_sha'][:10]} ended with "
        f"**{run['conclusion']}**. Plots, confusion matrices and the sheet of mistakes: "
        f"[artifacts]({link}#artifacts)."
    ]
    code = change.code(pull["base"]["ref"], run["head_sha"])
    if code:
        more = f" and {len(code) - 3} more" if len(code) > 3 else ""
        parts.append(
            f"⚠️ **This changes code**: {', '.join(map(render.plain, code[:3]))}{more}. The report "
            "below was computed by that code. After the merge main's own code reproduces "
            "everything, before it deploys."
        )
    if github.api("GET", f"/actions/runs/{run['id']}/artifacts?name=lock")["artifacts"]:
        own = run["head_repository"]["full_name"] == github.repository()
        committed = own and not code and (run["actor"] or {}).get("type") != "Bot"
        text = STALE.format(run=run["id"], repository=github.repository())
        parts.append(COMMITTED if committed else text)
    return "\n\n".join(parts)


def comment(run: dict[str, Any], pull: dict[str, Any]) -> str:
    """Return the comment's body: the marker, the verdict, what GitHub itself says, the report."""
    marker = f"<!-- digits-review run={run['run_number']} attempt={run['run_attempt']} -->"
    trusted = facts(run, pull)
    try:
        files = github.artifact(run["id"], "report", REPORT_BYTES)
        if not files or "report.json" not in files:
            raise DigitsError("the run ended before it was written")
        text = render.write(schema.parse(files["report.json"]), trusted)
    except DigitsError as error:
        text = f"## No report: {render.plain(error, 300)}\n\n{trusted}\n"
    body = f"{marker}\n{text}"
    if len(body) > COMMENT_CHARACTERS:
        body = f"{marker}\n## The report is too long for a comment\n\n{trusted}\n"
    return body


def show(number: int, run: dict[str, Any], body: str) -> str:
    """Write or update the one comment of a pull request, unless it is of a newer run."""
    for old in github.everything(f"/issues/{number}/comments?sort=created"):
        mark = MARKER.match(old["body"])
        if not mark or old["user"]["login"] != github.BOT:
            continue  # a person may write anything, the marker too
        if (int(mark[1]), int(mark[2])) > (run["run_number"], run["run_attempt"]):
            return f"#{number}: its comment is of the newer run {mark[1]}; left as it is."
        github.api("PATCH", f"/issues/comments/{old['id']}", {"body": body})
        return f"#{number}: comment updated."
    github.api("POST", f"/issues/{number}/comments", {"body": body})
    return f"#{number}: comment written."


if __name__ == "__main__":
    github.script(main)
