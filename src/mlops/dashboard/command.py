"""Options of `digits local`."""

from pathlib import Path

import click

from mlops import options


@click.command(epilog=options.example("digits local"))
@click.option(
    "--folder",
    type=options.FOLDER,
    default=".emulator",
    envvar="DIGITS_LOCAL_FOLDER",
    help="Folder of all its files.",
)
def local(folder: Path) -> None:
    """Run an emulated workspace with a live page on this machine, until Ctrl-C.

    It listens on the loopback address only. Use it with `--workspace local` of the other commands.
    Deployments of the last run are started again.
    """
    from mlops.dashboard.local import main

    main(folder)
