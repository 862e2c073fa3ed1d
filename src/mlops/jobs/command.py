"""The commands `digits train` and `digits sweep` and their options."""

from types import SimpleNamespace
from typing import Any

import click

from mlops import options

COMPUTE = click.option(
    "--compute", metavar="NAME", help="A cluster, or serverless  [default: azure.job.compute]"
)
ATTACH = click.option("--attach", metavar="JOB", help="Follow a job and download its results.")
CANCEL = click.option("--cancel", metavar="JOB", help="Cancel a job.")


def asked(given: dict[str, Any]) -> SimpleNamespace:
    """Return the options; raise UsageError when both --attach and --cancel are given."""
    if given["attach"] and given["cancel"]:
        raise click.UsageError("--attach and --cancel exclude each other")
    return SimpleNamespace(**given)


@click.command(epilog=options.example("digits train --workspace local", "git diff"))
@options.workspace("azure")
@COMPUTE
@ATTACH
@CANCEL
def train(**given: Any) -> None:
    """Run the pipeline of this commit as a job, and download its results into this clone.

    `dvc repro` then has nothing to run. The job continues when this command is interrupted.
    """
    found = asked(given)
    from mlops.jobs.train import main

    main(found)


@click.command(epilog=options.example("digits sweep -S train.batch_size=32,64 -S epochs=10,20"))
@click.option("-S", "--set", multiple=True, metavar="KEY=VALUE,...", help="Values to try.")
@click.option("--random", type=click.IntRange(1), help="Number of random combinations to try.")
@options.workspace("azure")
@COMPUTE
@ATTACH
@CANCEL
def sweep(**given: Any) -> None:
    """Train with each combination of values, as jobs; each result becomes a DVC experiment.

    Compare the experiments with `dvc exp show`; apply one with `dvc exp apply NAME`.
    """
    found = asked(given)
    if not (found.set or found.attach or found.cancel):
        raise click.UsageError("expected values to try: -S train.batch_size=32,64")
    from mlops.jobs.sweep import main

    main(found)
