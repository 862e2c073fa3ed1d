"""The part of GitHub's API that the privileged jobs use.

They run `python -m mlops.bot.NAME` in main's src with the runner's own Python: standard
library only, nothing is installed. What a pull request made reaches them as data alone.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from core.errors import DigitsError

BOT = "github-actions[bot]"  # who comments and opens issues with a job's own token


def setting(name: str) -> str:
    """Return an environment variable that the workflow sets; raise DigitsError without it."""
    value = os.environ.get(name, "")
    if not value:
        raise DigitsError(f"{name} is not set: the workflow file says what this script is given")
    return value


def repository() -> str:
    """Return OWNER/NAME."""
    return setting("GITHUB_REPOSITORY")


def api(method: str, path: str, body: object = None) -> Any:
    """Call the API below /repos/OWNER/NAME, or GraphQL for the path /graphql; return its JSON.

    Raises DigitsError with status and answer when GitHub refuses.
    """
    root = setting("GITHUB_API_URL")
    url = root + path if path == "/graphql" else f"{root}/repos/{repository()}{path}"
    answer = _send(method, url, body).decode()
    return json.loads(answer) if answer else None


def everything(path: str) -> list[Any]:
    """Return all pages of a list; `path` has a query already."""
    rows: list[Any] = []
    for page in range(1, 101):
        part = api("GET", f"{path}&per_page=100&page={page}")
        rows += part
        if len(part) < 100:
            break
    return rows


def download(path: str, limit: int) -> bytes:
    """Return at most `limit` bytes of a file; raise DigitsError when it has more."""
    content = _send("GET", f"{setting('GITHUB_API_URL')}/repos/{repository()}{path}", None, limit)
    if len(content) > limit:
        raise DigitsError(f"{path}: more than {limit} bytes; not read")
    return content


def _send(method: str, url: str, body: object, limit: int = 50_000_000) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method=method)
    request.add_header("Accept", "application/vnd.github+json")
    request.add_header("X-GitHub-Api-Version", "2022-11-28")
    request.add_header("User-Agent", f"digits/{os.environ.get('GITHUB_JOB', '')}")
    if data:
        request.add_header("Content-Type", "application/json")
    # An artifact is a redirect to another host, which must not see the token.
    request.add_unredirected_header("Authorization", f"Bearer {setting('TOKEN')}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        with error:
            told = error.read(500).decode(errors="replace")
        raise DigitsError(f"GitHub refused {method} {url}: {error.code} {told}") from None
    except OSError as error:
        raise DigitsError(f"GitHub did not answer {method} {url}: {error}; run it again") from None


def script(work: Callable[[list[str]], str]) -> None:
    """Run a job's script: print what it says; for a DigitsError print it and exit with code 1."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        print(work(sys.argv[1:]))
    except DigitsError as error:
        print(f"::error::{' '.join(str(error).split())}")
        sys.exit(1)
