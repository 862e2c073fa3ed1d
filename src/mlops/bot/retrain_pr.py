"""Open the pull request of a retraining: a branch, one commit, the report as its text.

The files come from main's own code, in another job without rights here; no other path than an
experiment's is taken. What a job's token pushes starts no workflow, so the checks are started by
name, as for the commits of commit.py. Branch, commit and pull request are all there at the end, or
none is; where the checks did not start, the error says how a person starts them.
"""

import datetime
import re
from pathlib import Path

from core.errors import DigitsError
from mlops.bot import commit, github
from mlops.bot.comment import harmless
from mlops.bot.drift_issue import BRANCH

LABELLED = r"data/labelled/([a-z][a-z0-9]*_\w+\.csv\.dvc|\.gitignore)"
ALLOWED = re.compile(rf"params\.yaml|dvc\.lock|{commit.SMALL}|{LABELLED}")
TITLE = "Retrain: production drifts"
SETTING = (
    "if it is not permitted: Settings, Actions, General, 'Allow GitHub Actions to create and "
    "approve pull requests'; .github/SETUP.md tells more"
)


def main(arguments: list[str]) -> str:
    """Propose the files in a folder, with a report, to BASE at HEAD; say what was done."""
    base, head, issue = map(github.setting, ("BASE", "HEAD", "ISSUE"))
    additions = commit.files(Path(arguments[0]), ALLOWED)
    told = Path(arguments[1]).read_text("utf-8", errors="replace")
    branch = f"{BRANCH}{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    body = (
        f"Production drifts: #{issue}. This is an experiment with the digits of production whose "
        "labels have come; below is what it changes. Merging it deploys the new model; when "
        f"production is no longer strange to it, the alarm ends.\n\n{harmless(told)}"
    )
    ref = f"refs/heads/{branch}"
    try:
        github.api("POST", "/git/refs", {"ref": ref, "sha": head})
    except DigitsError as error:
        raise DigitsError(f"{error}; if {branch} is there already, delete it first") from None
    try:
        commit.commit(branch, head, TITLE, additions)
        pull = {"title": TITLE, "head": branch, "base": base, "body": body[:65_000]}
        number = github.api("POST", "/pulls", pull)["number"]
    except DigitsError as error:
        github.api("DELETE", f"/git/{ref}")
        raise DigitsError(f"no pull request is made: {error}; {SETTING}") from None
    if github.setting("START_CHECKS") == "true":
        try:
            commit.start_checks(branch)
        except DigitsError as error:
            mend = f"close #{number} and open it again, which starts them"
            raise DigitsError(f"#{number} has no checks: {error}; {mend}") from None
    return f"#{number}: opened from {branch}."


if __name__ == "__main__":
    github.script(main)
