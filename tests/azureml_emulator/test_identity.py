"""Sign-in, and datastores without keys: the blob store takes tokens for it, over TLS alone."""

import contextlib
import http.client
import os
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ClientSecretCredential
from azure.storage.blob import BlobServiceClient
from emulated import WORKSPACE, Client, emulated
from signed import sign_in

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azure.ai.ml import entities

    from azureml_emulator.client import connect
from azureml_emulator.services import sign_in as entra
from azureml_emulator.services.deployments import ML
from azureml_emulator.services.sign_in import CLIENT, TENANT, Tokens
from azureml_emulator.storage import ACCOUNT, AUDIENCE
from azureml_emulator.web import LOOPBACK

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


class Held:
    """A credential with a given token."""

    def __init__(self, token: str) -> None:
        self.token = token

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(self.token, 2**33)


def login(client: Client) -> ClientSecretCredential:
    """Return a credential of Azure's own library that signs in at the emulator."""
    address = client.emulator.address
    options = {"authority": address["url"], "disable_instance_discovery": True}
    return ClientSecretCredential(
        TENANT, CLIENT, address["secret"], connection_verify=address["certificate"], **options
    )


def wrong_headers(tokens: Tokens, audience: str) -> dict[str, str]:
    """Return headers Authorization that must be refused, by what is wrong with them."""
    claims = {"aud": audience, "exp": 2**33}
    wrong = {
        "no token": "another",
        "unsigned": jwt.encode(claims, "", "none"),
        "signed by the client": jwt.encode(claims, tokens.secret, "HS256"),
        "without an end": jwt.encode({"aud": audience}, tokens.key, "HS256"),
        "expired": tokens.issue(audience, -1),
        "for another audience": tokens.issue("https://vault.azure.net"),
        "no text": "\xff",
    }
    return {name: f"Bearer {token}" for name, token in wrong.items()} | {
        "without Bearer": tokens.issue(audience),
        "another scheme": f"Basic {tokens.issue(audience)}",
    }


def test_the_blob_store_refuses_other_tokens(client: Client) -> None:
    address, tokens = client.emulator.address, client.emulator.state.tokens
    context = ssl.create_default_context(cafile=address["certificate"])
    path = f"/{ACCOUNT}/azureml?restype=container&comp=list"
    for name, header in wrong_headers(tokens, AUDIENCE).items():
        port = address["tls_blob_port"]
        connection = http.client.HTTPSConnection(LOOPBACK, port, context=context)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": header})
            answer = connection.getresponse()
            assert (name, answer.status) == (name, 401)
            assert answer.headers["x-ms-error-code"] == "InvalidAuthenticationInfo"
            assert answer.headers["WWW-Authenticate"].endswith(f" resource_id={AUDIENCE}")
    with pytest.raises(ClientAuthenticationError):
        list(blobs(client, Held(tokens.issue(AUDIENCE, -1))).list_containers(retry_total=0))


def test_the_management_api_refuses_other_tokens(client: Client) -> None:
    address, tokens = client.emulator.address, client.emulator.state.tokens
    codes = {}
    for name, header in wrong_headers(tokens, address["url"]).items():
        status, answer, headers = client.send("GET", WORKSPACE, Authorization=header)
        assert (name, status) == (name, 401)
        assert 'error="invalid_token"' in headers["WWW-Authenticate"]
        codes[name] = answer["error"]["code"]
    assert codes.pop("expired") == "ExpiredAuthenticationToken"
    assert codes.pop("for another audience") == "InvalidAuthenticationTokenAudience"
    assert set(codes.values()) == {"InvalidAuthenticationToken"}
    status, answer, _ = client.send("GET", WORKSPACE, Authorization="")
    assert (status, answer["error"]["code"]) == (401, "AuthenticationFailed")
    for audience in ("https://management.azure.com", "https://management.core.windows.net/"):
        header = f"bearer {tokens.issue(audience)}"
        assert client.send("GET", WORKSPACE, Authorization=header)[0] == 200


def test_a_batch_endpoint_is_invoked_with_a_token_for_machine_learning(client: Client) -> None:
    client.put("/batchEndpoints/rows", {"authMode": "AADToken"})
    tokens = client.emulator.state.tokens
    for audience, status in ((client.emulator.address["url"], 401), (ML, 200)):
        header = f"Bearer {tokens.issue(audience)}"
        found = client.send("GET", "/batchEndpoints/rows/jobs", Authorization=header)
        assert found[0] == status


@pytest.mark.parametrize(
    "form, status, error, code",
    [
        ({"grant_type": "invented"}, 400, "unsupported_grant_type", 70003),
        ({"grant_type": ""}, 400, "invalid_request", 900144),
        ({"client_id": "somebody"}, 400, "unauthorized_client", 700016),
        ({"client_secret": "wrong \xff"}, 401, "invalid_client", 7000215),
        ({"client_secret": ""}, 401, "invalid_client", 7000216),
        ({"scope": AUDIENCE}, 400, "invalid_scope", 1002012),
        ({"scope": "/.default"}, 400, "invalid_scope", 1002012),
        (b"\xff\xfe", 400, "invalid_request", 900144),
    ],
)
def test_sign_in_refuses(
    client: Client, form: dict[str, str] | bytes, status: int, error: str, code: int
) -> None:
    address = client.emulator.address
    assert sign_in(address)[0] == 200
    raw, rest = (form, {}) if isinstance(form, bytes) else (b"", form)
    found, answer = sign_in(address, raw, **rest)
    assert (found, answer["error"], answer["error_codes"]) == (status, error, [code])
    assert answer["error_description"].startswith(f"AADSTS{code}: ")


def test_a_body_of_many_fields_is_refused_before_it_is_parsed(client: Client) -> None:
    status, answer = sign_in(client.emulator.address, b"%61=%61&" * 100_000)
    assert (status, answer["error"]) == (400, "invalid_request")
    assert answer["error_description"] == "The emulator takes at most 20 fields."


def test_another_tenant_is_not_found(client: Client) -> None:
    options = {"authority": client.emulator.address["url"], "disable_instance_discovery": True}
    authority = client.emulator.address["certificate"]
    nobody = ClientSecretCredential("nobody", CLIENT, "s", connection_verify=authority, **options)
    with pytest.raises(ClientAuthenticationError):
        nobody.get_token(f"{AUDIENCE}/.default")


def test_azures_library_signs_in_again_before_a_token_expires(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential, scope = login(client), f"{AUDIENCE}/.default"
    first = credential.get_token(scope).token
    assert credential.get_token(scope).token == first  # valid for an hour
    claims = jwt.decode(first, options={"verify_signature": False})
    assert (claims["aud"], claims["exp"] - claims["iat"]) == (AUDIENCE, 3600)
    monkeypatch.setattr(entra, "SECONDS", 60)
    credential = login(client)
    first = credential.get_token(scope).token
    assert credential.get_token(scope).token != first


def test_a_token_for_the_blob_store_may_do_everything(client: Client) -> None:
    service = blobs(client, login(client))
    container = service.create_container("made")
    container.upload_blob("a?b/ü", b"1", tags={"a": "b"})
    assert list(container.list_blob_names()) == ["a?b/ü"]
    assert container.download_blob("a?b/ü").readall() == b"1"
    assert container.get_blob_client("a?b/ü").get_blob_properties().size == 1
    container.delete_blob("a?b/ü")
    service.delete_container("made")
