"""`digits check`: params.yaml, and what this machine and clone need for the pipeline."""

import shutil
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path

from core import params, wings
from core.console import hidden_stderr
from core.errors import DigitsError
from mlops import dvc, git
from mlops.setup import az
from mlops.setup.findings import Finding, expect, show

OLDEST_NODE = 20


def sections() -> Iterator[Finding]:
    """Check params.yaml, each declared section by its dataclass."""
    fix = f"see {params.PATH} in git"
    try:
        values = params.load()
        params.task(values)
        params.names(values)
        declared = {row.name for row in wings.declared("SECTIONS")}
        for name in values.keys() - declared - {"task"} - {f.name for f in fields(params.Task)}:
            raise DigitsError(
                f"{params.PATH}: {name}: no stage declares it; write in src/digits/commands.py\n"
                f'  Section("{name}", "digits.pipeline.{name}:Params"),'
            )
        scripts = params.foreign_scripts(values)
    except DigitsError as error:
        yield Finding("failed", str(error), fix)
        return
    valid = True
    for row in wings.declared("SECTIONS"):
        with hidden_stderr():  # TensorFlow's notes
            kind = wings.resolve(row.kind)
        names = [f"{row.name}.{script}" for script in scripts] if row.each else [row.name]
        for name in names if row.name in values else ():
            try:
                params.section(kind, values, name)
            except DigitsError as error:
                valid = False
                yield Finding("failed", str(error), fix)
    if valid:
        yield Finding("ok", f"{params.PATH}: valid")


def tools() -> Iterator[Finding]:
    """Look for the programs that the pipeline needs."""
    for tool in ("git", "npm"):
        found = shutil.which(tool)
        yield expect(found, f"{tool}: {found or 'not found'}", "install it")
    version = (az.try_text("node", "--version") or "v0").lstrip("v")
    new = int(version.partition(".")[0]) >= OLDEST_NODE
    yield expect(new, f"node: {version}", f"install {OLDEST_NODE} or newer")


def clone() -> Iterator[Finding]:
    """Look at this folder: its history, its packages, what the stages made."""
    below = git.git("rev-parse", "--show-prefix")
    fix = "run it from the project's root; in a folder without history: git init -b main"
    yield expect(below == b"\n", f"git repository: {Path.cwd()}", fix)
    yield expect(Path("node_modules").is_dir(), "node_modules: npm's packages", "make env")
    changed, missing = dvc.status(set()) if below else ([], [])
    stale = "; ".join([*changed, *missing])
    yield Finding("optional" if stale else "ok", f"data: {stale or 'as dvc.lock has it'}")


def main(as_json: bool) -> None:
    """Print what was found; raise DigitsError when something is wrong."""
    show({"local": chain(sections(), tools(), clone())}, as_json)
