"""Tell in one issue how the weekly run of a fresh clone with the newest versions ended."""

import os

from mlops.bot import github

TITLE = "A fresh clone with the newest versions fails"
MARKER = "<!-- digits-weekly -->"


def main(arguments: list[str]) -> str:
    """Open the issue, update it, or close it when all is well; say what was done."""
    result, link = github.setting("RESULT"), github.setting("LINK")
    changes = os.environ.get("CHANGES", "").replace("`", "")[:20_000]
    body = f"{MARKER}\nThe [weekly run]({link}) ended with **{result}**.\n"
    if changes:
        body += f"\nNewer than the lock:\n```diff\n{changes}\n```\n"
    opened = [
        issue["number"]
        for issue in github.everything(f"/issues?state=open&creator={github.BOT}")
        if "pull_request" not in issue and (issue["body"] or "").startswith(MARKER)
    ]
    if opened:
        state = {"state": "closed"} if result == "success" else {}
        github.api("PATCH", f"/issues/{opened[0]}", {"body": body} | state)
        return f"#{opened[0]}: {'closed' if state else 'updated'}."
    if result == "success":
        return "All is well; no issue is open."
    made = github.api("POST", "/issues", {"title": TITLE, "body": body})
    return f"#{made['number']}: opened."


if __name__ == "__main__":
    github.script(main)
