"""`digits review [--base REV] [--repro] [--gate] [--out FOLDER] [--link URL]`."""

import argparse
from pathlib import Path

from core.errors import DigitsError
from core.files import write_text
from mlops import dvc
from mlops.review import render
from mlops.review.report import review


def main(arguments: list[str]) -> None:
    """Write or print the report; raise DigitsError when the pipeline or an asked gate fails."""
    parser = argparse.ArgumentParser(prog="digits review", description="Compare, judge, tell.")
    parser.add_argument("--base", help="compare with the merge base with this revision")
    parser.add_argument("--repro", action="store_true", help="run `dvc repro` first")
    parser.add_argument("--gate", action="store_true", help="exit with 1 when the gate fails")
    parser.add_argument("--out", type=Path, help="a folder for the report and DVC's plots")
    parser.add_argument("--link", default="", help="the address of the run, for the report")
    options = parser.parse_args(arguments)
    found = review(options.base, options.repro, options.link)
    if options.out:
        broken = found.run and found.run.failed
        told = "" if broken else dvc.plots(found.base.commit, options.out / "plots")
        found.problems.extend([told] if told else [])
        write_text(options.out / "report.md", render.write(found))
        write_text(options.out / "report.json", render.as_json(found))
        print(render.write(found).partition("\n")[0].removeprefix("## "))
    else:
        print(render.write(found))
    if found.run and found.run.failed:
        raise DigitsError(f"dvc repro failed at {found.run.failed}; see above")
    if options.gate and found.reasons:
        raise DigitsError("the gate failed: " + "; ".join(found.reasons))
