"""Options of `digits review`, `retrain` and `relock`."""

from pathlib import Path

import click

from core.errors import DigitsError
from mlops import options

LINK = click.option("--link", default="", help="The address of the run, for the report.")


@click.command(epilog=options.example("digits review --repro --gate"))
@click.option("--base", metavar="REV", help="The revision to compare with  [default: main]")
@click.option("--repro", is_flag=True, help="Run `dvc repro` first.")
@click.option("--gate", is_flag=True, help="Exit with 1 when the gate of params.yaml fails.")
@click.option("--out", type=options.FOLDER, help="A folder for the report and DVC's plots.")
@LINK
@options.as_json()
def review(
    base: str | None, repro: bool, gate: bool, out: Path | None, link: str, as_json: bool
) -> None:
    """Compare metrics, params and data with those where this branch left main.

    Prints the report, or a line about it with --out, which writes report.md and report.json.
    """
    from core.files import write_text
    from mlops import dvc
    from mlops.review import render, report

    with options.stdout_for_program(as_json):
        found = report.review(base, repro, link)
    if out:
        broken = found.run and found.run.failed
        told = "" if broken else dvc.plots(found.base.commit, out / "plots")
        found.problems.extend([told] if told else [])
        write_text(out / "report.md", render.write(found))
        write_text(out / "report.json", render.as_json(found))
    if as_json:
        print(render.as_json(found), end="")
    else:
        text = render.write(found)
        print(text.partition("\n")[0].removeprefix("## ") if out else text)
    if found.run and found.run.failed:
        raise DigitsError(f"dvc repro failed at {found.run.failed}; see above")
    if gate and found.reasons:
        raise DigitsError("the gate failed: " + "; ".join(found.reasons))


@click.command(epilog=options.example("digits retrain --out report"))
@click.option("--out", type=options.FOLDER, help="A folder for report.md.")
@LINK
def retrain(out: Path | None, link: str) -> None:
    """Run an experiment that also learns from the labelled digits in data/labelled.

    `digits monitor --labelled data/labelled` brings them there. What the experiment changes in
    params.yaml stands in its section review.retrain. The result is left in the working tree.
    """
    from mlops.review.retrain import main

    main(out, link)


@click.command(epilog=options.example("git merge main", "digits relock", "git commit"))
def relock() -> None:
    """Rebuild a dvc.lock that git could not merge.

    Each stage takes the entry of the side that changed it. `dvc repro` then keeps what is true
    and runs the rest. The commit is left to you.
    """
    from mlops.review.relock import main

    main()
