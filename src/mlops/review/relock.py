"""`digits relock`: a dvc.lock that git could not merge, rebuilt without training what is known.

An entry of dvc.lock only says that these inputs gave those outputs, and DVC compares the inputs
with what is there. So entries of both sides may stand side by side: for each stage the one that
its side changed, and where both did the one of the branch that is checked out. `dvc repro` keeps
what is true, restores what either side computed from the run cache, and runs the rest.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from core.errors import DigitsError
from core.files import write_text
from mlops import dvc, git
from mlops.review.schema import TABLES
from mlops.review.snapshot import MARKERS, mapping, stages

LOCK = "dvc.lock"
# What stages write and git keeps: made anew, so either side of a conflict will do.
MADE = re.compile(TABLES)
CONFLICT = re.compile(
    r"^<{7} [^\n]*\n(.*?)(?:^\|{7}[^\n]*\n(.*?))?^={7}\n(.*?)^>{7} [^\n]*\n", re.M | re.S
)
OURS, ANCESTOR, THEIRS = 1, 2, 3  # groups of CONFLICT


def merged(ancestor: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> Any:
    """Return the stages of both sides: theirs where they alone changed one, else ours."""
    found = {}
    for name in {**ours, **theirs}:
        rows = [side.get(name) for side in (ancestor, ours, theirs)]
        row = rows[2] if rows[1] == rows[0] or rows[1] is None else rows[1]
        if row is not None:
            found[name] = row
    return found


def sides(text: str) -> list[dict[str, Any]]:
    """Return the stages of ancestor, ours and theirs, from git's index or else from the markers.

    Raises DigitsError when a side is no dvc.lock.
    """
    index = [git.git("show", f":{number}:{LOCK}") for number in (1, 2, 3)]
    if index[1] is not None and index[2] is not None:
        texts = [(content or b"").decode(errors="replace") for content in index]
    else:
        texts = [CONFLICT.sub(rf"\g<{side}>", text) for side in (ANCESTOR, OURS, THEIRS)]
        if not any(found[ANCESTOR] for found in CONFLICT.finditer(text)):
            texts[0] = ""  # markers of git's usual style do not have it
    try:
        return [stages(mapping(side)) if side else {} for side in texts]
    except Exception as error:  # whatever a damaged file makes the parser raise
        reason = " ".join(str(error).split())
        raise DigitsError(
            f"{LOCK}: a side of the conflict cannot be read ({reason}); take one whole with "
            "`git checkout --ours dvc.lock` and run `dvc repro`"
        ) from None


def main() -> None:
    """Rebuild dvc.lock, reproduce, and mark the files as resolved; the commit is left to git.

    Raises DigitsError when other files are in conflict, or when `dvc repro` fails.
    """
    git.require_root()
    unmerged = git.unmerged()
    text = Path(LOCK).read_text("utf-8", errors="replace") if Path(LOCK).exists() else ""
    if LOCK not in unmerged and not MARKERS.search(text):
        print(f"{LOCK} is in no conflict; if it is stale, run `dvc repro`")
        return
    others = [name for name in unmerged if name != LOCK and not MADE.fullmatch(name)]
    if others:
        raise DigitsError(
            f"{', '.join(others)}: in conflict too; resolve that first, `git add` it, and run "
            "`digits relock` again"
        )
    rebuilt = io.StringIO()
    YAML().dump({"schema": "2.0", "stages": merged(*sides(text))}, rebuilt)
    made = [name for name in unmerged if name != LOCK]
    write_text(Path(LOCK), rebuilt.getvalue())
    for name in made:
        git.git("checkout", "--ours", "--", name)
    # Outputs of the other branch may lie here; DVC would take them for changed by hand.
    with contextlib.suppress(DigitsError):
        dvc.checkout("--quiet", "--force", "--allow-missing")
    run = dvc.repro()
    if run.failed:
        raise DigitsError(
            f"dvc repro failed at {run.failed}, see above; {LOCK} has the stages of both sides "
            "now: fix that, run `dvc repro`, then `git add dvc.lock data`"
        )
    git.git("add", "--", LOCK, *made)
    ran = [name for name, (what, _) in run.stages.items() if what == "ran"]
    print(f"{LOCK} is rebuilt; {', '.join(ran) or 'no stage'} ran. Now commit, with data as it is.")
