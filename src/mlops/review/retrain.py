"""`digits retrain`: an experiment that takes the labelled digits of production in.

Enters: new CSVs in data/labelled, as `digits monitor --labelled data/labelled` writes them, and
review.retrain of params.yaml. Leaves them under DVC, the experiment in the working tree, for a
person or monitor.yml to commit, and with --out its report, old against new. What fails leaves
everything as it was, the new CSVs too.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from core import params
from core.dataset import MNIST, read_csv
from core.errors import DigitsError
from core.files import write_text
from mlops import dvc as reproduce
from mlops import git
from mlops.review import gate, render, schema
from mlops.review.report import review

LABELLED = Path("data/labelled")
EXECUTING = "refs/exps/exec"  # DVC's notes of the experiment that runs in the working tree
FIX = "`digits monitor --labelled data/labelled` writes them once labels have come"


def check(folder: Path) -> dict[Path, int]:
    """Return the CSVs with labelled digits and how many each has.

    Raises DigitsError for a script that params.yaml does not know, and as `read_csv` does.
    """
    values = params.load()
    task = params.task(values)
    scripts = [MNIST, *params.foreign_scripts(values)]
    found = {}
    for path in sorted(folder.glob("*.csv")):
        script = path.stem.split("_")[0]
        if script not in scripts:
            raise DigitsError(
                f"{path}: {script} is no script of params.yaml, which has {', '.join(scripts)}; "
                "name it there, or move the file away"
            )
        found[path] = len(read_csv(path, task.image_size, len(task.classes), script))
    return found


def dvc(*arguments: str) -> None:
    """Run DVC; raise DigitsError when it fails.

    Ctrl-C reaches DVC and its stage, too, and is waited for: DVC takes back what it was doing.
    """
    process = subprocess.Popen(reproduce.command(*arguments), env=reproduce.environment())
    try:
        process.wait()
    except KeyboardInterrupt:
        print("waiting for DVC to end; Ctrl-C again does not wait", file=sys.stderr)
        process.wait()
        raise
    finally:
        process.kill()  # which does nothing to one that has ended
        process.wait()
    if process.returncode:
        raise DigitsError(f"dvc {arguments[0]} failed, see above; everything is as it was")


def experiment(found: dict[Path, int], settings: dict[str, bool | int | float | str]) -> list[str]:
    """Version the CSVs and run the experiment; return a line about each that is new."""
    dvc("add", "--quiet", *map(str, found))
    changed = git.changed(str(LABELLED))
    new = {path: count for path, count in found.items() if f"{path.as_posix()}.dvc" in changed}
    if not new:
        raise DigitsError(f"{LABELLED}: has no new labelled digits; {FIX}")
    git.git("add", "--", str(LABELLED))  # the experiment would not see what git does not know
    dvc("exp", "run", *(f"--set-param={key}={value}" for key, value in settings.items()))
    return [f"{path.stem}: {count:,} labelled digits of production" for path, count in new.items()]


def undo(known: set[Path], branch: str, commit: str) -> None:
    """Take back what an experiment left in the repository; the CSVs stay.

    `branch` and `commit` are those of HEAD, which DVC detaches while an experiment runs; the
    branch is empty where HEAD was detached before. Raises DigitsError when DVC does not bring
    back what the stages made.
    """
    if branch:
        git.git("symbolic-ref", "HEAD", branch)
    else:
        git.git("update-ref", "--no-deref", "HEAD", commit)
    for ref in (git.git("for-each-ref", "--format=%(refname)", EXECUTING) or b"").split():
        git.git("update-ref", "--no-deref", "-d", ref.decode())
    git.git("reset", "--quiet")
    for path in set(LABELLED.glob("*.dvc")) - known:
        path.unlink()
    git.git("checkout", "--", "params.yaml", "dvc.lock", "data")
    try:  # what the stages made, no CSV
        reproduce.checkout("--quiet", "--force", "--allow-missing", "dvc.yaml")
    except DigitsError as error:
        fix = "run `dvc checkout --force dvc.yaml`"
        raise DigitsError(f"what the stages made is not as it was, see above; {fix}") from error


def main(out: Path | None = None, link: str = "") -> None:
    """Run the experiment; raise DigitsError when something stands in the way."""
    git.require_root()
    settings = gate.load().retrain.set
    found = check(LABELLED)
    if not found:
        raise DigitsError(f"{LABELLED}: has no labelled digits; {FIX}")
    csvs = [path.as_posix() for path in found]
    if dirty := [name for name in git.changed(".", ":!review") if name not in csvs]:
        raise DigitsError(f"{dirty[0]}: is not committed; commit or stash your own changes first")
    known = set(LABELLED.glob("*.dvc"))
    branch = git.line("symbolic-ref", "--quiet", "HEAD")
    commit = git.line("rev-parse", "HEAD")
    try:
        lines = experiment(found, settings)
        report = replace(review("HEAD", repro=False, link=link), notes=lines)
    except BaseException:  # Ctrl-C too
        undo(known, branch, commit)
        raise
    text = render.write(report)
    if out:
        write_text(out / "report.md", text)
        write_text(out / "report.json", schema.dump(report))
    print("\n".join([*(f"- {line}" for line in lines), text.partition("\n")[0][3:]]))
    print("The experiment stands in the working tree: look at it, then commit or `dvc exp remove`.")
