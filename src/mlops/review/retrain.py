"""`digits retrain`: train again with the labelled digits of production.

Input: new CSV files in data/labelled, as `digits monitor --labelled data/labelled` writes them, and
review.retrain of params.yaml. Output: the files tracked by DVC, the experiment in the working tree
and, with --out, its report. When it fails, everything is left as it was.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

from core import params
from core.dataset import MNIST, read_csv
from core.errors import DigitsError
from core.files import write_text
from mlops import dvc, git
from mlops.review import compare, gate, render, schema
from mlops.review.report import review
from mlops.review.snapshot import mapping

LABELLED = Path("data/labelled")
FIX = "`digits monitor --labelled data/labelled` writes them once there are labels"


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
                f"{path}: the script {script} is not in params.yaml, which has "
                f"{', '.join(scripts)}; add it there, or move the file"
            )
        found[path] = len(read_csv(path, task.image_size, len(task.classes), script))
    return found


def rewrite(text: str, settings: dict[str, bool | int | float | str]) -> str:
    """Return params.yaml with changed values; its layout and comments are preserved."""
    lines, place = text.splitlines(keepends=True), list[str]()
    for number, line in enumerate(lines):
        if match := re.fullmatch(r"( *)(\w+):(?: [^#\n]*?)?( *(?:#[^\n]*)?\n)", line):
            place[len(match[1]) // 2 :] = [match[2]]
            key = ".".join(place)
            if key in settings:
                lines[number] = f"{match[1]}{match[2]}: {json.dumps(settings[key])}{match[3]}"
    return "".join(lines)


def experiment(found: dict[Path, int], settings: dict[str, bool | int | float | str]) -> list[str]:
    """Version the CSVs and run the pipeline with them; return a line about each that is new."""
    dvc.run("add", "--quiet", *map(str, found))
    changed = git.changed(str(LABELLED))
    new = {path: count for path, count in found.items() if f"{path.as_posix()}.dvc" in changed}
    if not new:
        raise DigitsError(f"{LABELLED}: has no new labelled digits; {FIX}")
    text = rewrite(params.PATH.read_text("utf-8"), settings)
    values = compare.flat(mapping(text))
    if lacking := [key for key in settings if values.get(key) != json.dumps(settings[key])]:
        raise DigitsError(f"{params.PATH}: has no line for {lacking[0]} of review.retrain.set")
    write_text(params.PATH, text)
    if failed := dvc.repro().failed:
        raise DigitsError(f"dvc repro failed at {failed}, see above; all changes were reverted")
    return [f"{path.stem}: {count:,} labelled digits of production" for path, count in new.items()]


def undo(known: set[Path]) -> None:
    """Undo an experiment's changes to the repository; the CSVs stay.

    Raises DigitsError when DVC cannot restore the stages' outputs.
    """
    for path in set(LABELLED.glob("*.dvc")) - known:
        path.unlink()
    git.git("checkout", "--", "params.yaml", "dvc.lock", "data")
    try:  # the outputs of the stages, not the CSVs
        dvc.checkout("--quiet", "--force", "--allow-missing", "dvc.yaml")
    except DigitsError as error:
        fix = "run `dvc checkout --force dvc.yaml`"
        raise DigitsError(f"the stages' outputs could not be restored, see above; {fix}") from error


def main(out: Path | None = None) -> None:
    """Run the experiment; raise DigitsError when a precondition fails."""
    git.require_root()
    settings = gate.load().retrain.set
    found = check(LABELLED)
    if not found:
        raise DigitsError(f"{LABELLED}: has no labelled digits; {FIX}")
    csvs = [path.as_posix() for path in found]
    if dirty := [name for name in git.changed(".", ":!review") if name not in csvs]:
        raise DigitsError(f"{dirty[0]}: is not committed; commit or stash your own changes first")
    known = set(LABELLED.glob("*.dvc"))
    try:
        lines = experiment(found, settings)
        report = replace(review("HEAD", repro=False), notes=lines)
    except BaseException:  # Ctrl-C too
        undo(known)
        raise
    text = render.write(report)
    if out:
        write_text(out / "report.md", text)
        write_text(out / "report.json", schema.dump(report))
    print("\n".join([*(f"- {line}" for line in lines), text.partition("\n")[0][3:]]))
    print("The experiment is in the working tree. Review it, then commit it.")
