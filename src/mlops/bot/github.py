"""The part of GitHub's API that the privileged jobs use.

They run `python -m mlops.bot.NAME` in main's src with the runner's own Python: standard library
only, nothing is installed. Output of a pull request is only read as data.
"""

import io
import json
import os
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import DigitsError

BOT = "github-actions[bot]"  # author of comments and issues made with a job's own token
ATTEMPTS = 4
WAIT_SECONDS = 2.0  # before the second attempt, twice as long before each further one
LONGEST_WAIT_SECONDS = 120.0
ARTIFACT_BYTES = 20_000_000


def setting(name: str) -> str:
    """Return an environment variable that the workflow sets; raise DigitsError without it."""
    value = os.environ.get(name, "")
    if not value:
        raise DigitsError(f"{name} is not set. Set it in this step of the workflow file")
    return value


def repository() -> str:
    """Return OWNER/NAME."""
    return setting("GITHUB_REPOSITORY")


def output(**values: object) -> None:
    """Pass values to later steps and jobs, one line each, by GITHUB_OUTPUT."""
    with Path(setting("GITHUB_OUTPUT")).open("a", encoding="utf-8") as file:
        file.writelines(f"{key}={' '.join(str(value).split())}\n" for key, value in values.items())


def api(method: str, path: str, body: object = None, token: str = "TOKEN") -> Any:
    """Call the API below /repos/OWNER/NAME; return its JSON.

    `token` names the environment variable that holds it. Raises DigitsError with status and answer
    when GitHub refuses.
    """
    answer = send(method, f"/repos/{repository()}{path}", body, token).decode()
    return json.loads(answer) if answer else None


def everything(path: str) -> list[Any]:
    """Return all pages of a list; `path` must have a query."""
    rows: list[Any] = []
    for page in range(1, 101):
        part = api("GET", f"{path}&per_page=100&page={page}")
        rows += part
        if len(part) < 100:
            break
    return rows


def artifact(run: int, name: str, limit: int) -> dict[str, bytes] | None:
    """Return the files of a run's artifact by name, None when there is none.

    Nothing is written to disk. Raises DigitsError for an archive that is invalid, or whose files
    have more than `limit` bytes together.
    """
    found = api("GET", f"/actions/runs/{run}/artifacts?name={name}")["artifacts"]
    if not found:
        return None
    newest = max(found, key=lambda artifact: artifact["id"])  # each attempt has its own
    content = send("GET", f"/repos/{repository()}/actions/artifacts/{newest['id']}/zip")
    files, left = {}, limit
    try:
        if len(content) > ARTIFACT_BYTES:
            raise ValueError(f"it has more than {ARTIFACT_BYTES} bytes")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as file:  # whatever size the archive claims
                        files[member.filename] = file.read(left + 1)
                    left -= len(files[member.filename])
                if left < 0:
                    raise ValueError(f"its files have more than {limit} bytes")
    except Exception as error:  # whatever a hostile archive makes zipfile raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DigitsError(f"the artifact {name} cannot be read: {reason}") from None
    return files


def send(method: str, path: str, body: object = None, token: str = "TOKEN") -> bytes:
    """Call the API; return the answer, cut if it is larger than an artifact may be."""
    url = setting("GITHUB_API_URL") + path
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method=method)
    request.add_header("Accept", "application/vnd.github+json")
    request.add_header("X-GitHub-Api-Version", "2022-11-28")
    request.add_header("User-Agent", f"digits/{os.environ.get('GITHUB_JOB', '')}")
    if data:
        request.add_header("Content-Type", "application/json")
    # An artifact is a redirect to another host, which must not see the token.
    request.add_unredirected_header("Authorization", f"Bearer {setting(token)}")
    for attempt in range(1, ATTEMPTS + 1):
        wait = WAIT_SECONDS * 2 ** (attempt - 1)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read(ARTIFACT_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(500).decode(errors="replace")
            # A rate limit error changed nothing; after a 5xx a POST may have succeeded.
            # docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api
            limited = error.headers.get("Retry-After"), error.headers.get("X-RateLimit-Remaining")
            again = error.code >= 500 and method != "POST"
            if error.code == 429 or (error.code == 403 and (limited[0] or limited[1] == "0")):
                again, wait = True, float(limited[0] or wait)
            reason = f"GitHub refused {method} {url}: {error.code} {text}"
        except OSError as error:
            again = method != "POST"
            reason = f"GitHub did not answer {method} {url}: {error}; run it again"
        if not again or attempt == ATTEMPTS or wait > LONGEST_WAIT_SECONDS:
            break
        time.sleep(wait)
    raise DigitsError(reason)


def script(work: Callable[[list[str]], str]) -> None:
    """Run a job's script: print what it returns; for a DigitsError print it, exit with code 1."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        print(work(sys.argv[1:]))
    except DigitsError as error:
        print(f"::error::{' '.join(str(error).split())}")
        sys.exit(1)
