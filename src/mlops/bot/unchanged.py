"""Decide by git alone, before anything is installed, whether a change leaves the pipeline as it is.

Then there is nothing to reproduce: the base has been reproduced, and what its stages read and write
is the same here.
"""

import re
import subprocess
from pathlib import Path

from mlops.bot import github
from mlops.review import schema

ALWAYS = ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc", "data/noise.json", "*.dvc", "*/dvc.yaml")
PATH = re.compile(r"^ *-? *path: (.*)$", re.M)  # of dvc.lock: deps and outs of all stages
PLAIN = re.compile(r"[\w./@+ -]+")  # what YAML writes without quotes, and git takes literally


def unchanged(base: str) -> bool:
    """Return whether all that the pipeline reads and writes is the same at two commits.

    Where that cannot be decided it is not the same.
    """
    lock = Path("dvc.lock")
    paths = PATH.findall(lock.read_text("utf-8", errors="replace")) if lock.is_file() else []
    if not paths or not all(PLAIN.fullmatch(path) for path in paths):
        return False
    command = ["git", "diff", "--quiet", base, "HEAD", "--", *ALWAYS, *paths]
    return subprocess.run(command).returncode == 0


def main(arguments: list[str]) -> str:
    """Give later steps `same`, compared with the merge base of HEAD and BASE.

    If it is the same, review/report.json says so.
    """
    name = github.setting("BASE")
    found = subprocess.run(["git", "merge-base", "HEAD", name], capture_output=True, text=True)
    base = found.stdout.strip()
    same = bool(base) and unchanged(base)
    github.output(same=str(same).lower())
    if not same:
        return "Something changes that the pipeline reads or writes: it is reproduced."
    report = schema.Report(
        verdict="same",
        gate=schema.Gate(passed=True, reasons=[]),
        head=github.setting("HEAD"),
        base=base,
        against=f"merge base with {name}",
        notes=["Nothing changes that the pipeline reads or writes, so nothing was reproduced."],
    )
    folder = Path("review")
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(schema.dump(report), "utf-8")
    return "Nothing changes that the pipeline reads or writes."


if __name__ == "__main__":
    github.script(main)
