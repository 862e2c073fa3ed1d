"""See whether a pull request's ref has caches of its own, which no job may restore.

GitHub searches the caches of a run's own ref first, then those of the base. An earlier commit of
the pull request may have filled its own, and a cache is unpacked over the checkout, .venv included.
"""

import urllib.parse

from core.errors import DigitsError
from mlops.bot import github


def main(arguments: list[str]) -> str:
    """Write `own=true` or `own=false` to GITHUB_OUTPUT for the ref REF; return what was found.

    Where GitHub does not answer, nothing is restored either.
    """
    query = urllib.parse.urlencode({"ref": github.setting("REF"), "per_page": 1})
    try:
        count = github.api("GET", f"/actions/caches?{query}")["total_count"]
        found = f"{count} caches of this ref"
    except (DigitsError, KeyError) as error:
        count, found = 1, " ".join(str(error).split())
    github.output(own=str(bool(count)).lower())
    return f"::notice::No cache is restored: {found}" if count else found


if __name__ == "__main__":
    github.script(main)
