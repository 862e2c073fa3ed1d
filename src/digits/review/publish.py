"""Take over what a pull request's run computed into DVC's cache, hashing each file again.

A file of the cache is named by its MD5, so one whose content is another's is found out. What
the run cache says (these inputs gave those outputs) cannot be checked without computing it:
that is why the container `review` has a run cache of its own, which main never reads.
"""

import hashlib
import re
import shutil
from pathlib import Path

from digits.errors import DigitsError
from digits.review import github

CONTENT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30})(\.dir)?")
RUN = re.compile(r"runs/([0-9a-f]{2})/\1[0-9a-f]{62}/[0-9a-f]{64}")
RUN_BYTES = 1_000_000


def main(arguments: list[str]) -> str:
    """Copy a folder that is laid out as DVC's cache into the cache; say how much it was."""
    source, cache = map(Path, arguments)
    found = sorted(path for path in source.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in found:
        check(path, path.relative_to(source).as_posix())
    for path in found:
        target = cache / path.relative_to(source)
        if path.name != "dvc.lock" and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return f"{len(found)} files are what their names say."


def check(path: Path, name: str) -> None:
    """Raise DigitsError for a file that is not of DVC's cache or not what its name says."""
    if path.is_symlink() or not path.is_file():
        raise DigitsError(f"{name}: is no plain file; nothing is published")
    content = CONTENT.fullmatch(name)
    if content:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != content[1] + content[2]:
            raise DigitsError(f"{name}: its content has the hash {digest}; nothing is published")
    elif name != "dvc.lock" and not (RUN.fullmatch(name) and path.stat().st_size <= RUN_BYTES):
        raise DigitsError(f"{name}: is not of DVC's cache; nothing is published")


if __name__ == "__main__":
    github.script(main)
