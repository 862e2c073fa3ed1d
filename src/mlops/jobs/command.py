"""Options of `digits train` and `digits sweep`."""

from types import SimpleNamespace
from typing import Any

import click

from mlops import options

COMPUTE = click.option(
    "--compute", metavar="NAME", help="A cluster, or serverless  [default: azure.job.compute]"
)
ATTACH = click.option("--attach", metavar="JOB", help="Follow a job and fetch what it made.")
CANCEL = click.option("--cancel", metavar="JOB", help="End a job.")


def asked(given: dict[str, Any]) -> SimpleNamespace:
    """Return the options; raise UsageError when a job is to be both followed and ended."""
    if given["attach"] and given["cancel"]:
        raise click.UsageError("--attach and --cancel exclude each other")
    return SimpleNamespace(**given)


@click.command(epilog=options.example("digits train --workspace local", "git diff"))
@options.workspace("azure")
@COMPUTE
@ATTACH
@CANCEL
def train(**given: Any) -> None:
    """Run the pipeline of this commit as one job and place here what it made.

    `dvc repro` then has nothing to do. The job goes on when this command is stopped.
    """
    found = asked(given)
    from mlops.jobs.train import main

    main(found)


@click.command(epilog=options.example("digits sweep -S train.batch_size=32,64 -S epochs=10,20"))
@click.option("-S", "--set", multiple=True, metavar="KEY=VALUE,...", help="Values to try.")
@click.option("--random", type=click.IntRange(1), help="How many, drawn from all combinations.")
@options.workspace("azure")
@COMPUTE
@ATTACH
@CANCEL
def sweep(**given: Any) -> None:
    """Train once for each combination of values, as jobs; each becomes an experiment of DVC.

    `dvc exp show` compares the experiments, `dvc exp apply NAME` takes one.
    """
    found = asked(given)
    if not (found.set or found.attach or found.cancel):
        raise click.UsageError("name what to try: -S train.batch_size=32,64")
    from mlops.jobs.sweep import main

    main(found)
