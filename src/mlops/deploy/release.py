"""The release: model and code of this commit, or why they cannot be deployed."""

import hashlib
import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from core import params
from core.errors import DigitsError
from core.files import sha256
from mlops import dvc, git
from mlops.azure.revisions import Release
from mlops.azure.settings import Params
from mlops.review import compare, gate, snapshot

PACKAGE = Path("data/package")
MODEL, SMOKE = PACKAGE / "MLmodel", PACKAGE / "smoke.jsonl"
MANIFEST = PACKAGE / "data" / "model" / "manifest.json"
LOCK = Path("dvc.lock")
TAG_LENGTH = 256  # Azure's limit for the value of a tag


def folder_hash(folder: Path) -> str:
    """Return a folder's hash as DVC computes it: the MD5 of its listing."""
    entries = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            entries.append({"md5": digest, "relpath": path.relative_to(folder).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(listing, usedforsecurity=False).hexdigest() + ".dir"


def refuse_dirty() -> None:
    """Raise DigitsError when the working tree differs from HEAD."""
    if dirty := git.changed("."):
        raise DigitsError(
            f"uncommitted changes ({dirty[0]}). Commit or stash them, so that the deployment is "
            "reproducible."
        )


def described(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file; raise DigitsError when there is none."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
        return dict(values)
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found; see .github/MAKE_IT_YOURS.md") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DigitsError(f"{path}: expected a mapping of keys to values: {reason}") from None


def pull_request(subject: str) -> str:
    """Return the number of the pull request that a commit merged, from its subject, or none."""
    found = re.search(r"\(#(\d+)\)$|^Merge pull request #(\d+)", subject)
    return found[1] or found[2] if found else "none"


def read(settings: Params) -> Release:
    """Return the release of this commit.

    Raises DigitsError when changes are uncommitted, or the model is not that of dvc.lock.
    """
    refuse_dirty()
    stages = dvc.stages(LOCK.read_bytes()).values()
    outs = {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", ())}
    package_hash = outs.get(PACKAGE.as_posix(), "")
    if not PACKAGE.is_dir():
        raise DigitsError(f"{PACKAGE}: not found; run `dvc repro` or `dvc pull`")
    for cache in PACKAGE.rglob("__pycache__"):  # left by loading it in place; DVC ignores it, too
        shutil.rmtree(cache, ignore_errors=True)
    if folder_hash(PACKAGE) != package_hash:
        raise DigitsError(
            f"{PACKAGE}: differs from {LOCK} at this commit; run `dvc repro`, or "
            f"`dvc checkout --force {PACKAGE.as_posix()}`"
        )
    tracked = git.run("ls-files", "-z", "--", settings.code).split("\0")
    code_files = tuple(Path(name) for name in tracked if name)
    if Path(settings.code, "score.py") not in code_files:
        raise DigitsError(f"{params.PATH}: azure.code: git has no {settings.code}/score.py")
    conda = described(PACKAGE / "conda.yaml")
    environment = hashlib.sha256(json.dumps([settings.image, conda]).encode()).hexdigest()[:12]
    served = ("instance_type", "instance_count", "request_timeout_seconds", "requests_at_a_time")
    shape: list[Any] = [getattr(settings, name) for name in (*served, "collections")]
    if settings.autoscale:
        shape.append(asdict(settings.autoscale))
    shape += [package_hash, environment, [(file.as_posix(), sha256(file)) for file in code_files]]
    digest = hashlib.sha256(json.dumps(shape).encode()).hexdigest()
    metrics, model = Path(snapshot.METRICS), described(MODEL) if MODEL.exists() else {}
    tags = {
        "commit": git.run("rev-parse", "HEAD").strip(),
        "dvc_lock_sha256": sha256(LOCK),
        "package": package_hash,
        "pull_request": pull_request(git.run("log", "-1", "--format=%s").strip()),
    }
    data = described(MANIFEST).get("data", {}) if MANIFEST.exists() else {}
    tags |= {f"data.{name}": str(value) for name, value in data.items()}
    for source, values in (described(metrics) if metrics.exists() else {}).items():
        tags |= {f"{source}.{name}": str(value) for name, value in values.items()}
    return Release(
        name=f"r{digest[:10]}",
        package=PACKAGE,
        package_hash=package_hash,
        model_version=model.get("model_uuid"),
        code=Path(settings.code),
        code_files=code_files,
        conda=conda,
        environment_hash=environment,
        tags={name: value[:TAG_LENGTH] for name, value in tags.items()},
    )


def gate_reasons(live: str | None) -> list[str]:
    """Return why the metrics of this commit fail the gate of the review; nothing if they pass.

    They are compared with the metrics at the live commit, so that a failed gate also stops the next
    push. If git lacks that commit, the base is the merge base, on main the first parent.
    """
    base = git.find_base(None)
    if base.commit == git.commit("HEAD"):  # main has newer commits
        base = git.find_base("HEAD^")
    commit = live if live and git.commit(live) else base.commit
    after = snapshot.read(lambda name: git.show("HEAD", name), "at this commit")
    before = snapshot.Snapshot()
    if commit:
        before = snapshot.read(lambda name: git.show(commit, name), f"at {commit[:10]}")
    rules = params.section(gate.Params, after.params, "review").gate
    reasons = [base.description] if base.unresolvable and not commit else []
    head = git.commit("HEAD")
    if live and live != head and git.git("merge-base", "--is-ancestor", "HEAD", live) is not None:
        # For instance, an older run of deploy.yml is approved after a newer one.
        reasons.append(f"{live[:10]} is live and newer; `digits deploy rollback` goes back")
    return reasons + gate.judge(compare.metrics(before, after, {}, rules), rules)


def refuse_bad_metrics(live: str | None) -> None:
    """Raise DigitsError when this commit fails the gate."""
    reasons = gate_reasons(live)
    if reasons:
        base = f"digits review --base {live}" if live and git.commit(live) else "digits review"
        raise DigitsError(
            f"the gate failed: {'; '.join(reasons)}; `{base}` shows the comparison, "
            f"section `review` of {params.PATH} holds the bounds"
        )


def reserved(per_instance: int, instances: int) -> int:
    """Return how many cores of quota one deployment takes.

    Azure reserves 20 % more instances, rounded up, for upgrades:
    learn.microsoft.com/azure/machine-learning/how-to-manage-quotas.
    """
    return per_instance * math.ceil(instances * 6 / 5)
