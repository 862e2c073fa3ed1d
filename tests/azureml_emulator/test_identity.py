"""Datastores without keys: the blob store takes the emulator's token, over TLS alone."""

import base64
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import BlobServiceClient
from emulated import Client, emulated

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azure.ai.ml import entities

    from azureml_emulator.client import Credential, connect
from azureml_emulator.storage import ACCOUNT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of an emulator whose datastores have no keys."""
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "settings.json").write_text('{"identity_datastores": true}')
    names = ("REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy", "AZUREML_CURRENT_CLOUD")
    before = {name: os.environ.get(name) for name in names}
    with emulated(folder) as made:
        yield made
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value else {})


def blobs(client: Client, credential: Any) -> BlobServiceClient:
    """Return a client of the blob store with a credential."""
    url = f"{client.emulator.address['blobs']}/{ACCOUNT}"
    authority = client.emulator.address["certificate"]
    return BlobServiceClient(url, credential=credential, connection_verify=authority)


def test_nobody_is_given_the_key(client: Client) -> None:
    store = client.call("GET", "/datastores/workspaceblobstore")[1]["properties"]
    assert store["credentials"] == {"credentialsType": "None"}
    status, answer = client.call("POST", "/datastores/workspaceblobstore/listSecrets", {})
    assert (status, answer["error"]["code"]) == (400, "UserError")
    assert answer["error"]["message"] == "No secrets for credentials of type None."


def test_the_sdk_uploads_and_downloads_with_its_token(client: Client, tmp_path: Path) -> None:
    ml = connect(client.emulator.folder, "w")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b é.bin").write_bytes(bytes(range(256)) * 40_000)
    made = entities.Model(name="m", version="1", path=tmp_path / "a")
    assert ml.models.create_or_update(made).id
    ml.models.download("m", "1", download_path=tmp_path / "got")
    (got,) = (tmp_path / "got").rglob("b é.bin")
    assert got.read_bytes() == bytes(range(256)) * 40_000


class Forged:
    """A credential with a token that somebody else made."""

    def __init__(self, token: str) -> None:
        self.token = token

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(self.token, 2**33)


def unsigned() -> str:
    """Return a token in the form of Entra ID's that nobody signed."""
    claims = {"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/t/", "exp": 2**33}
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
    return ".".join([base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts] + ["x"])


@pytest.mark.parametrize("token", ["", "another", unsigned()])
def test_a_token_of_anybody_else_is_refused(client: Client, token: str) -> None:
    with pytest.raises(ClientAuthenticationError) as refused:
        list(blobs(client, Forged(token)).list_containers(retry_total=0))
    assert refused.value.status_code == 401


def test_the_emulators_token_may_do_everything(client: Client) -> None:
    service = blobs(client, Credential(client.emulator.address["token"]))
    container = service.create_container("made")
    container.upload_blob("a?b/ü", b"1", tags={"a": "b"})
    assert list(container.list_blob_names()) == ["a?b/ü"]
    assert container.download_blob("a?b/ü").readall() == b"1"
    assert container.get_blob_client("a?b/ü").get_blob_properties().size == 1
    container.delete_blob("a?b/ü")
    service.delete_container("made")
