"""Push what a pull request's run computed to the container `review`, hashing each file again.

A file of DVC's cache is named by its MD5, so one whose content is another's is found out. What
the run cache says (these inputs gave those outputs) cannot be checked without computing it:
that is why the container `review` has a run cache of its own, which main never reads.
"""

import hashlib
import re
import shutil
from pathlib import Path

from core.errors import DigitsError
from mlops.bot import github

CONTENT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)")
RUN = re.compile(r"runs/([0-9a-f]{2})/\1[0-9a-f]{62}/[0-9a-f]{64}")
RUN_BYTES = 1_000_000


def main(arguments: list[str]) -> str:
    """Push a folder that is laid out as DVC's cache, by way of the cache; say how much it was."""
    source, cache = map(Path, arguments)
    names = take_over(source, cache)
    # mypy: DVC ships no types
    from dvc.repo import Repo  # type: ignore[import-untyped] # `dvc push` leaves out small metrics, which the run cache needs
    from dvc_data.hashfile.hash_info import HashInfo

    contents = [match for match in map(CONTENT.fullmatch, names) if match]
    with Repo(cache.parent.parent) as repo:
        sent = repo.cloud.push(
            {HashInfo("md5", found[1] + found[2]) for found in contents}, remote="review"
        )
        if sent.failed:
            raise DigitsError(f"{len(sent.failed)} files did not reach the container review")
        repo.stage_cache.push("review")
    return f"{len(names)} files are what their names say; {len(sent.transferred)} were new."


def take_over(source: Path, cache: Path) -> list[str]:
    """Copy all files to the cache when each is what its name says; return their names."""
    found = sorted(path for path in source.rglob("*") if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(source).as_posix() for path in found]
    for path, name in zip(found, names, strict=True):
        check(path, name)
    for path, name in zip(found, names, strict=True):
        target = cache / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return names


def check(path: Path, name: str) -> None:
    """Raise DigitsError for a file that is not of DVC's cache or not what its name says."""
    if path.is_symlink() or not path.is_file():
        raise DigitsError(f"{name}: is no plain file; nothing is published")
    content = CONTENT.fullmatch(name)
    if content:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != (content[1] + content[2]).removesuffix(".dir"):
            raise DigitsError(f"{name}: its content has the hash {digest}; nothing is published")
    elif not (RUN.fullmatch(name) and path.stat().st_size <= RUN_BYTES):
        raise DigitsError(f"{name}: is not of DVC's cache; nothing is published")


if __name__ == "__main__":
    github.script(main)
