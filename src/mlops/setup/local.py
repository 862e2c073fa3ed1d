"""`digits check` and `digits lab`: check this machine and clone, and the results of a lab."""

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML

from core import params, wings
from core.console import hidden_stderr
from core.errors import DigitsError
from mlops import dvc, git

LABS = Path(__file__).with_name("labs.yaml")


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    status: Literal["ok", "failed", "optional", "unknown"]
    text: str
    fix: str = ""


def expect(condition: object, text: str, fix: str) -> Finding:
    """Return a check that passed or failed."""
    return Finding("ok" if condition else "failed", text, fix)


def show(groups: Mapping[str, Iterable[Finding]], as_json: bool = False) -> None:
    """Print the findings of each group; raise DigitsError when a check failed."""
    shown = []
    for group, findings in groups.items():
        if not as_json:
            print(f"{group}:", flush=True)
        for finding in findings:
            shown.append({"group": group} | dataclasses.asdict(finding))
            if not as_json:
                fix = (
                    f"\n           {finding.fix}" if finding.fix and finding.status != "ok" else ""
                )
                print(f"  {finding.status:8} {finding.text}{fix}", flush=True)
    if as_json:
        print(json.dumps(shown, indent=2), flush=True)
    if failed := sum(row["status"] == "failed" for row in shown):
        checks = "1 check" if failed == 1 else f"{failed} checks"
        raise DigitsError(f"{checks} failed. The fix for each is printed above.")


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


def clone() -> Iterator[Finding]:
    """Check this folder: git history, packages, outputs of the stages."""
    below = git.git("rev-parse", "--show-prefix")
    fix = "run it from the project's root; in a folder without history: git init -b main"
    yield expect(below == b"\n", f"git repository: {Path.cwd()}", fix)
    yield expect(Path("node_modules").is_dir(), "node_modules: npm's packages", "make env")
    changed, missing = dvc.status(set()) if below else ([], [])
    stale = "; ".join([*changed, *missing])
    yield Finding("optional" if stale else "ok", f"data: {stale or 'as dvc.lock has it'}")


def main(as_json: bool) -> None:
    """Print what was found; raise DigitsError when something is wrong."""
    show({"local": chain(sections(), clone())}, as_json)


def check_lab(number: int) -> None:
    """Run a lab's checks in labs.yaml; raise DigitsError that lists the failed ones."""
    labs = YAML(typ="safe").load(LABS.read_text("utf-8"))
    if number not in labs:
        raise DigitsError(f"lab {number}: expected a number from {min(labs)} to {max(labs)}")
    missing = []
    for text, command in labs[number].items():
        words = ["bash", "-c", command]
        if subprocess.run(words, env=dvc.environment(), capture_output=True).returncode:
            missing.append(text)
    if missing:
        raise DigitsError("\n  ".join([f"lab {number}: {len(missing)} missing:", *missing]))
    print(f"Lab {number}: passed.")
