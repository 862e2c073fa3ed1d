"""Revisions: the files of a release, and their specs in the endpoint's tags."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = ENVIRONMENT = "digits"  # names of the registered assets
KEPT = 10  # revisions whose specs are kept; a resource has at most 50 tags
TAG = "revision."  # prefix of the tags' names


@dataclass(frozen=True)
class Release:
    """The packaged model and the code beside it, of one commit."""

    name: str  # of the deployment; derived from everything that is served
    package: Path  # the model folder
    package_hash: str  # the folder's MD5, as in dvc.lock
    model_version: str | None  # the `model_version` of answers is its beginning; None: unknown
    code: Path
    code_files: tuple[Path, ...]  # tracked by git
    conda: dict[str, Any]
    environment_hash: str
    tags: dict[str, str]  # of the registered model: where it comes from


@dataclass(frozen=True)
class DeploymentSpec:
    """The specification of a revision; it fits into one tag."""

    model: str  # version of the registered model
    code: str  # name:version
    environment: str  # version
    type: str
    count: int
    timeout: float  # seconds
    at_a_time: int
    collect: tuple[str, ...]
    order: int  # of the revisions on this endpoint
    # Maximum number of instances; percent of CPU time below which one is removed; percent above
    # which one is added; minutes of such load, which are also the pause after a change.
    scale: tuple[int, int, int, int] | None = None


def stage_code(release: Release, target: Path) -> Path:
    """Copy the serving code that git tracks into a folder; return the folder."""
    folder = target / release.code.name
    for file in release.code_files:
        place = folder / file.relative_to(release.code)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return folder


def known(endpoint: Any) -> dict[str, DeploymentSpec]:
    """Return the specs of an endpoint's revisions, oldest first."""
    found, names = {}, [field.name for field in dataclasses.fields(DeploymentSpec)]
    for tag, value in endpoint.tags.items():
        if tag.startswith(TAG):
            made = dict(zip(names, json.loads(value), strict=True))
            made["collect"] = tuple(made["collect"])
            made["scale"] = made["scale"] and tuple(made["scale"])
            found[tag.removeprefix(TAG)] = DeploymentSpec(**made)
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def serving(endpoint: Any, states: dict[str, str]) -> str | None:
    """Return the live revision if it runs, even if its last update failed."""
    name = endpoint.tags.get("live")
    if states.get(name) == "succeeded" or (name in states and endpoint.traffic.get(name)):
        return str(name)
    return None


def tags(endpoint: Any, name: str, spec: DeploymentSpec) -> dict[str, str | None]:
    """Return the tags that record a revision, without keys to save space, and drop the oldest.

    Tags of the live and the previous revision stay: traffic may return to them.
    """
    text = json.dumps(dataclasses.astuple(spec), separators=(",", ":"))
    there = known(endpoint)
    needed = (name, endpoint.tags.get("live"), endpoint.tags.get("previous"))
    oldest = [one for one in there if one not in needed][: max(0, len({*there, name}) - KEPT)]
    return {f"{TAG}{one}": None for one in oldest} | {f"{TAG}{name}": text}


def assets(endpoint: Any) -> set[str]:
    """Return the assets of the workspace that an endpoint's revisions use."""
    found = set()
    for name, spec in known(endpoint).items():
        for part in spec.collect:  # what the SDK registers for a collection
            found.add(f"data/{endpoint.name}-{name}-{part}/versions/1")
        code, _, version = spec.code.partition(":")
        found.add(f"codes/{code}/versions/{version}")
        found.add(f"models/{MODEL}/versions/{spec.model}")
        found.add(f"environments/{ENVIRONMENT}/versions/{spec.environment}")
    return found
