"""What is to be deployed: settings, and the model and code of this commit, or why not."""

import hashlib
import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from core import params
from core.errors import DigitsError
from core.files import sha256
from mlops import git as history
from mlops.review import compare, gate, snapshot

PACKAGE = Path("data/package")
METRICS = Path("data/evaluation/metrics.json")
TEST = Path("data/prepared/test.npz")
LOCK = Path("dvc.lock")
CODE = ("score.py", "request.py")  # what is uploaded; the rest travels in the model folder
TAG_LENGTH = 256  # of a value, as Azure allows
RECORDED = 130  # of it for size and collections; the rest of a revision's record takes no more
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Smoke:
    """How the new deployment is asked before it gets traffic, and at each step of it."""

    __pydantic_config__ = params.STRICT

    digits: Annotated[int, Field(ge=1, le=10_000)]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    latency_seconds: Positive  # of the slowest answer


@dataclass(frozen=True)
class Autoscale:
    """When instances beyond `instance_count` come and go."""

    __pydantic_config__ = params.STRICT

    most: Annotated[int, Field(ge=2, le=100)]  # instances
    cpu_percent: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=99)]]
    minutes: Annotated[int, Field(ge=5, le=720)]

    def __post_init__(self) -> None:
        """Between the bounds nothing happens; without a gap instances come and go for ever."""
        if self.cpu_percent[0] >= self.cpu_percent[1]:
            raise ValueError("cpu_percent must be [less, more]")


@dataclass(frozen=True)
class Job:
    """Where `digits train` and `digits sweep` run the pipeline."""

    __pydantic_config__ = params.STRICT

    compute: str | None  # a cluster's name; None is serverless, which costs nothing when idle
    instance_type: str  # of serverless
    gpu: bool  # then TensorFlow is installed with CUDA
    nodes: Annotated[int, Field(ge=1, le=64)]
    timeout_hours: Annotated[float, Field(gt=0, le=168)]


@dataclass(frozen=True)
class Batch:
    """Where a batch endpoint scores files."""

    __pydantic_config__ = params.STRICT

    compute: Annotated[str, Field(min_length=1)]
    instances: Annotated[int, Field(ge=1, le=100)]
    processes: Annotated[int, Field(ge=1, le=100)]  # of each
    retries: Annotated[int, Field(ge=0, le=10)]  # of a file
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)]  # of a file


@dataclass(frozen=True)
class Params:
    """params.yaml's section `azure`."""

    __pydantic_config__ = params.STRICT

    endpoint: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,22}$")]
    strategy: Literal["blue_green", "in_place"]
    traffic_percent: tuple[Annotated[int, Field(ge=1, le=100)], ...]
    step_seconds: Annotated[float, Field(ge=0)]
    smoke: Smoke
    auth_mode: Literal["key", "aml_token", "aad_token"]
    public_access: bool
    instance_type: str
    instance_count: Annotated[int, Field(ge=1, le=100)]
    autoscale: Autoscale | None
    price_an_hour: Positive | None
    request_timeout_seconds: Annotated[float, Field(ge=0.5, le=180)]
    requests_at_a_time: Annotated[int, Field(ge=1, le=1000)]
    image: Annotated[str, Field(pattern=r"^[^ ]+(:|@sha256:)[^:/ ]+$")]
    verify: Literal["reproduce", "restore"]
    code: str
    identity: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]{2,127}$")] | None
    collections: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...]
    collection_days: Annotated[int, Field(ge=1, le=3650)] | None
    lease_seconds: Annotated[int, Field(ge=15, le=60)]  # what a blob's lease may last
    job: Job
    batch: Batch

    def __post_init__(self) -> None:
        """Traffic must grow, and end with all of it; the image must stay what it is."""
        if self.autoscale and self.autoscale.most <= self.instance_count:
            raise ValueError("autoscale.most must be more than instance_count")
        if len(self.instance_type) + sum(len(name) + 3 for name in self.collections) > RECORDED:
            raise ValueError(
                "instance_type and collections are too long for the record of a revision: "
                f"{RECORDED} characters in all, 3 for each collection included"
            )
        if self.image.endswith(":latest"):
            raise ValueError("image must be pinned by a digest or a dated tag, not latest")
        steps = self.traffic_percent
        if not steps or steps[-1] != 100 or list(steps) != sorted(set(steps)):
            raise ValueError("traffic_percent must grow from step to step and end with 100")


@dataclass(frozen=True)
class Release:
    """The packaged model and the code beside it, of one commit."""

    name: str  # of the deployment; it stands for all that is served
    package_hash: str  # of the folder, as dvc.lock has it
    model_version: str  # what the model's answers begin with
    code: Path
    code_files: tuple[Path, ...]  # as git has them
    conda: dict[str, Any]
    environment_hash: str
    tags: dict[str, str]  # of the registered model: where it comes from


def git(*arguments: str) -> str:
    """Return what git prints; raise DigitsError when it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise DigitsError(f"git {arguments[0]}: {done.stderr.strip()}; run from the repository")
    return done.stdout


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
    """Raise DigitsError when the working tree is not what git has at HEAD."""
    dirty = git("status", "--porcelain").splitlines()
    if dirty:
        raise DigitsError(
            f"the tree is dirty ({dirty[0].strip()}); commit or undo, so that what is made of it "
            "can be made again"
        )


def pull_request(subject: str) -> str:
    """Return the number of the pull request that a commit merged, by GitHub's subjects, or none."""
    found = re.search(r"\(#(\d+)\)$|^Merge pull request #(\d+)", subject)
    return found[1] or found[2] if found else "none"


def read(settings: Params) -> Release:
    """Return the release of this commit.

    Raises DigitsError when the tree is dirty, or the model is not that of dvc.lock.
    """
    refuse_dirty()
    stages = yaml.safe_load(LOCK.read_text("utf-8"))["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}
    package_hash = outs.get(PACKAGE.as_posix(), "")
    if not PACKAGE.is_dir():
        raise DigitsError(f"{PACKAGE}: not found; run `dvc repro` or `dvc pull`")
    for cache in PACKAGE.rglob("__pycache__"):  # of who loaded it in place; DVC ignores it, too
        shutil.rmtree(cache, ignore_errors=True)
    if folder_hash(PACKAGE) != package_hash:
        raise DigitsError(
            f"{PACKAGE}: its bytes are not those of {LOCK} at this commit; run `dvc repro`, or "
            f"`dvc checkout --force {PACKAGE.as_posix()}`"
        )
    manifest = json.loads((PACKAGE / "data" / "model" / "manifest.json").read_text("utf-8"))
    tracked = git("ls-files", "-z", settings.code).split("\0")
    code_files = tuple(Path(name) for name in tracked if Path(name).name in CODE)
    if Path(settings.code, "score.py") not in code_files:
        raise DigitsError(f"{params.PATH}: azure.code: git has no {settings.code}/score.py")
    conda = yaml.safe_load((PACKAGE / "conda.yaml").read_text("utf-8"))
    environment = hashlib.sha256(json.dumps([settings.image, conda]).encode()).hexdigest()[:12]
    served = ("instance_type", "instance_count", "request_timeout_seconds", "requests_at_a_time")
    shape: list[Any] = [getattr(settings, name) for name in (*served, "collections")]
    if settings.autoscale:
        shape.append(asdict(settings.autoscale))
    shape += [package_hash, environment, [(file.as_posix(), sha256(file)) for file in code_files]]
    digest = hashlib.sha256(json.dumps(shape).encode()).hexdigest()
    head = git("rev-parse", "HEAD").strip()
    measured = json.loads(METRICS.read_text("utf-8")) if METRICS.exists() else {}
    tags = {
        "commit": head,
        "dvc_lock_sha256": sha256(LOCK),
        "package": package_hash,
        "pull_request": pull_request(git("log", "-1", "--format=%s").strip()),
    }
    tags |= {f"data.{name}": str(value) for name, value in manifest.get("data", {}).items()}
    for source, values in measured.items():
        tags |= {f"{source}.{name}": str(value) for name, value in values.items()}
    return Release(
        name=f"r{digest[:10]}",
        package_hash=package_hash,
        model_version=manifest["model_sha256"],
        code=Path(settings.code),
        code_files=code_files,
        conda=conda,
        environment_hash=environment,
        tags={name: value[:TAG_LENGTH] for name, value in tags.items()},
    )


def gate_reasons(live: str | None) -> list[str]:
    """Return why the metrics of this commit fail the gate of the review; nothing if they pass.

    They are compared with those at the commit of what is live: what one push was refused for, the
    next one is refused for, too. Where git does not know it, with those where this branch began,
    on main with the first parent's.
    """
    base = history.find_base(None)
    if base.commit == history.commit("HEAD"):  # main has gone on since
        base = history.find_base("HEAD^")
    commit = live if live and history.commit(live) else base.commit
    after = snapshot.read(lambda name: history.show("HEAD", name), "at this commit")
    before = snapshot.Side()
    if commit:
        before = snapshot.read(lambda name: history.show(commit, name), f"at {commit[:10]}")
    rules = params.section(gate.Params, after.params, "review").gate
    reasons = [base.said] if base.broken and not commit else []
    return reasons + gate.judge(compare.metrics(before, after), rules)


def refuse_bad_metrics(live: str | None) -> None:
    """Raise DigitsError when this commit fails the gate."""
    reasons = gate_reasons(live)
    if reasons:
        base = f"digits review --base {live}" if live and history.commit(live) else "digits review"
        raise DigitsError(
            f"the gate failed: {'; '.join(reasons)}; `{base}` shows the comparison, "
            f"section `review` of {params.PATH} holds the bounds"
        )


def reserved(per_instance: int, instances: int) -> int:
    """Return how many cores of quota one deployment takes.

    Azure takes a fifth more instances, rounded up to whole ones, to upgrade them:
    learn.microsoft.com/azure/machine-learning/how-to-manage-quotas.
    """
    return per_instance * math.ceil(instances * 6 / 5)


def stage_code(release: Release, target: Path) -> Path:
    """Copy what git has of the serving code, and no more, into a folder; return it."""
    folder = target / release.code.name
    for file in release.code_files:
        place = folder / file.relative_to(release.code)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return folder


def load() -> tuple[Params, params.Task]:
    """Return params.yaml's section `azure` and its top-level values."""
    values = params.load()
    return params.section(Params, values, "azure"), params.task(values)
