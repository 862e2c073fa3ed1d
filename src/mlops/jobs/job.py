"""One job of Azure ML or its stand-in: what it is made of, its log, and what it left.

Its code is what git has at HEAD, its environment has the versions of requirements-dev.txt, and
its data comes from the container `review`. Log and outputs lie in the workspace's own store,
below ExperimentRun/dcid.NAME, as Azure lays them out.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from azure.ai.ml import TensorFlowDistribution, command
from azure.ai.ml.entities import Environment, ManagedIdentityConfiguration
from azure.core.exceptions import (
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobProperties, ContainerClient

from core import params
from core.console import hidden_stderr
from core.errors import DigitsError
from core.files import write_text
from mlops.azure.errors import LOGS, explained
from mlops.azure.workspace import Workspace, connect, quiet, store
from mlops.deploy import release
from mlops.deploy.release import Params, git
from mlops.jobs import results

LOCK = Path("requirements-dev.txt")  # what runs DVC, and all that stages import
EXPERIMENT = "digits"  # as stage train names it, too
METRIC = "mnist.accuracy"  # that a sweep wants high
ENDED = {"Completed", "Failed", "Canceled", "NotResponding"}
RAW = ("mnist", "foreign")  # stages that read npm's packages
SECONDS_AN_HOUR = 3600


def commit() -> str:
    """Return the commit that a job is to run; raise DigitsError when others cannot get it."""
    release.refuse_dirty()
    head = git("rev-parse", "HEAD").strip()
    if not git("for-each-ref", "--count=1", "--contains", head, "refs/remotes/origin").strip():
        raise DigitsError(
            f"commit {head[:10]} is not on origin, so nobody could tell later what the job ran; "
            "`git push origin HEAD` first"
        )
    return head


def write_code(target: Path) -> Path:
    """Write what git has at HEAD into a folder; return it."""
    archive = target / "code.zip"
    git("archive", "--format=zip", f"--output={archive}", "HEAD")
    with zipfile.ZipFile(archive) as file:
        file.extractall(target / "code")
    (target / "code" / ".amlignore").touch()  # or the SDK would leave out what .gitignore names
    return target / "code"


def environment(settings: Params, python: str) -> Environment:
    """Return the environment: the pinned image, and every package of the lock."""
    pins = re.findall(r"^\S+==.+?(?= \\$)", LOCK.read_text("utf-8"), re.M)
    if settings.job.gpu:
        pins = [re.sub(r"^tensorflow-cpu==", "tensorflow[and-cuda]==", pin) for pin in pins]
    parts: list[Any] = [f"python={python}", "pip", {"pip": pins}]
    conda = {"name": "job", "channels": ["conda-forge"], "dependencies": parts}
    digest = hashlib.sha256(json.dumps([settings.image, conda]).encode()).hexdigest()[:12]
    return Environment(name="digits-job", version=digest, image=settings.image, conda_file=conda)


def define(
    workspace: Workspace,
    settings: Params,
    folder: Path,
    words: str = "",
    inputs: dict[str, str] | None = None,
) -> Any:
    """Return the job that runs this commit; what it needs lies in `folder` until submitted."""
    wanted, head = settings.job, commit()
    if wanted.compute:
        try:
            cluster = workspace.client.compute.get(wanted.compute)
        except ResourceNotFoundError:
            raise DigitsError(
                f"the workspace has no compute {wanted.compute}: `az ml compute create --type "
                "amlcompute --min-instances 0 ...` makes it, compute: null needs none"
            ) from None
        if getattr(cluster, "min_instances", 0):
            print(f"{wanted.compute} keeps {cluster.min_instances} nodes, which cost while idle.")
    python = yaml.safe_load(params.PATH.read_text("utf-8"))["package"]["python"]
    # Given here, not set later: a sweep's trials have what `command` was called with.
    distribution = TensorFlowDistribution(worker_count=wanted.nodes) if wanted.nodes > 1 else None
    return command(
        name=f"digits-{head[:8]}-{secrets.token_hex(4)}",
        experiment_name=EXPERIMENT,
        code=str(write_code(folder)),
        command=f"python -m mlops.jobs.worker {words}".strip(),
        inputs=inputs,
        environment=environment(settings, python),
        environment_variables={
            "PYTHONPATH": "src",
            "PYTHONUNBUFFERED": "1",  # or the log would come when a stage ends
            "DIGITS_ACCOUNT": account(workspace),
            "DIGITS_COMMIT": head,
        },
        tags={"commit": head},
        compute=wanted.compute,
        instance_type=None if wanted.compute else wanted.instance_type,
        instance_count=wanted.nodes,
        distribution=distribution,
        timeout=int(wanted.timeout_hours * SECONDS_AN_HOUR),
        identity=ManagedIdentityConfiguration(),
    )


def parts(batch_size: int, nodes: int) -> list[int]:
    """Return the parts of a batch, in digits, that batch normalisation sees one at a time.

    They are those of modules training, on one machine, and distributed. Raises DigitsError when
    the nodes cannot share a batch evenly.
    """
    if nodes == 1:
        return [batch_size // 2, batch_size - batch_size // 2]
    with hidden_stderr():  # TensorFlow's notes; it takes seconds to load
        from digits.model.distributed import PART
    share, left = divmod(batch_size, nodes)
    if left:
        raise DigitsError(
            f"{params.PATH}: train.batch_size of {batch_size} is not to be shared evenly by "
            f"azure.job.nodes, {nodes}; make it a multiple"
        )
    count = 1 if share % 2 else max(1, min(2, share // PART))
    return [share // count] * count * nodes


def other_bytes(settings: Params, batch_sizes: list[int] | None = None) -> list[str]:
    """Return a line about each size of a batch with which the nodes end with other bytes than one.

    `nodes` is in no stage's params, so nothing else would tell. The size is that of params.yaml,
    unless some are given.
    """
    nodes, lines = settings.job.nodes, []
    if nodes == 1:
        return []
    with hidden_stderr():  # TensorFlow's notes; it takes seconds to load
        from digits.model.training import Recipe
    for size in batch_sizes or [params.section(Recipe, params.load(), "train").batch_size]:
        if parts(size, nodes) != (alone := parts(size, 1)):
            line = (
                f"Batches of {size}: {nodes} nodes take parts of {parts(size, nodes)[0]} digits, "
                f"one machine of {alone[0]}: the model's bytes will not be those that one makes"
            )
            if settings.verify == "reproduce":
                keeping = "1 or 2" if size % 2 == 0 and parts(size, 2) == alone else "1"
                line += (
                    ", and deploy.yml will refuse it, as azure.verify is reproduce; make that "
                    f"restore, or azure.job.nodes {keeping}"
                )
            lines.append(f"{line}.")
    return lines


def submit(workspace: Workspace, job: Any) -> str:
    """Submit a job; return its name."""
    with quiet():
        return str(workspace.client.jobs.create_or_update(job).name)


def commit_of(workspace: Workspace, name: str) -> str:
    """Return the commit that a job runs, as its tag tells."""
    return str((workspace.client.jobs.get(name).tags or {}).get("commit", "unknown"))


def account(workspace: Workspace) -> str:
    """Return the account of the container `review`: the workspace's, or AZURE_STORAGE_ACCOUNT."""
    own = store(workspace)
    other = os.environ.get("AZURE_STORAGE_ACCOUNT") if workspace.kind != "local" else None
    if other and other != own.account_name:
        url = workspace.blobs.format(own.account_name)
        with (
            contextlib.suppress(HttpResponseError),
            ContainerClient(url, results.REMOTE, credential=own.credential) as container,
        ):
            other = None if container.exists() else other
    return other or str(own.account_name)


def remote(workspace: Workspace) -> dict[str, str]:
    """Return how DVC reaches the container `review`: as oneself, or by the stand-in's key."""
    name = account(workspace)
    if workspace.kind != "local":
        return {"account_name": name, "connection_string": ""}  # not that of `make storage`
    url = workspace.blobs.format(name)
    named = f"AccountName={name};AccountKey={store(workspace).credential.account_key}"
    return {"connection_string": f"DefaultEndpointsProtocol=http;{named};BlobEndpoint={url};"}


@functools.cache
def kept(workspace: Workspace) -> ContainerClient:
    """Return the container that has the jobs' logs and outputs."""
    return store(workspace, "workspaceartifactstore")


@dataclass
class Log:
    """What a job has written, read as it grows."""

    workspace: Workspace
    name: str
    read: int = 0  # bytes
    rest: bytes = b""  # of a line that has no end yet

    def more(self, ended: bool) -> Iterator[str]:
        """Yield the lines that are new; when the job has ended the unfinished one too."""
        container = kept(self.workspace)
        first = next(iter(logs(self.workspace, self.name)), None)
        if first is not None and first.size > self.read:
            new = container.download_blob(first.name, offset=self.read).readall()
            self.read += len(new)
            self.rest += new
        *lines, self.rest = self.rest.split(b"\n")
        if ended and self.rest:
            lines, self.rest = [*lines, self.rest], b""
        yield from (line.decode("utf-8", errors="replace").rstrip("\r") for line in lines)


def logs(workspace: Workspace, name: str) -> list[BlobProperties]:
    """Return the logs of a job, one a node, the first node's first."""
    found = kept(workspace).list_blobs(name_starts_with=f"{place(name)}/user_logs/")
    return sorted(found, key=lambda blob: blob.name)


def place(name: str) -> str:
    """Return the folder of a job in the workspace's store."""
    return f"ExperimentRun/dcid.{name}"


def follow(workspace: Workspace, name: str, more: Callable[[bool], Iterator[str]]) -> str:
    """Print how a job stands and what `more` tells, until it ends; return its status."""
    start, last = time.monotonic(), ""
    try:
        while True:
            found = workspace.client.jobs.get(name).status
            status = str(getattr(found, "value", found))
            if status != last:
                print(f"{name}: {status} after {time.monotonic() - start:.0f} s", flush=True)
                last = status
            for line in more(status in ENDED):
                print(f"  {line}", flush=True)
            if status in ENDED:
                return status
            time.sleep(workspace.poll_seconds)
    except KeyboardInterrupt:
        again = f"--workspace {workspace.kind} --attach {name}"
        print(f"{name} goes on: `{again}` looks again, --cancel in its place ends it.", flush=True)
        raise


def save_log(workspace: Workspace, name: str) -> Path:
    """Save what a job has written on all its nodes; return the file."""
    file = LOGS / f"{name}.log"
    written = {
        blob.name: kept(workspace).download_blob(blob.name).readall().decode(errors="replace")
        for blob in logs(workspace, name)
    }
    heads = len(written) > 1
    parts = [
        f"--- {blob.rpartition('/')[2]}\n{text}" if heads else text
        for blob, text in written.items()
    ]
    write_text(file, "".join(f"{line}\n" for part in parts for line in part.splitlines()))
    return file


def left(workspace: Workspace, name: str) -> tuple[str, dict[str, Any]] | None:
    """Return dvc.lock and the account that a job left, None unless it ended well."""
    folder = f"{place(name)}/{results.OUTPUTS}"
    try:
        lock, account = (
            kept(workspace).download_blob(f"{folder}/{file}").readall().decode()
            for file in (results.LOCK, results.ACCOUNT)
        )
    except ResourceNotFoundError:
        return None
    return lock, json.loads(account)


@contextlib.contextmanager
def session(asked: SimpleNamespace) -> Iterator[tuple[Workspace, Params]]:
    """Yield the workspace and the settings; what it refuses is told with cause and mend."""
    settings, _ = release.load()
    if asked.compute:
        compute = None if asked.compute == "serverless" else asked.compute
        settings = replace(settings, job=replace(settings.job, compute=compute))
    if not (asked.attach or asked.cancel):
        commit()  # before anything is asked of anybody
    try:
        yield connect(asked.workspace), settings
    except ResourceNotFoundError as error:
        missing = asked.attach or asked.cancel or "the workspace"
        raise DigitsError(f"{missing}: not found; correct the name ({error.message})") from None
    except (HttpResponseError, ServiceRequestError, ServiceResponseError) as error:
        attach = "where a job is named above, with --attach and its name"  # or it were another
        raise DigitsError(f"{explained(error)}; {attach}") from error


def cancel(workspace: Workspace, name: str) -> None:
    """End a job; raise DigitsError when it has ended already."""
    found = workspace.client.jobs.get(name).status
    if (status := str(getattr(found, "value", found))) in ENDED:
        raise DigitsError(f"{name} has ended already, as {status}; --attach shows what it left")
    workspace.client.jobs.begin_cancel(name).result()
    print(f"{name} is canceled; what it had not finished is not in the cache.")
