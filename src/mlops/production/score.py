"""`digits score FILES --out FOLDER`: files of digits answered as the endpoint would, on all cores.

FILES are of any format that `digits data inspect` knows; FOLDER gets a folder of Parquet for
each. Run the same command again after Ctrl-C: it goes on. With --workspace, a folder that lies in
a datastore there can be named instead: azureml://datastores/NAME/paths/FOLDER.
"""

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from core import console
from core.errors import DigitsError
from digits.production import scoring


def main(
    source: list[Path] | str,
    workspace: str | None,
    out: Path,
    script: str | None,
    package: Path,
    as_json: bool,
) -> None:
    """Score files here or in a workspace, where `source` may be the address of a folder."""
    console.interrupt_on_signals()
    if workspace:
        remote(source, out, workspace, script)
    elif not isinstance(source, str):
        found = local(source, out, package, script)
        print(json.dumps(found) if as_json else summary(**found))


def remote(source: list[Path] | str, out: Path, kind: str, script: str | None) -> None:
    """Score with the model of this commit in a workspace."""
    from azure.core.exceptions import AzureError  # here, since the SDK takes seconds to load

    from mlops.azure.batch import Batch
    from mlops.azure.endpoint import Target
    from mlops.azure.errors import explain_error
    from mlops.azure.settings import load
    from mlops.azure.workspace import connect
    from mlops.deploy import release

    size = scoring.manifest(release.PACKAGE, script)[1]
    if not isinstance(source, str):
        scoring.check(source, size, upload=True)
    settings = load()
    new = release.read(settings)
    try:
        target = Target(connect(kind), settings)
        Batch(target, new, script).score(source, out)
    except AzureError as error:
        raise DigitsError(explain_error(error)) from error


def local(files: list[Path], out: Path, package: Path, script: str | None) -> dict[str, Any]:
    """Score with a progress bar; return the counts, the seconds and the rate of the model."""
    total = scoring.check(files, scoring.manifest(package, script)[1])
    began, loaded, first, scored, before = time.monotonic(), None, 0, 0, 0
    with tqdm(total=total, unit="image", unit_scale=True, mininterval=1, disable=None) as progress:
        for count, fresh in scoring.score(files, out, package, script):
            progress.update(count)
            scored, before = scored + count * fresh, before + count * (not fresh)
            if fresh and loaded is None:
                loaded, first = time.monotonic(), count
    seconds, now = time.monotonic() - began, time.monotonic()
    rate = (scored - first) / (now - loaded) if loaded and scored > first else None
    return {"images": scored, "done_before": before, "seconds": seconds, "images_a_second": rate}


def summary(images: int, done_before: int, seconds: float, images_a_second: float | None) -> str:
    """Return what `local` returns in words."""
    said = f"{images:,} images in {seconds:.1f} s ({done_before:,} were done before)"
    if images_a_second:
        said += f", {images / seconds:,.0f} a second, "
        said += f"{images_a_second:,.0f} once the model was loaded"
    return said
