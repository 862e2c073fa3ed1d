"""Options of `digits review`, `restore`, `retrain` and `merge`."""

import contextlib
import os
import sys
from pathlib import Path

import click

from core.errors import DigitsError
from mlops import options


@click.command(epilog=options.example("digits review --repro --gate"))
@click.option("--base", metavar="REV", help="The revision to compare with  [default: main]")
@click.option("--repro", is_flag=True, help="Run `dvc repro` first.")
@click.option("--restore", default="", metavar="REMOTE", help="With --repro: fetch from REMOTE.")
@click.option("--gate", is_flag=True, help="Exit with 1 when the gate of params.yaml fails.")
@click.option("--out", type=options.FOLDER, help="A folder for the report.")
@options.as_json
def review(
    base: str | None, repro: bool, restore: str, gate: bool, out: Path | None, as_json: bool
) -> None:
    """Compare metrics, params and data with those where this branch left main.

    Prints the report. With --out, writes report.md and report.json, and prints one line.
    """
    if restore and not repro:
        raise click.UsageError("--restore requires --repro")
    from core.files import write_text
    from mlops.review import render, schema
    from mlops.review.gate import annotations
    from mlops.review.report import review as compare

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        found = compare(base, repro, restore)
    if out:
        write_text(out / "report.md", render.write(found))
        write_text(out / "report.json", schema.dump(found))
    if as_json:
        print(schema.dump(found), end="")
    else:
        text = render.write(found)
        print(text.partition("\n")[0].removeprefix("## ") if out else text)
    if found.failed:
        raise DigitsError(f"dvc repro failed at {found.failed}; see above")
    if gate and not found.gate.passed:
        if os.environ.get("GITHUB_ACTIONS") == "true":
            print(*annotations(found.gate.reasons), sep="\n")
        raise DigitsError("the gate failed: " + "; ".join(found.gate.reasons))


@click.command(epilog=options.example("digits restore data/package"))
@click.argument("targets", nargs=-1)
@click.option("--remote", default="main", show_default=True, help="The remote of DVC.")
@click.option("--run-cache", is_flag=True, help="Fetch DVC's run cache, too.")
@click.option("--allow-missing", is_flag=True, help="Print what is missing and exit with 0.")
def restore(targets: tuple[str, ...], remote: str, run_cache: bool, allow_missing: bool) -> None:
    """Fetch data and models from a remote, check them, and put them in place.

    A safe `dvc pull`: it verifies the cache and rejects listings that lead out of their folder.
    """
    from mlops import dvc

    problem = dvc.restore(remote, *targets, run_cache=run_cache)
    if problem and not allow_missing:
        raise DigitsError(problem)
    if problem:
        print(f"::notice::Not everything could be restored; the rest is computed here: {problem}")


@click.command(epilog=options.example("digits retrain --out report"))
@click.option("--out", type=options.FOLDER, help="A folder for report.md.")
def retrain(out: Path | None) -> None:
    """Run an experiment that also learns from the labelled digits in data/labelled.

    `digits monitor --labelled data/labelled` writes them. The section review.retrain of params.yaml
    lists the experiment's changes. The result is left in the working tree.
    """
    from mlops.review.retrain import main

    main(out)


@click.command(epilog=options.example("digits merge", "dvc repro"))
@click.argument("revision", default="origin/main")
@click.option(
    "--params",
    type=click.Choice(["this branch", "main"]),
    default="this branch",
    show_default=True,
    help="Whose value to take where both changed a key of params.yaml.",
)
def merge(revision: str, params: str) -> None:
    """Merge REVISION, by default origin/main, even if dvc.lock has conflicts.

    The merge takes main's dvc.lock and tables; `dvc repro` then updates them.
    """
    from mlops.review.merge import main

    main(revision, params)  # type: ignore[arg-type]
