"""Options of `digits score`, `digits simulate` and `digits monitor`."""

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from mlops import options

STORED = "azureml://"
TIMES = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d")  # in UTC


class Speed(click.ParamType):
    """A factor above 0, or `max`, which becomes None."""

    name = "factor"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | None:
        """Convert the text of the command line."""
        try:
            factor = None if value == "max" else float(value)
        except ValueError:
            factor = 0.0
        if factor is not None and not 0 < factor < float("inf"):
            self.fail(f"{value!r} is neither a number above 0 nor max.", param, ctx)
        return factor


@click.command(epilog=options.example("digits score scans.parquet --out answers"))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=options.FOLDER, required=True, help="The folder of the answers.")
@click.option("--script", help="The script of the digits, if known.")
@click.option("--package", type=options.FOLDER, default="data/package", help="The model folder.")
@options.workspace(None)
@options.as_json
def score(files: tuple[str, ...], workspace: str | None, **given: Any) -> None:
    """Score files of digits as the endpoint would, here or by a batch endpoint of a workspace.

    A FILE has any format that `digits data inspect` reads, or is a folder of pictures. With
    --workspace it may also be a folder of Parquet with a column `image` in a datastore,
    azureml://datastores/NAME/paths/FOLDER. After Ctrl-C, run the same command again to continue.
    """
    stored = any(name.startswith(STORED) for name in files)
    if stored and (len(files) > 1 or workspace is None):
        raise click.UsageError(f"{STORED}...: give it alone and with --workspace")
    if workspace and given["as_json"]:
        raise click.UsageError("--json cannot be used with --workspace")
    from mlops.production.score import main

    main(files[0] if stored else [Path(name) for name in files], workspace, **given)


@click.command(
    epilog=options.example(
        "digits simulate --workspace local --speed 3600",
        "digits simulate --url https://HOST/score --key-file key.txt --speed max",
    )
)
@options.workspace("azure")
@click.option("--endpoint", metavar="NAME", help="[default: that of params.yaml]")
@click.option("--url", help="Any endpoint's address, instead of one in a workspace.")
@click.option("--key-file", type=options.FILE, help="A file with the key of --url.")
@click.option(
    "--speed",
    type=Speed(),
    metavar="FACTOR",
    default="1",
    help="3600: an hour per second; max: as fast as possible.",
)
@click.option("--from", "phase", metavar="PHASE", help="The first phase to send.")
@click.option("--requests", type=click.IntRange(1), help="Maximum number of requests.")
@click.option("--concurrency", type=click.IntRange(1), help="[default: the endpoint's limit]")
@click.option("--resume", is_flag=True, help="Continue the interrupted run.")
def simulate(**given: Any) -> None:
    """Send the traffic of params.yaml to an endpoint, and its true labels to the workspace.

    With --url no labels are written.
    """
    asked = SimpleNamespace(**given)
    if (asked.url is None) != (asked.key_file is None):
        raise click.UsageError("--url and --key-file go together")
    if asked.url and not asked.url.startswith(("http://", "https://")):
        raise click.UsageError(f"--url {asked.url}: begin it with https:// or http://")
    from mlops.production.simulate import main

    main(asked)


@click.command(
    epilog=options.example(
        "digits monitor --workspace local --out look",
        "digits monitor --production data/production",
    )
)
@options.workspace("azure")
@click.option("--endpoint", metavar="NAME", help="[default: the one that is deployed]")
@click.option(
    "--production",
    type=options.FOLDER,
    help="A folder with requests.parquet and labels.parquet, instead of a workspace.",
)
@click.option("--since", type=click.DateTime(TIMES), help="[default: the first request]")
@click.option("--reference", type=options.FILE, default="data/monitoring/reference.json")
@click.option("--out", type=options.FOLDER, help="A folder for report.html and monitoring.json.")
@click.option("--labelled", type=options.FOLDER, help="A folder for the digits that have labels.")
@options.as_json
def monitor(**given: Any) -> None:
    """Test collected requests for drift. The exit code is 0 with and without drift.

    --labelled writes one CSV per script, for training by `digits retrain`.
    """
    if given["production"] and given["since"]:
        raise click.UsageError("--since cannot be used with --production")
    if given["since"]:
        given["since"] = given["since"].replace(tzinfo=datetime.UTC)
    from mlops.production.monitor import main

    main(SimpleNamespace(**given))
