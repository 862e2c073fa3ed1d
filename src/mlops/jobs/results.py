"""Transfer files between this clone and a job: by `dvc push` and `dvc fetch`, and in `outputs/`.

Input of a job: the files that dvc.lock and .dvc files name, in the container `review`. Output: in
outputs/, dvc.lock, params.yaml, the small tables in git (outs with `cache: false`) and job.json,
which is written last, with the changed values and the metrics; all other outs in the container.
The run cache is not transferred. The job imports this module, too.
"""

import contextlib
import functools
import json
import operator
import re
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

REMOTE = "review"  # main does not trust the results of jobs
OUTPUTS = Path("outputs")  # of a job; Azure ML uploads this folder
ATTACH = "run this again with --attach and the job's name"  # instead of starting another job
LOCK, PIPELINE, PARAMS, SUMMARY = "dvc.lock", "dvc.yaml", "params.yaml", "job.json"
NPM = "package-lock.json"  # a job has no npm packages for stages that depend on it


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
    paths = [out["path"] for stage in dvc.stages(lock).values() for out in stage.get("outs", ())]
    return [path for path in paths if pattern.fullmatch(path)]


def place(files: dict[str, bytes], folder: Path) -> None:
    """Write files, {path: content}, into a folder."""
    for name, content in files.items():
        with atomic_write(folder / name) as partial:
            partial.write_bytes(content)


def change_params(settings: list[str]) -> None:
    """Change values of params.yaml, given as KEY=VALUE; comments are preserved."""
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
        site = str(self.folder.parent / "site")  # otherwise DVC keeps a database per worktree
        return dvc.run(*arguments, folder=self.folder, fix=fix, DVC_SITE_CACHE_DIR=site)

    def fetch(self, files: dict[str, bytes]) -> None:
        """Write a job's files, fetch the outs in its dvc.lock into the cache, and check them."""
        place(files, self.folder)
        self.dvc("fetch", "--remote", REMOTE, fix=ATTACH)
        dvc.check_cache(self.folder)


@contextlib.contextmanager
def worktree(commit: str, settings: dict[str, str]) -> Iterator[Tree]:
    """Yield a temporary git worktree of a commit; `settings` are those of the container `review`.

    Raises DigitsError when the commit is not in this clone.
    """
    if git.commit(commit) is None:
        raise DigitsError(
            f"commit {commit[:10]} is not in this clone. Run `git fetch origin`, then {ATTACH}."
        )
    config = configobj.ConfigObj(encoding="utf-8")
    config["cache"] = {"dir": dvc.cache_of(Path.cwd()), "type": "reflink,symlink,copy"}
    config[f'remote "{REMOTE}"'] = settings
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        folder = Path(home).resolve() / "tree"
        add = ("worktree", "add", "--quiet", "--detach", str(folder), commit)
        git.run("-c", f"core.hooksPath={home}", *add)  # hooks of DVC would check out all files
        try:
            local = folder / ".dvc" / "config.local"
            local.touch(mode=0o600)  # it has the account's key
            with local.open("wb") as file:
                config.write(file)
            yield Tree(folder)
        finally:
            git.run("worktree", "remove", "--force", str(folder))


def upload_inputs(settings: dict[str, str]) -> None:
    """Push the files that dvc.lock and the .dvc files of HEAD name, the input of a job."""
    with worktree("HEAD", settings) as tree:
        tree.fetch({})  # as the job will
        tree.dvc("checkout", "--allow-missing")
        if state := json.loads(tree.dvc("status", "--json")):
            refuse_state(tree, state)
        tree.dvc("push", "--remote", REMOTE)


def refuse_state(tree: Tree, state: dict[str, Any]) -> None:
    """Raise DigitsError when a job cannot run the pipeline from this state of `dvc status`.

    The stages to run must not need npm packages, and the outputs of all other stages must be in
    this clone or in the container.
    """
    options = ("--dry", "--allow-missing", "--no-run-cache", "--force-downstream")
    to_run = re.findall(r"^Running stage '(.+)':", tree.dvc("repro", *options), re.M)
    lock = tree.folder / LOCK
    npm = npm_stages(dvc.stages(lock.read_text("utf-8") if lock.exists() else ""))
    if refused := [name for name in to_run if name.partition("@")[0] in npm]:
        raise DigitsError(
            f"{LOCK}: stage {refused[0]} is outdated, and a job has no npm packages to run it. "
            f"Run `dvc repro {refused[0]}` here, commit {LOCK} and push first."
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
        by_stages = not any(name.endswith(".dvc") for name in names)
        repro = f" or `dvc repro {' '.join(names)}`" if by_stages else ""
        raise DigitsError(
            f"{min(missing)}: neither in this clone nor in the container {REMOTE}. "
            f"Run `dvc pull`{repro} first."
        )
