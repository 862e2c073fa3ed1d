"""Azure's own client for a running emulator.

    from azureml_emulator.client import connect
    client = connect(folder)  # an MLClient, for the folder that the emulator was started with

The package azure-ai-ml has no option for another blob store or a shorter poll (observed), so
`connect` patches it for the whole process: for tests and laptops, never beside a real workspace.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from azure.ai.ml import MLClient
from azure.ai.ml._artifacts._blob_storage_helper import BlobStorageClient
from azure.ai.ml.constants import _common
from azure.core.credentials import AccessToken

from azureml_emulator.web import EmulatorError, read_file

SUBSCRIPTION, GROUP = "00000000-0000-0000-0000-000000000000", "local"
POLL_SECONDS = 0.1  # between two polls of an operation
CHECK = BlobStorageClient.check_blob_exists


class Credential:
    """The emulator's token, in the form that the SDK asks for."""

    def __init__(self, token: str) -> None:
        self.token = token

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self.token, int(time.time()) + 3600)


def overwrite_unconfirmed(client: BlobStorageClient) -> None:
    """Let the SDK repeat an interrupted upload.

    It overwrites a folder's files if the first one exists without the mark of a complete upload.
    If only the first is missing, every attempt fails at the others.
    """
    CHECK(client)  # which raises if the upload was complete
    client.overwrite = True


def connect(folder: Path | str, workspace: str = "local") -> MLClient:
    """Return a client for the emulator of `folder`; every name of a workspace exists.

    Raises EmulatorError if no emulator was started there.
    """
    path = Path(folder, "address.json")
    fix = f"Start the emulator: python -m azureml_emulator --folder {folder}"
    found = read_file(path, dict[str, int | str], fix) or {}
    if not {"url", "token", "certificate", "blobs", "port"} <= found.keys():
        raise EmulatorError(f"{path}: not found, or incomplete. {fix}")
    address = {name: str(value) for name, value in found.items()}
    os.environ["REQUESTS_CA_BUNDLE"] = address["certificate"]
    for name in ("NO_PROXY", "no_proxy"):  # the lower-case one has priority
        known = [one for one in os.environ.get(name, "").split(",") if one]
        os.environ[name] = ",".join(dict.fromkeys([*known, "127.0.0.1"]))
    _common.STORAGE_ACCOUNT_URLS["AzureBlob"] = address["blobs"] + "/{}"
    _common.LROConfigurations.POLL_INTERVAL = POLL_SECONDS  # type: ignore[assignment]
    BlobStorageClient.check_blob_exists = overwrite_unconfirmed  # type: ignore[method-assign, assignment]
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)
    services = ("azure_portal", "resource_manager", "active_directory", "aml_resource_id")
    metadata = dict.fromkeys(services, address["url"])
    metadata |= {"registry_discovery_endpoint": address["url"]}
    metadata |= {"storage_endpoint": address["blobs"].removeprefix("http://")}
    return MLClient(
        Credential(address["token"]),
        SUBSCRIPTION,
        GROUP,
        workspace,
        polling_interval=POLL_SECONDS,
        cloud=f"emulator{address['port']}",  # the SDK keeps clouds by name for the process
        cloud_metadata=metadata,
        # Without its progress bar the SDK waits forever for a file whose upload failed.
        show_progress=True,
        enable_telemetry=False,
    )
