"""`digits merge`: merge main where git alone cannot, and leave the rest to `dvc repro`.

Two experiments conflict in dvc.lock, in the tables that stages write, and often in params.yaml.
Lock and tables are recomputed, so conflicts take main's version. Each key of params.yaml takes the
value of the side that changed it.
"""

import json
import re
from typing import Any, Literal

from core.errors import DigitsError
from core.files import write_text
from core.params import PATH
from mlops import git
from mlops.review import schema
from mlops.review.compare import flat
from mlops.review.render import MERGE_BY_HAND
from mlops.review.retrain import rewrite
from mlops.review.snapshot import mapping

Side = Literal["this branch", "main"]


def merged(texts: list[str], prefer: Side) -> str:
    """Return params.yaml merged by keys: of the merge base, this branch and main, in this order.

    A key that both sides changed has the value of the side that is preferred. Raises DigitsError
    when a side changed more than values of keys that main has.
    """
    base, ours, theirs = (flat(mapping(text)) for text in texts)
    wanted: dict[str, Any] = {}
    for key in {**base, **ours}:
        if ours.get(key) == base.get(key):
            continue
        if theirs.get(key) == base.get(key) or prefer == "this branch":
            wanted[key] = json.loads(ours.get(key, "null"))
    text = rewrite(texts[2], wanted)
    expected = theirs | {key: ours.get(key, "") for key in wanted}
    if flat(mapping(text)) != expected:
        raise DigitsError(f"{PATH}: the sides change more than values of the same keys")
    return text


def main(revision: str, prefer: Side) -> None:
    """Merge a revision and commit the merge; raise DigitsError, with nothing changed, if it fails.

    The files of this commit are not reproduced yet: run `dvc repro` next.
    """
    git.require_root()
    if git.unmerged() or git.line("rev-parse", "--verify", "--quiet", "MERGE_HEAD"):
        raise DigitsError("a merge is unfinished: commit it, or git merge --abort")
    if git.git("merge", "--quiet", "--no-ff", "--no-edit", revision) is not None:
        return
    conflicts = git.unmerged()
    if not conflicts:
        git.run("merge", "--quiet", "--no-ff", "--no-edit", revision)  # fails with git's reason
    try:
        known = re.compile(rf"params\.yaml|{schema.MADE}")
        others = [name for name in conflicts if not known.fullmatch(name)]
        if others:
            raise DigitsError(f"{', '.join(others)}: git cannot merge these changes")
        if str(PATH) in conflicts:
            sides = [git.run("show", f":{number}:{PATH}") for number in (1, 2, 3)]
            write_text(PATH, merged(sides, prefer))
        if made := [name for name in conflicts if name != str(PATH)]:
            git.run("checkout", "--theirs", "--", *made)
        git.run("add", "--", *conflicts)
        git.run("commit", "--quiet", "--no-edit")
    except DigitsError as error:
        git.git("merge", "--abort")
        raise DigitsError(
            f"{error}. Nothing is merged. By hand, after git merge {revision}: "
            f"{'; '.join(MERGE_BY_HAND.splitlines())}"
        ) from None
