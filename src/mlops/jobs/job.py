"""A job of Azure ML or its emulator: its definition, log and outputs.

Input: the files of git's HEAD, the versions in requirements-dev.txt, and data in the container
`review`. Output: log and outputs in the workspace's store, in the folder ExperimentRun/dcid.NAME,
as Azure ML stores them.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from azure.ai.ml import TensorFlowDistribution, command
from azure.ai.ml.entities import Environment, ManagedIdentityConfiguration
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.storage.blob import BlobProperties, ContainerClient

from core.errors import DigitsError
from core.files import write_text
from mlops import git
from mlops.azure.errors import LOGS, explain_error
from mlops.azure.settings import Params, load
from mlops.azure.workspace import Workspace, connect, quiet, store
from mlops.deploy import release
from mlops.jobs import results

LOCK = Path("requirements-dev.txt")  # DVC, and all packages that stages import
EXPERIMENT = "digits"  # also used by stage train
ENDED = {"Completed", "Failed", "Canceled", "NotResponding"}
SECONDS_AN_HOUR = 3600


def commit() -> str:
    """Return the commit that a job is to run; raise DigitsError when it is not on origin."""
    release.refuse_dirty()
    head = git.run("rev-parse", "HEAD").strip()
    if not git.run("for-each-ref", "--count=1", "--contains", head, "refs/remotes/origin").strip():
        raise DigitsError(
            f"commit {head[:10]} is not on origin, so the job could not be traced to its code. "
            "Run `git push origin HEAD` first."
        )
    return head


def write_code(target: Path) -> Path:
    """Write the files of git's HEAD into a folder; return it."""
    archive = target / "code.zip"
    git.run("archive", "--format=zip", f"--output={archive}", "HEAD")
    with zipfile.ZipFile(archive) as file:
        file.extractall(target / "code")
    (target / "code" / ".amlignore").touch()  # otherwise the SDK applies .gitignore
    return target / "code"


def environment(settings: Params) -> Environment:
    """Return the environment: the pinned image, this version of Python, the locked packages."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
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
    """Return the job that runs this commit; its files are in `folder` until it is submitted."""
    wanted, head = settings.job, commit()
    if wanted.compute:
        try:
            workspace.client.compute.get(wanted.compute)
        except ResourceNotFoundError:
            raise DigitsError(
                f"azure.job.compute: {wanted.compute} does not exist in the workspace. Create it "
                "with `az ml compute create --type amlcompute --min-instances 0 ...`, or set it "
                "to null (serverless)."
            ) from None
    # Passed as an argument, because a sweep's trials use the arguments of `command`.
    distribution = TensorFlowDistribution(worker_count=wanted.nodes) if wanted.nodes > 1 else None
    return command(
        name=f"digits-{head[:8]}-{secrets.token_hex(4)}",
        experiment_name=EXPERIMENT,
        code=str(write_code(folder)),
        command=f"python -m mlops.jobs.worker {words}".strip(),
        inputs=inputs,
        environment=environment(settings),
        environment_variables={
            "PYTHONPATH": "src",
            "PYTHONUNBUFFERED": "1",  # so that the log is written during a stage
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


def submit(workspace: Workspace, job: Any) -> str:
    """Submit a job; return its name."""
    with quiet():
        return str(workspace.client.jobs.create_or_update(job).name)


def commit_of(workspace: Workspace, name: str) -> str:
    """Return the commit that a job runs, from its tag."""
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
    """Return DVC's settings of the container `review`: the user's login, or the emulator's key."""
    name = account(workspace)
    if workspace.kind != "local":
        return {"account_name": name, "connection_string": ""}  # overrides that of `make storage`
    url = workspace.blobs.format(name)
    named = f"AccountName={name};AccountKey={store(workspace).credential.account_key}"
    return {"connection_string": f"DefaultEndpointsProtocol=http;{named};BlobEndpoint={url};"}


@functools.cache
def artifact_store(workspace: Workspace) -> ContainerClient:
    """Return the container with the logs and outputs of jobs."""
    return store(workspace, "workspaceartifactstore")


@dataclass
class Log:
    """The log of a job, read while it grows."""

    workspace: Workspace
    name: str
    read: int = 0  # bytes
    rest: bytes = b""  # start of an incomplete line

    def more(self, ended: bool) -> Iterator[str]:
        """Yield the new lines, and the last incomplete one when the job has ended."""
        container = artifact_store(self.workspace)
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
    """Return the logs of a job, one per node, in the order of nodes."""
    found = artifact_store(workspace).list_blobs(name_starts_with=f"{place(name)}/user_logs/")
    return sorted(found, key=lambda blob: blob.name)


def place(name: str) -> str:
    """Return the folder of a job in the workspace's store."""
    return f"ExperimentRun/dcid.{name}"


def follow(workspace: Workspace, name: str, more: Callable[[bool], Iterator[str]]) -> str:
    """Print the status of a job and the lines of `more` until it ends; return its final status."""
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
        print(f"{name} continues. Follow it with `{again}`, end it with --cancel.", flush=True)
        raise


def save_log(workspace: Workspace, name: str) -> Path:
    """Save the logs of all nodes of a job in one file; return its path."""
    file = LOGS / f"{name}.log"
    text = ""
    for blob in logs(workspace, name):
        content = artifact_store(workspace).download_blob(blob.name).readall()
        text += f"--- {blob.name.rpartition('/')[2]}\n{content.decode(errors='replace')}\n"
    write_text(file, text)
    return file


def read_summary(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """Return the values and metrics of a job; None unless it succeeded."""
    try:
        return dict(json.loads(_output(workspace, name, results.SUMMARY)))
    except ResourceNotFoundError:
        return None


def read_outputs(workspace: Workspace, name: str, ran: str) -> dict[str, bytes]:
    """Return dvc.lock, params.yaml and the small tables that a job of commit `ran` wrote."""
    lock = _output(workspace, name, results.LOCK)
    pipeline = git.run("show", f"{ran}:{results.PIPELINE}")
    names = [results.PARAMS, *results.tables(pipeline, lock.decode())]
    return {results.LOCK: lock} | {file: _output(workspace, name, file) for file in names}


def _output(workspace: Workspace, name: str, file: str) -> bytes:
    blob = f"{place(name)}/{results.OUTPUTS}/{file}"
    return artifact_store(workspace).download_blob(blob).readall()


@contextlib.contextmanager
def session(asked: SimpleNamespace) -> Iterator[tuple[Workspace, Params]]:
    """Yield the workspace and the settings; raise its errors with their cause and fix."""
    settings = load()
    if asked.compute:
        compute = None if asked.compute == "serverless" else asked.compute
        settings = replace(settings, job=replace(settings.job, compute=compute))
    if not (asked.attach or asked.cancel):
        commit()  # before any request
    try:
        yield connect(asked.workspace), settings
    except ResourceNotFoundError as error:
        missing = asked.attach or asked.cancel or "the workspace"
        raise DigitsError(f"{missing}: not found ({error.message}). Correct the name.") from None
    except AzureError as error:
        attach = "if a job's name is printed above, use --attach NAME"  # do not start another job
        raise DigitsError(f"{explain_error(error)}; {attach}") from error


def cancel(workspace: Workspace, name: str) -> None:
    """Cancel a job; raise DigitsError when it has already ended."""
    found = workspace.client.jobs.get(name).status
    if (status := str(getattr(found, "value", found))) in ENDED:
        raise DigitsError(f"{name} has already ended as {status}. See its results with --attach.")
    workspace.client.jobs.begin_cancel(name).result()
    print(f"Canceled {name}. Its incomplete stages are not in the cache.")
