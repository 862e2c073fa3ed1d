"""`digits score FILES --out FOLDER`: files of digits answered as the endpoint would, on all cores.

FILES are Parquet with a column `image`, or CSV; FOLDER gets a folder of Parquet for each. Run the
same command again after Ctrl-C: it goes on. With --workspace, a folder that lies in a datastore
there can be named instead: azureml://datastores/NAME/paths/FOLDER.
"""

import argparse
import signal
import time
from pathlib import Path

from tqdm import tqdm

from core.errors import DigitsError
from digits.production import scoring
from mlops.azure import connection

STORED = "azureml://"


def main(arguments: list[str]) -> None:
    """Score files, here or in a workspace."""
    parser = argparse.ArgumentParser(prog="digits score", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the answers")
    parser.add_argument("--script", help="what the digits are written in, if it is known")
    parser.add_argument("--package", type=Path, default=scoring.PACKAGE, help="the model")
    connection.add_workspace(parser, None)
    asked = parser.parse_args(arguments)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    files = [Path(name) for name in asked.files]
    stored = [name for name in asked.files if name.startswith(STORED)]
    if stored and (len(asked.files) > 1 or asked.workspace is None):
        raise DigitsError(f"{stored[0]}: goes alone, with --workspace")
    if asked.workspace:
        remote(stored[0] if stored else files, asked.out, asked.workspace, asked.script)
    else:
        print(local(files, asked.out, asked.package, asked.script))


def remote(source: list[Path] | str, out: Path, kind: str, script: str | None) -> None:
    """Score with the model of this commit in a workspace."""
    from azure.core.exceptions import AzureError  # here, since the SDK takes seconds to load

    from mlops.azure.endpoint import Target
    from mlops.azure.errors import explained
    from mlops.azure.settings import load
    from mlops.azure.workspace import connect
    from mlops.deploy import release
    from mlops.production import batch_endpoint

    size = scoring.manifest(release.PACKAGE, script)[1]
    if not isinstance(source, str):
        scoring.check(source, size)
    settings = load()
    new = release.read(settings)
    try:
        target = Target(connect(kind), settings)
        batch_endpoint.Batch(target, new, script).score(source, out)
    except AzureError as error:
        raise DigitsError(explained(error)) from error


def local(files: list[Path], out: Path, package: Path, script: str | None) -> str:
    """Score with a progress bar; return what it came to."""
    total = scoring.check(files, scoring.manifest(package, script)[1])
    began, loaded, first, scored, before = time.monotonic(), None, 0, 0, 0
    with tqdm(total=total, unit="image", unit_scale=True, mininterval=1, disable=None) as progress:
        for count, fresh in scoring.score(files, out, package, script):
            progress.update(count)
            scored, before = scored + count * fresh, before + count * (not fresh)
            if fresh and loaded is None:
                loaded, first = time.monotonic(), count
    seconds, now = time.monotonic() - began, time.monotonic()
    told = f"{scored:,} images in {seconds:.1f} s ({before:,} were done before)"
    if loaded and scored > first:
        rate = (scored - first) / (now - loaded)
        told += f", {scored / seconds:,.0f} a second, {rate:,.0f} once the model was loaded"
    return told
