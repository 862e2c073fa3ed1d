"""What crosses between a job and this clone: files by `dvc push` and `dvc fetch`, and `outputs/`.

A job leaves in outputs/ dvc.lock, params.yaml and the small tables that git keeps (outs with
`cache: false`), and job.json, written last: the values that it was given, its metrics and its
machine. All other outs are in the container `review`, named by the hashes of that dvc.lock. No run
cache crosses. This module is imported by the job, too: it needs no workspace.
"""

import contextlib
import functools
import json
import operator
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configobj
import yaml
from ruamel.yaml import YAML

from core.errors import DigitsError
from core.files import atomic_write
from mlops import dvc, git

REMOTE = "review"  # main trusts nothing that a job made
OUTPUTS = Path("outputs")  # of a job: Azure keeps what is written there
ATTACH = "run this again with --attach and the job's name"  # or it would be another job
LOCK, PIPELINE, PARAMS, SUMMARY = "dvc.lock", "dvc.yaml", "params.yaml", "job.json"
NPM = "package-lock.json"  # a stage that depends on it reads packages that a job does not have


def stages(lock: str) -> dict[str, Any]:
    """Return the stages of a dvc.lock."""
    return dict((yaml.safe_load(lock) or {}).get("stages") or {})


def npm_stages(known: dict[str, Any]) -> set[str]:
    """Return the names of the stages of a dvc.lock, without @item, that read npm's packages."""
    return {
        name.partition("@")[0]
        for name, stage in known.items()
        if any(dep["path"] == NPM for dep in stage.get("deps", ()))
    }


def tables(pipeline: str, lock: str) -> list[str]:
    """Return the outs of a dvc.lock that dvc.yaml declares with `cache: false`."""
    found = []
    for stage in yaml.safe_load(pipeline)["stages"].values():
        block = stage.get("do", stage)
        listed = [one for kind in ("outs", "metrics", "plots") for one in block.get(kind, ())]
        options = [pair for one in listed if isinstance(one, dict) for pair in one.items()]
        found += [path for path, how in options if (how or {}).get("cache") is False]
    # ${key} of a foreach or matrix stands for any name.
    parts = [map(re.escape, re.split(r"\$\{[^}]*\}", path)) for path in found]
    pattern = re.compile("|".join("[^/]+".join(part) for part in parts) or "(?!)")
    paths = [out["path"] for stage in stages(lock).values() for out in stage.get("outs", ())]
    return [path for path in paths if pattern.fullmatch(path)]


def machine() -> dict[str, Any]:
    """Return what of this machine may change the bytes that it computes."""
    flags = Path("/proc/cpuinfo")
    avx2 = " avx2 " in flags.read_text("utf-8") if flags.exists() else None
    gpu = Path("/proc/driver/nvidia/version").exists()
    kind = f"{platform.system()} {platform.machine()}"
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return {"kind": kind, "python": python, "avx2": avx2, "gpu": gpu}


def place(files: dict[str, bytes], folder: Path) -> None:
    """Write files, given by their paths, below a folder."""
    for name, content in files.items():
        with atomic_write(folder / name) as partial:
            partial.write_bytes(content)


def change_params(settings: list[str]) -> None:
    """Change values of params.yaml, given as KEY=VALUE; its comments stay."""
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 1000
    values = editor.load(Path(PARAMS).read_text("utf-8"))
    for setting in settings:
        key, _, value = setting.partition("=")
        *sections, last = key.split(".")
        functools.reduce(operator.getitem, sections, values)[last] = yaml.safe_load(value)
    with atomic_write(Path(PARAMS)) as partial:
        editor.dump(values, partial)


@dataclass(frozen=True)
class Tree:
    """A temporary git worktree, which shares DVC's cache with this clone."""

    folder: Path

    def dvc(self, *arguments: str, fix: str = "run this again") -> str:
        """Run DVC in the worktree as `mlops.dvc.run` does."""
        site = str(self.folder.parent / "site")  # or DVC leaves a database for each worktree
        return dvc.run(*arguments, folder=self.folder, fix=fix, DVC_SITE_CACHE_DIR=site)

    def fetch(self, files: dict[str, bytes]) -> None:
        """Place what a job left, and fetch the outs that its dvc.lock names into the cache."""
        place(files, self.folder)
        self.dvc("fetch", "--remote", REMOTE, fix=ATTACH)


@functools.cache
def cache(folder: Path) -> str:
    """Return the folder of DVC's cache for the project in a folder."""
    return dvc.run("cache", "dir", folder=folder).strip()


@contextlib.contextmanager
def worktree(commit: str, settings: dict[str, str]) -> Iterator[Tree]:
    """Yield a temporary git worktree at a commit; `settings` are those of the container `review`.

    Raises DigitsError when this clone does not have the commit.
    """
    if git.commit(commit) is None:
        raise DigitsError(
            f"commit {commit[:10]} is not in this clone; `git fetch origin`, then {ATTACH}"
        )
    config = configobj.ConfigObj(encoding="utf-8")
    config["cache"] = {"dir": cache(Path.cwd()), "type": "reflink,symlink,copy"}
    config[f'remote "{REMOTE}"'] = settings
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        folder = Path(home).resolve() / "tree"
        add = ("worktree", "add", "--quiet", "--detach", str(folder), commit)
        git.run("-c", f"core.hooksPath={home}", *add)  # hooks of DVC would check out all files
        try:
            with (folder / ".dvc" / "config.local").open("wb") as file:
                config.write(file)
            yield Tree(folder)
        finally:
            git.run("worktree", "remove", "--force", str(folder))


def upload_inputs(settings: dict[str, str]) -> None:
    """Push what the dvc.lock and .dvc files of HEAD name: a job begins with it."""
    with worktree("HEAD", settings) as tree:
        tree.dvc("pull", "--remote", REMOTE, "--allow-missing")  # as the job will
        if state := json.loads(tree.dvc("status", "--json")):
            refuse_state(tree, state)
        tree.dvc("push", "--remote", REMOTE)


def refuse_state(tree: Tree, state: dict[str, Any]) -> None:
    """Raise DigitsError when a job cannot begin with what `dvc status` reports of a worktree.

    It can when no stage is to run that reads npm's packages, and when all that the job will not
    make is here or in the container.
    """
    options = ("--dry", "--allow-missing", "--no-run-cache", "--force-downstream")
    to_run = re.findall(r"^Running stage '(.+)':", tree.dvc("repro", *options), re.M)
    lock = tree.folder / LOCK
    npm = npm_stages(stages(lock.read_text("utf-8") if lock.exists() else ""))
    if refused := [name for name in to_run if name.partition("@")[0] in npm]:
        raise DigitsError(
            f"stage {refused[0]} is not what {LOCK} has, and a job has no npm packages to run it; "
            f"`dvc repro {refused[0]}` here, commit {LOCK} and push first"
        )
    missing = {
        path: name
        for name, entries in state.items()
        for entry in entries
        if name not in to_run and isinstance(entry, dict)
        for path, how in entry.get("changed outs", {}).items()
        if how == "not in cache"
    }
    if missing:
        names = list(dict.fromkeys(missing.values()))
        made = not any(name.endswith(".dvc") for name in names)  # by a command
        raise DigitsError(
            f"{min(missing)}: neither here nor in the container {REMOTE}, from which the job takes "
            "it; `dvc pull` first" + (f", or `dvc repro {' '.join(names)}`" if made else "")
        )


def download_inputs() -> None:
    """Fetch, in a job, what dvc.lock and .dvc files name, and put the files in place."""
    dvc.run("pull", "--remote", REMOTE, "--allow-missing")


def upload_outputs() -> None:
    """Push, in a job, all outs of dvc.lock that DVC caches."""
    dvc.run("push", "--remote", REMOTE)
