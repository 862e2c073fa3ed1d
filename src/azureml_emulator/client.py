"""Azure's own client for a running emulator.

    from azureml_emulator.client import connect
    client = connect(folder)  # an MLClient, for the folder that the emulator was started with

The package azure-ai-ml has no option for another blob store or a shorter poll (observed), so
`connect` patches it for the whole process: for tests and laptops, never beside a real workspace.
"""

import logging
import os
from pathlib import Path

from azure.ai.ml import MLClient
from azure.ai.ml._artifacts._blob_storage_helper import BlobStorageClient
from azure.ai.ml.constants import _common
from azure.identity import ClientSecretCredential

from azureml_emulator.services.sign_in import CLIENT, TENANT
from azureml_emulator.web import EmulatorError, bypassed, read_file

SUBSCRIPTION, GROUP = "00000000-0000-0000-0000-000000000000", "local"
POLL_SECONDS = 0.1  # between two polls of an operation
CHECK = BlobStorageClient.check_blob_exists


def overwrite_unconfirmed(client: BlobStorageClient) -> None:
    """Let the SDK repeat an interrupted upload.

    By itself, the SDK overwrites the files of a folder only if the first one exists and is not
    marked as a complete upload. If only the first is missing, every attempt fails at the others.
    """
    CHECK(client)  # which raises if the upload was complete
    client.overwrite = True


def connect(folder: Path | str, workspace: str = "local") -> MLClient:
    """Return a client for the emulator of `folder`; any name of a workspace is accepted.

    Raises EmulatorError if no emulator was started there.
    """
    path = Path(folder, "address.json")
    fix = f"Start the emulator: python -m azureml_emulator --folder {folder}"
    found = read_file(path, dict[str, int | str], fix) or {}
    if not {"url", "secret", "certificate", "blobs", "port"} <= found.keys():
        raise EmulatorError(f"{path}: not found, or incomplete. {fix}")
    address = {name: str(value) for name, value in found.items()}
    os.environ["REQUESTS_CA_BUNDLE"] = address["certificate"]
    os.environ.update(bypassed(os.environ))
    _common.STORAGE_ACCOUNT_URLS["AzureBlob"] = address["blobs"] + "/{}"
    _common.LROConfigurations.POLL_INTERVAL = POLL_SECONDS  # type: ignore[assignment]
    BlobStorageClient.check_blob_exists = overwrite_unconfirmed  # type: ignore[method-assign, assignment]
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)
    services = ("azure_portal", "resource_manager", "active_directory")
    metadata = dict.fromkeys(services, address["url"])
    metadata |= {"aml_resource_id": "https://ml.azure.com"}  # audience of batch endpoints
    metadata |= {"registry_discovery_endpoint": address["url"]}
    metadata |= {"storage_endpoint": address["blobs"].removeprefix("http://")}
    return MLClient(
        ClientSecretCredential(
            TENANT,
            CLIENT,
            address["secret"],
            authority=address["url"],
            disable_instance_discovery=True,  # discovery would query Microsoft
        ),
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
