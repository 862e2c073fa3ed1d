"""`digits score`: score files of digits as the endpoint would, here or in a workspace."""

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
        words = "{images:,} images in {seconds:.1f} s ({done_before:,} were done before)"
        print(json.dumps(found) if as_json else words.format(**found))


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
        source = scoring.native(source, size, out / "_converted")
    settings = load()
    new = release.read(settings)
    try:
        Batch(Target(connect(kind), settings), new, script).score(source, out)
    except AzureError as error:
        raise DigitsError(explain_error(error)) from error


def local(files: list[Path], out: Path, package: Path, script: str | None) -> dict[str, Any]:
    """Score with a progress bar; return the counts and the seconds."""
    total = scoring.check(files, scoring.manifest(package, script)[1])
    began, scored, before = time.monotonic(), 0, 0
    with tqdm(total=total, unit="image", unit_scale=True, mininterval=1, disable=None) as progress:
        for count, fresh in scoring.score(files, out, package, script):
            progress.update(count)
            scored, before = scored + count * fresh, before + count * (not fresh)
    return {"images": scored, "done_before": before, "seconds": time.monotonic() - began}
