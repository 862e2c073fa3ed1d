"""What a job leaves: files by their hash and the run cache in a container, and its own account.

Contents go before the run cache, and the account last, so that what was cut short names nothing
that is absent. Of the run cache a job leaves, and its client takes, the stages of its own dvc.lock
alone: no other run that somebody left in the container comes along. Imported by the job itself,
too: it needs no workspace.
"""

import contextlib
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from core.errors import DigitsError
from core.files import write_text

REMOTE = "review"  # main trusts nothing that a job made
OUTPUTS = Path("outputs")  # of a job: Azure keeps what is written there
AGAIN = "run this again"
ATTACH = f"{AGAIN} with --attach and the job's name"  # or it would be another job
UNHASHED = ["size", "nfiles"]  # of an entry's files; as DVC itself does
MAY_LACK = {"deleted", "not in cache"}  # of outs here: the container may have them
LOCK, ACCOUNT, PARAMS = "dvc.lock", "job.json", "params.yaml"


def stages(lock: str) -> dict[str, Any]:
    """Return the stages of a dvc.lock."""
    return dict((yaml.safe_load(lock) or {}).get("stages") or {})


def machine() -> dict[str, Any]:
    """Return what of this machine may change the bytes that it computes."""
    flags = Path("/proc/cpuinfo")
    avx2 = " avx2 " in flags.read_text("utf-8") if flags.exists() else None
    gpu = Path("/proc/driver/nvidia/version").exists()
    kind = f"{platform.system()} {platform.machine()}"
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return {"kind": kind, "python": python, "avx2": avx2, "gpu": gpu}


@contextlib.contextmanager
def _opened(settings: dict[str, str], mend: str = AGAIN) -> Iterator[Any]:
    # mypy: DVC ships no types
    from dvc.exceptions import DvcException  # type: ignore[import-untyped] # a second to load
    from dvc.repo import Repo, lock_repo  # type: ignore[import-untyped]

    try:
        with Repo(remote=REMOTE, remote_config=settings) as repo, lock_repo(repo):
            yield repo
    except (DvcException, OSError) as error:  # those of the blob store are OSErrors in DVC
        raise DigitsError(f"the container {REMOTE}: {error}; {mend}") from error


def _hashes(lock: str) -> set[Any]:
    from dvc_data.hashfile.hash_info import HashInfo

    found = [out for stage in stages(lock).values() for out in stage.get("outs", ())]
    return {HashInfo("md5", out["md5"]) for out in found}


def _with_files(repo: Any, hashes: set[Any]) -> set[Any]:
    """Return hashes with those of the files in folders, which DVC does not move by itself."""
    from dvc_data.hashfile.tree import Tree

    trees = [Tree.load(repo.cache.local, one) for one in hashes if one.isdir]
    return hashes | {file for tree in trees for _, _, file in tree}


def _runs(lock: str) -> dict[str, str]:
    """Return what DVC's run cache has for the stages of a dvc.lock, by its place there."""
    from dvc.utils import dict_sha256  # type: ignore[import-untyped]

    found = {}
    for entry in stages(lock).values():
        outs = [out["path"] for out in entry.get("outs", ())]
        key = dict_sha256(entry | {"outs": outs}, exclude=UNHASHED)
        place = f"runs/{key[:2]}/{key}/{dict_sha256(entry, exclude=UNHASHED)}"
        if outs and entry.get("deps"):
            found[place] = yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)
    return found


def _moved(done: Any, how: str, mend: str = AGAIN) -> None:
    if done.failed:
        raise DigitsError(f"{len(done.failed)} files were not {how}; {mend}")


def push(lock: str) -> None:
    """Push the outs of a dvc.lock, small metrics too, then its stages' run cache."""
    with _opened({}) as repo:
        wanted = _with_files(repo, _hashes(lock))
        _moved(repo.cloud.push(wanted, remote=REMOTE), "pushed")
        odb = repo.cloud.get_remote_odb(REMOTE, "push --run-cache", hash_name="md5-dos2unix")
        for place, entry in _runs(lock).items():
            path = odb.fs.join(odb.path, place)
            odb.fs.makedirs(odb.fs.parent(path), exist_ok=True)
            odb.fs.pipe_file(path, entry.encode())


def fetch(locks: list[str], settings: dict[str, str]) -> None:
    """Fetch the outs of dvc.locks into DVC's cache; put their stages into its run cache."""
    with _opened(settings, ATTACH) as repo:
        for lock in locks:
            hashes = _hashes(lock)
            folders = {one for one in hashes if one.isdir}
            _moved(repo.cloud.pull(folders, remote=REMOTE), "fetched", ATTACH)
            wanted = _with_files(repo, hashes)
            _moved(repo.cloud.pull(wanted, remote=REMOTE), "fetched", ATTACH)
            for place, entry in _runs(lock).items():
                write_text(Path(repo.cache.legacy.path, place), entry)


def take() -> None:
    """Fetch what dvc.lock and .dvc files name; put the files in place."""
    with _opened({}) as repo:
        repo.pull(remote=REMOTE, allow_missing=True)


def offer(stages_first: tuple[str, ...], settings: dict[str, str]) -> None:
    """Push what dvc.lock and .dvc files name and is here: a job begins with it.

    Raises DigitsError when one of the first stages would run in the job, which lacks what they
    read: npm's packages; and when something that the job will not make is nowhere.
    """
    with _opened(settings) as repo:
        run = _to_run(repo)
        if npm := sorted(name for name in run if name.partition("@")[0] in stages_first):
            raise DigitsError(
                f"stage {npm[0]} is not what dvc.lock has, and a job has no npm packages to "
                "run it; `dvc repro prepare` here, commit dvc.lock and push first"
            )
        needed = [one for one in repo.index.stages if one.addressing not in run]
        if missing := _missing(repo, needed):
            lacking = [one for one in needed if _missing(repo, [one])]
            names = " ".join(one.addressing for one in lacking)
            made = all(one.cmd for one in lacking)  # a .dvc file has no command that makes it
            raise DigitsError(
                f"{missing[0]}: neither here nor in the container {REMOTE}, from which the job "
                "takes it; `dvc pull` first" + (f", or `dvc repro {names}`" if made else "")
            )
        repo.push(remote=REMOTE)


def _missing(repo: Any, found: list[Any]) -> list[str]:
    """Return what of some stages is neither here nor in the container."""
    targets = [one.addressing for one in found]
    told = repo.status(targets=targets, cloud=True, remote=REMOTE)
    return sorted(path for path, how in told.items() if how == "missing")


def _to_run(repo: Any) -> set[str]:
    """Return the stages that a job would run: those that changed, and those after them.

    What is missing here is no change, nor is a folder in which it is missing.
    """
    from networkx import ancestors  # type: ignore[import-untyped]

    found = [
        (stage, path, str(how))
        for stage, entries in repo.status().items()
        for entry in entries
        for paths in (entry.values() if isinstance(entry, dict) else [{entry: entry}])
        for path, how in paths.items()
    ]
    lacking = {path for _, path, how in found if how in MAY_LACK}
    lacking |= {str(folder) for path in lacking for folder in Path(path).parents}
    changed = {stage for stage, path, _ in found if path not in lacking}
    for stage in repo.index.stages:
        if stage.addressing in changed:
            changed = changed | {one.addressing for one in ancestors(repo.index.graph, stage)}
    return changed
