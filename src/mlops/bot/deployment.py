"""Record on GitHub which commit production serves, and read it: no right in Azure is needed.

A deployment of GitHub's own for the environment `production` whose ref is that commit. Jobs that
name the environment say `deployment: false`, or each would leave one of the commit that it ran at.
"""

import base64
import json
import math
import urllib.parse

from mlops.bot import github

METRICS = "data/evaluation/metrics.json"
Metrics = dict[tuple[str, str], float]  # by source and metric


def main(arguments: list[str]) -> str:
    """Record the commit COMMIT as what production serves; return what was done."""
    commit = github.setting("COMMIT")
    values = {
        "ref": commit,
        "environment": "production",
        "auto_merge": False,  # which would merge main into an older commit
        "required_contexts": [],
        "description": "Served by the endpoint",
    }
    made = github.api("POST", "/deployments", values)
    status = {"state": "success", "log_url": github.setting("LINK")}
    github.api("POST", f"/deployments/{made['id']}/statuses", status)
    return f"Production serves {commit}."


def served() -> str:
    """Return the commit that production serves, empty when nothing is deployed."""
    found = github.api("GET", "/deployments?environment=production&per_page=1")
    return str(found[0]["sha"]) if found else ""


def behind(commit: str, branch: str) -> int:
    """Return how many commits of a branch production does not serve yet."""
    span = f"{commit}...{urllib.parse.quote(branch, safe='')}"
    return int(github.api("GET", f"/compare/{span}")["ahead_by"])


def metrics(commit: str) -> Metrics:
    """Return the metrics of a commit of main: finite numbers alone."""
    row = github.api("GET", f"/contents/{METRICS}?ref={commit}")
    values = json.loads(base64.b64decode(row["content"]))
    return {
        (source, name): float(value)
        for source, named in values.items()
        for name, value in named.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


if __name__ == "__main__":
    github.script(main)
