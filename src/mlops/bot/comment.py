"""Show the report of a run of pull-request.yml as one comment on its pull request.

The report was written by the pull request's own code, a fork's perhaps, so it is hostile: it is
never written to disk, it is cut, and only plain Markdown of it is left. It does not say where it
belongs: the pull request is the one whose head is the commit that GitHub says the run was of.
"""

import io
import re
import urllib.parse
import zipfile
from typing import Any

from core.errors import DigitsError
from mlops.bot import github

WORKFLOW = ".github/workflows/pull-request.yml"
ARTIFACT_BYTES = 1_000_000
TEXT_CHARACTERS = 55_000  # GitHub takes 65,536, and what is made harmless grows
MARKER = re.compile(r"<!-- digits-review run=(\d+) attempt=(\d+) -->")
TAGS = ("<details>", "</details>", "<summary>", "</summary>", "<br>")
VERDICT = re.compile(r"## [^<`]*")  # a heading, which ends with its line
# A chart passes whole when each of its lines is one of these, in characters that can do no harm.
CHART = re.compile(
    r"^```mermaid\n((?:(?:xychart-beta|xychart|[ ]*(?:title|x-axis|y-axis|line|bar)\b"
    r"[\w \",.%>\[\]+-]*)\n)+)```$",
    re.M,
)


def main(arguments: list[str]) -> str:
    """Comment the report of the run RUN (an id); return what was done."""
    number = github.setting("RUN")
    if not number.isdecimal():
        raise DigitsError(f"{number!r} is no id of a run; it is the number in the run's address")
    run = github.api("GET", f"/actions/runs/{number}")
    if run["path"].partition("@")[0] != WORKFLOW:
        raise DigitsError(f"run {run['id']} is of {run['path']}, not of {WORKFLOW}")
    pulls = pull_requests(run)
    if not pulls:
        return f"No open pull request has the head {run['head_sha']}: nothing to comment."
    body = comment(run, report(run["id"]))
    return "\n".join(show(number, run, body) for number in pulls)


def pull_requests(run: dict[str, Any]) -> list[int]:
    """Return the open pull requests whose head is the run's commit, branch and repository."""
    source = run["head_repository"]
    if source is None:  # a fork that is no more
        return []
    head = f"{source['owner']['login']}:{run['head_branch']}"
    query = urllib.parse.urlencode({"state": "open", "head": head})
    return [
        pull["number"]
        for pull in github.everything(f"/pulls?{query}")
        if pull["head"]["sha"] == run["head_sha"]
        and (pull["head"]["repo"] or {}).get("full_name") == source["full_name"]
    ]


def report(run: int) -> str:
    """Return the text of a run's report, cut, or why there is none."""
    found = github.api("GET", f"/actions/runs/{run}/artifacts?name=report")["artifacts"]
    if not found:
        return "No report: the run ended before it was written."
    newest = max(found, key=lambda artifact: artifact["id"])  # an attempt each
    if newest["size_in_bytes"] > ARTIFACT_BYTES:
        return "The report is too large to be shown."
    content = github.download(f"/actions/artifacts/{newest['id']}/zip", ARTIFACT_BYTES)
    return text_of(content)


def text_of(archive: bytes) -> str:
    """Return report.md of a zip, at most TEXT_CHARACTERS of it; other members are not opened."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members, members.open("report.md") as file:
            text = file.read(4 * TEXT_CHARACTERS).decode(errors="replace")
    except Exception as error:  # whatever a hostile archive makes zipfile do
        return f"The report cannot be read: {type(error).__name__}."
    if len(text) > TEXT_CHARACTERS:
        text = text[:TEXT_CHARACTERS] + "\n\n(cut; the artifact has all of it)"
    return text


def harmless(text: str) -> str:
    """Return Markdown without links, images, HTML, mentions and references; charts are kept."""
    text = text.replace("\r\n", "\n")
    text = "".join(sign for sign in text if sign.isprintable() or sign in "\n\u200d")
    parts = CHART.split(text)  # text, chart, text, chart, ...
    for number in range(0, len(parts), 2):
        parts[number] = _plain(parts[number])
    for number in range(1, len(parts), 2):
        parts[number] = f"```mermaid\n{parts[number]}```"
    return "".join(parts)


def _plain(text: str) -> str:
    text = re.sub(r"(@|:(?=//)|#(?=\d)|GH-(?=\d)|www(?=\.))", "\\1\u200b", text, flags=re.I)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    for tag in TAGS:
        text = text.replace(tag.replace("<", "&lt;"), tag)
    text = text.replace("[", "&#91;")  # no link, no image; a backslash before it changes nothing
    return text.replace("```mermaid", "```text")


def comment(run: dict[str, Any], text: str) -> str:
    """Return the comment's body: the marker, the verdict, what GitHub itself says, the report.

    GitHub's own word stands where no open block of code or <details> of the report can hide it.
    """
    marker = f"<!-- digits-review run={run['run_number']} attempt={run['run_attempt']} -->"
    link = run["html_url"]
    trusted = (
        f"[Run {run['run_number']}]({link}) of {run['head_sha'][:10]} ended with "
        f"**{run['conclusion']}**. Plots, confusion matrices and the sheet of mistakes: "
        f"[artifacts]({link}#artifacts)."
    )
    verdict, _, rest = harmless(text).strip().partition("\n")
    if not VERDICT.fullmatch(verdict):
        verdict, rest = "", f"{verdict}\n{rest}"
    body = f"{marker}\n{verdict}\n\n{trusted}\n\n{rest.strip()}\n"
    return body if len(body) < 65_000 else f"{marker}\nThe report is too long.\n\n{trusted}\n"


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
