"""Options of `digits local`."""

from pathlib import Path

import click

from mlops import options


@click.command(epilog=options.example("digits local"))
@click.option(
    "--folder", type=options.FOLDER, default=".emulator", help="Where everything is kept."
)
def local(folder: Path) -> None:
    """Run production on this machine until Ctrl-C: an emulated workspace and a page to watch it.

    It listens on loopback alone. `--workspace local` of the other commands finds it; what was
    deployed when it last ran comes up again.
    """
    from mlops.dashboard.local import main

    main(folder)
