"""The workspace's blob store with keys, and with identities alone."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azure.ai.ml.entities import AccountKeyConfiguration, AzureBlobDatastore

    from mlops.azure import workspace


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
