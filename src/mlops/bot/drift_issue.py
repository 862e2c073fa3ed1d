"""Tell in one issue that production drifts, and whether a retraining is to be proposed.

Enters: monitoring.json, as `digits monitor` writes it. The issue is found by a hidden marker. An
alarm has one retraining at most: whoever closes its pull request has decided. Spoilt images have
none: the model would learn what is broken.
"""

import json
from pathlib import Path
from typing import Any

from core.errors import DigitsError
from mlops.bot import github
from mlops.bot.comment import harmless

TITLE = "Production drifts"
MARKER = "<!-- digits-drift -->"
BRANCH = "retrain-"  # which the branches of retrainings start with
NEEDED: tuple[str, ...] = ("drift", "since", "window", "windows", "requests", "action")
NEEDED += ("recent_requests", "contributing_signals")
TODO = """\
What to do:

- Look at the digits in the report: `report.html` in the [artifacts]({link}#artifacts).
{remedy}

This issue is closed when the alarm ends."""
LABEL = """\
- Are they digits that the model never learnt? Label some, and merge the pull request that
  retrains it, if its report convinces you.
- Are they spoilt (a scanner, a cropped image)? Mend that: a model that learns it hides it."""
MEND = """\
- The images are spoilt: mend what takes them (a scanner, a lamp, cropping). No retraining is
  proposed while they are among what is looked at: a model that learns them hides what is broken.
- Do new digits still look strange? `digits monitor --since TIME` looks at those alone, and with
  `--labelled data/labelled` takes them for `digits retrain`."""


def main(arguments: list[str]) -> str:
    """Open, update or close the issue by a file monitoring.json; say what was done.

    Tells later jobs by GITHUB_OUTPUT the issue's number, and whether PROPOSE and what is seen
    call for a retraining.
    """
    found, link = read(Path(arguments[0])), github.setting("LINK")
    opened = [
        issue
        for issue in github.everything(f"/issues?state=open&creator={github.BOT}")
        if "pull_request" not in issue and (issue["body"] or "").startswith(MARKER)
    ]
    issue = opened[0] if opened else None
    if not found["drift"]:
        return end(issue, found, link)
    text = body(found, link)
    if issue:
        github.api("PATCH", f"/issues/{issue['number']}", {"body": text})
        told = f"#{issue['number']}: updated."
    else:
        issue = github.api("POST", "/issues", {"title": TITLE, "body": text})
        told = f"#{issue['number']}: opened."
    wanted = github.setting("PROPOSE") == "true" and found["action"] == "retrain"
    made = proposed(issue["created_at"]) if wanted else None
    with Path(github.setting("GITHUB_OUTPUT")).open("a", encoding="utf-8") as file:
        file.write(f"issue={issue['number']}\nretrain={str(wanted and not made).lower()}\n")
    if made:
        told += f" Its retraining is #{made}; no other is proposed."
    return told


def read(path: Path) -> dict[str, Any]:
    """Return monitoring.json; raise DigitsError when it is not what `digits monitor` writes."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return found | {key: found[key] for key in NEEDED}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DigitsError(f"{path}: is no monitoring.json ({error!r}); see job look") from None


def end(issue: dict[str, Any] | None, found: dict[str, Any], link: str) -> str:
    """Close the issue, if one is open and production was looked at; say what was done."""
    if issue is None:
        return "No drift; no issue is open."
    number = issue["number"]
    if found["requests"] < found["window"]:  # as after a deployment: its smoke test says little
        return f"#{number}: left as it is, since no window of requests is full."
    remark = f"The alarm has ended; [this run]({link}) found no drift.\n\n{harmless(table(found))}"
    github.api("POST", f"/issues/{number}/comments", {"body": remark})
    github.api("PATCH", f"/issues/{number}", {"state": "closed"})
    return f"#{number}: closed."


def table(found: dict[str, Any]) -> str:
    """Return what production is like, as Markdown."""

    def share(key: str, otherwise: str) -> str:
        value = found.get(key)
        return f"{value:.1%}" if isinstance(value, int | float) else otherwise

    rows = {
        "at least since" if found.get("onset_censored") else "since": found["since"] or "–",
        "judged": f"{found['requests']:,} requests in {found['windows']:,} windows",
        "right, by the labels that have come": share("accuracy", "no labels yet"),
        "right, as estimated without labels": share("estimated_accuracy", "not known"),
        f"out of distribution, of the last {found['recent_requests']:,}": share(
            "ood_share", "not known"
        ),
        "contributing signals": ", ".join(map(str, found["contributing_signals"])) or "–",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {row} |" for key, row in rows.items())])


def body(found: dict[str, Any], link: str) -> str:
    """Return the issue's text."""
    where = " ".join(str(found.get(key, "")) for key in ("endpoint", "model_version"))
    told = f"What production is asked is no longer what the model was trained for: {where}."
    todo = TODO.format(link=link, remedy=MEND if found["action"] == "fix_input" else LABEL)
    parts = [MARKER, harmless(f"{told}\n\n{table(found)}"), todo]
    return "\n\n".join(parts)[:60_000] + f"\n\n[The run that looked last]({link})\n"


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


if __name__ == "__main__":
    github.script(main)
