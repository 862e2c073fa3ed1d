"""A lease that prevents two concurrent deployments on one endpoint.

It is an Azure Blob lease in the workspace, and expires soon after its process has died.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobClient, BlobLeaseClient

from core.errors import DigitsError
from mlops.azure.workspace import Workspace, store

ASK_SECONDS = 0.5  # between two attempts


def blob(workspace: Workspace, endpoint: str) -> BlobClient:
    """Return the blob that represents an endpoint, in the workspace's own store."""
    return store(workspace).get_blob_client(f"digits-leases/{endpoint}")


@contextlib.contextmanager
def held(
    workspace: Workspace, endpoint: str, seconds: int, wait: bool
) -> Iterator[Callable[[], bool]]:
    """Hold an endpoint's lease; yield a function that asks the store whether it is still held.

    A suspended process may have lost the lease unnoticed. If another process holds the lease, waits
    when `wait`, else raises DigitsError.
    """
    client = blob(workspace, endpoint)
    reported = False
    while True:
        with contextlib.suppress(ResourceExistsError):
            client.upload_blob(b"", overwrite=False)
        try:
            lease = client.acquire_lease(lease_duration=seconds)
            break
        except ResourceNotFoundError:  # `forget` deleted it in between
            continue
        except HttpResponseError as error:
            if getattr(error, "error_code", "") != "LeaseAlreadyPresent":
                raise
            if not wait:
                raise DigitsError(
                    f"another deployment is running on {endpoint}. Wait for it (--wait); if it was "
                    f"killed, the lease expires after {seconds} s."
                ) from None
        if not reported:
            print(f"Waiting: another deployment is running on {endpoint} ...", flush=True)
            reported = True
        time.sleep(ASK_SECONDS)
    done, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not (done.wait(seconds / 3) or lost.is_set()):
            keep(lease, lost)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()

    def still() -> bool:
        if not lost.is_set():
            keep(lease, lost)
        return not lost.is_set()

    try:
        yield still
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(HttpResponseError):
            lease.release()


def forget(workspace: Workspace, endpoint: str) -> None:
    """Delete the blob, unless another holds its lease by now."""
    with contextlib.suppress(HttpResponseError):
        blob(workspace, endpoint).delete_blob()


def keep(lease: BlobLeaseClient, lost: threading.Event) -> None:
    """Renew; set `lost` when that fails twice, since a single failure does not lose the lease."""
    for last in (False, True):
        try:
            lease.renew()
            return
        except Exception:  # after any error another may hold the lease
            if last:
                lost.set()
