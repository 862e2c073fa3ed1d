"""`digits data`: what files of digits are, and published sets of real ones."""

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Look at files of digits, or fetch published ones."""


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--script", default="mnist", help="The key of params.yaml's foreign; or mnist.")
def inspect(path: Path, script: str) -> None:
    """Say what a file or folder holds, and print the block of params.yaml that reads it."""
    from core import params
    from digits.sources.inspect import inspect as describe

    task = params.task(params.load())
    print(describe(path, task.image_size, task.classes, script))
