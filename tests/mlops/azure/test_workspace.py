"""The workspace's blob store with keys, and with identities alone; waiting for operations."""

import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azure.ai.ml.entities import AccountKeyConfiguration, AzureBlobDatastore

    from mlops.azure import endpoint, workspace
from core.errors import DigitsError


class Token:
    """A login."""

    def get_token(self, *scopes: str, **options: Any) -> Any:
        raise AssertionError("nothing is asked for yet")


@pytest.mark.parametrize("key", [None, "a2V5"])
def test_a_datastore_without_a_key_is_opened_by_the_login(key: str | None) -> None:
    """ListSecrets answers 400 for it, so the SDK returns it without: its credentials are of None.

    A template with `systemDatastoresAuthMode` Identity has such datastores alone.
    """
    credentials = AccountKeyConfiguration(account_key=key) if key else None
    found = AzureBlobDatastore(
        name="store", account_name="account", container_name="rows", credentials=credentials
    )

    def get(name: str, include_secrets: bool) -> AzureBlobDatastore:
        assert (name, include_secrets) == ("workspaceblobstore", True)
        return found

    login, blobs = Token(), "https://{}.blob.core.windows.net"
    client: Any = SimpleNamespace(datastores=SimpleNamespace(get=get))
    opened = workspace.store(workspace.Workspace(client, login, "azure", 5.0, blobs, client))
    assert opened.url == "https://account.blob.core.windows.net/rows"
    assert (opened.credential is login) == (key is None)


def test_an_operation_that_another_run_began_is_awaited_for_45_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[-1])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock[-1] + seconds))
    target: Any = SimpleNamespace(workspace=SimpleNamespace(poll_seconds=60.0))
    with pytest.raises(DigitsError, match=r"the deployment blue is still Creating\."):
        endpoint.Target._wait(target, lambda: "Creating", "the deployment blue")
    assert 45 * 60 <= clock[-1] <= 46 * 60
