"""The workspace for deployments: a real one or the emulator's, with the same code."""

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.ai.ml import MLClient
from azure.ai.ml._artifacts._blob_storage_helper import BlobStorageClient
from azure.ai.ml.constants import _common
from azure.core import PipelineClient
from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy
from azure.identity import ClientSecretCredential, DefaultAzureCredential
from azure.storage.blob import ContainerClient

from core.errors import DigitsError
from mlops.azure import connection

SETTINGS = tuple(connection.SETTINGS)
ADDRESS = "secret", "blobs", "url", "certificate", "port"  # keys of address.json
LOCAL = ("00000000-0000-0000-0000-000000000000", "local", "local")
POLL_SECONDS, LOCAL_POLL_SECONDS = 5.0, 0.1  # between two polls of an operation
MANAGER = "https://management.azure.com"
CHECK = BlobStorageClient.check_blob_exists


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the SDK's progress dots, colours and bars."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def unconfirmed(client: BlobStorageClient) -> None:
    """Let the SDK repeat an interrupted upload.

    By itself, the SDK overwrites the files of a folder only if the first one exists and is not
    marked as a complete upload. If only the first is missing, every attempt fails at the others.
    """
    CHECK(client)  # which raises when the upload was complete
    client.overwrite = True


@dataclass(frozen=True)
class Workspace:
    """A client, and the properties of its workspace that the SDK does not expose."""

    client: MLClient
    credential: Any
    kind: str  # local, azure, or the name of another workspace
    poll_seconds: float
    blobs: str  # a blob account's address, with {} for its name
    manager: PipelineClient[Any, Any]  # for calls that the SDK lacks; see manager.py


def connect(kind: str, folder: Path = connection.EMULATOR) -> Workspace:
    """Return the workspace `local` (as `digits local` wrote its address), `azure`, or a named one.

    Raises DigitsError when no emulator runs, or when a setting is missing.
    """
    # Without its progress bar the SDK waits forever for a file whose upload failed; see `quiet`.
    options: dict[str, Any] = {"show_progress": True, "enable_telemetry": False}
    if kind != "local":
        known = connection.load_connection() | {
            name: os.environ[name] for name in SETTINGS if os.environ.get(name)
        }
        known |= {} if kind == "azure" else {connection.NAME: kind}
        missing = [name for name in SETTINGS if name not in known]
        if missing:
            fix = "`digits azure connect`, or --workspace local"
            raise DigitsError(f"{', '.join(missing)}: not set; {fix}")
        names = tuple(known[name] for name in SETTINGS)
        credential: Any = DefaultAzureCredential()
        blobs = "https://{}.blob.core.windows.net"
        poll, manager = POLL_SECONDS, MANAGER
    else:
        path = folder / "address.json"
        try:
            found = json.loads(path.read_text("utf-8"))
            address = {name: str(found[name]) for name in ADDRESS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            absent = isinstance(error, FileNotFoundError)
            what = "not found" if absent else f"is corrupted ({error!r})"
            fix = "start `digits local`, or set DIGITS_LOCAL_FOLDER to its --folder"
            raise DigitsError(f"{path}: {what}; {fix}") from None
        names = (*LOCAL[:2], os.environ.get("DIGITS_LOCAL_WORKSPACE", LOCAL[2]))
        # LOCAL[0] also names the emulator's tenant and client. Discovery would ask Microsoft.
        at = {"authority": address["url"], "disable_instance_discovery": True}
        credential = ClientSecretCredential(LOCAL[0], LOCAL[0], address["secret"], **at)
        blobs = address["blobs"] + "/{}"
        poll, manager = LOCAL_POLL_SECONDS, address["url"]
        os.environ["REQUESTS_CA_BUNDLE"] = address["certificate"]
        _common.STORAGE_ACCOUNT_URLS["AzureBlob"] = blobs
        services = ("azure_portal", "resource_manager", "active_directory")
        metadata = dict.fromkeys(services, address["url"])
        metadata |= {"aml_resource_id": "https://ml.azure.com"}  # audience of batch endpoints
        metadata |= {"registry_discovery_endpoint": address["url"]}
        metadata |= {"storage_endpoint": address["blobs"].removeprefix("http://")}
        # The SDK keeps clouds by name for the life of the process.
        options |= {"cloud": f"emulator{address['port']}", "cloud_metadata": metadata}
    BlobStorageClient.check_blob_exists = unconfirmed  # type: ignore[method-assign, assignment]
    _common.LROConfigurations.POLL_INTERVAL = poll  # type: ignore[assignment]
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)
    client = MLClient(credential, *names, polling_interval=poll, **options)
    bearer = BearerTokenCredentialPolicy(credential, f"{MANAGER}/.default")
    asking: PipelineClient[Any, Any] = PipelineClient(manager, policies=[RetryPolicy(), bearer])
    return Workspace(client, credential, kind, poll, blobs, asking)


def store(workspace: Workspace, name: str = "workspaceblobstore") -> ContainerClient:
    """Return the container of one of the workspace's own blob stores."""
    datastore = workspace.client.datastores.get(name, include_secrets=True)
    secret = getattr(datastore.credentials, "account_key", None)
    secret = secret or getattr(datastore.credentials, "sas_token", None) or workspace.credential
    url = workspace.blobs.format(datastore.account_name)
    return ContainerClient(url, datastore.container_name, credential=secret)


def empty(container: ContainerClient, folder: str) -> None:
    """Delete all blobs below a folder."""
    for name in container.list_blob_names(name_starts_with=folder.rstrip("/") + "/"):
        container.delete_blob(name)


def cores(client: MLClient, size_name: str) -> tuple[int, str, int | None]:
    """Return a size's cores, its quota family, and the free cores of that family.

    Raises DigitsError when the workspace's region has no such size.
    """
    sizes = {vars(size)["name"]: vars(size) for size in client.compute.list_sizes()}
    if size_name not in sizes:
        raise DigitsError(f"the region has no size {size_name}: change azure.instance_type")
    size = sizes[size_name]
    for usage in map(vars, client.compute.list_usage()):
        if usage["name"]["value"].lower() == size["family"].lower():
            return size["vCPUs"], size["family"], usage["limit"] - usage["currentValue"]
    return size["vCPUs"], size["family"], None
