"""`digits data`: inspect files of digits, and fetch published data sets."""

from pathlib import Path

import click

EXAMPLE = "\b\nExample:\n  {}"


@click.group(epilog=EXAMPLE.format("digits data inspect data/own"))
def data() -> None:
    """Inspect files of digits, or fetch published data sets."""


@data.command(epilog=EXAMPLE.format("digits data inspect data/own/train.csv.gz"))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--script", default="mnist", help="mnist, or a key of params.yaml's foreign.")
def inspect(path: Path, script: str) -> None:
    """Print what files contain, and their block for params.yaml."""
    from core import params
    from digits.sources.inspect import inspect as describe

    task = params.task(params.load())
    print(describe(path, task.image_size, task.classes, script))


@data.command(epilog=EXAMPLE.format("digits data fetch devanagari"))
@click.argument("script", type=click.Choice(["devanagari", "japanese"]))
@click.option("--url", help="Another address of the archive; may be file:///PATH.")
def fetch(script: str, url: str | None) -> None:
    """Download real digits, and configure them in params.yaml."""
    from digits.sources.fetch import fetch as fetch_set

    fetch_set(script, url)
