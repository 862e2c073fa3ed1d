"""The workspace's blob store: Azurite, Microsoft's own emulator, as a child process."""

import base64
import contextlib
import datetime
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import jwt
from aiohttp import web
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import (
    AccountSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)

from azureml_emulator.services.sign_in import TENANT, Tokens
from azureml_emulator.web import EmulatorError, check_length, read_body, send_on

PROGRAM = Path("node_modules/azurite/dist/src/blob/main.js")
ACCOUNT = "devstoreaccount1"  # its published key is not valid here: each start creates a key
CONTAINER = "azureml"
# Node ends when its standard input is closed, even if this process is killed.
END_WITH_INPUT = (
    "--import=data:text/javascript,"
    "process.stdin.on('end',()=>process.kill(process.pid)).resume().unref()"
)
OFFER_HOURS = 1  # validity of a signature
AUDIENCE = "https://storage.azure.com"
BLOB_BYTES = 256 << 20  # of one request with a token


def find_azurite(given: Path | None) -> list[str]:
    """Return the command that starts Azurite: as given, in node_modules, or on PATH.

    Raises EmulatorError if there is none.
    """
    program = given or (PROGRAM if PROGRAM.exists() else shutil.which("azurite-blob"))
    if program is None or not Path(program).exists():
        where = str(given or f"{PROGRAM} or azurite-blob on PATH")
        raise EmulatorError(
            f"Azurite not found: expected {where}. Install it (npm install azurite) or name its "
            "dist/src/blob/main.js by --azurite."
        )
    script = Path(program).resolve()  # on PATH it is npm's link
    if script.suffix != ".js":
        return [str(program)]
    if shutil.which("node") is None:
        raise EmulatorError("node not found on PATH: install Node.js 20 or newer for Azurite.")
    return ["node", str(program)]


class BlobStore:
    """A running Azurite with the workspace's container."""

    process: subprocess.Popen[bytes]  # set by `run_azurite`

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key  # the address includes the account
        self.port = int(url.split(":")[2].split("/")[0])
        # Loopback is reached without a proxy, whatever the environment sets.
        self.service = BlobServiceClient(url, credential=key, use_env_settings=False)

    def check(self) -> None:
        """Raise EmulatorError if Azurite has ended: any user may have bound its port since then."""
        if self.process.poll() is not None:
            raise EmulatorError("Azurite has ended; restart the emulator")

    @property
    def client(self) -> ContainerClient:
        """The client of the workspace's container."""
        self.check()
        return self.service.get_container_client(CONTAINER)

    @property
    def connection_string(self) -> str:
        """The connection string for Azure's SDKs."""
        account = f"AccountName={ACCOUNT};AccountKey={self.key}"
        return f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={self.url};"

    def create(self, container: str) -> None:
        """Create a container unless it exists."""
        with contextlib.suppress(ResourceExistsError):
            self.service.create_container(container)

    def offer(self, container: str) -> tuple[str, str]:
        """Create a container for one upload; return its address without and with a write signature.

        Each upload has a separate container, as on Azure, so that two codes cannot mix.
        """
        self.create(container)
        may = ContainerSasPermissions(read=True, add=True, create=True, write=True, list=True)
        return f"{self.url}/{container}", f"{self.url}/{container}?{self.sign(container, may)}"

    def sign(self, container: str, may: ContainerSasPermissions) -> str:
        """Return a signature that gives rights to a container for OFFER_HOURS."""
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=OFFER_HOURS)
        return generate_container_sas(ACCOUNT, container, self.key, permission=may, expiry=until)

    def sign_all(self) -> str:
        """Return a signature by the account's key that gives all rights for OFFER_HOURS."""
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=OFFER_HOURS)
        everywhere = ResourceTypes(service=True, container=True, object=True)
        names = ("read", "write", "delete", "list", "add", "create", "tag")
        may = AccountSasPermissions(**dict.fromkeys(names, True))
        return generate_account_sas(ACCOUNT, self.key, everywhere, may, until)

    def find(self, uri: str) -> tuple[ContainerClient, str, dict[str, int]]:
        """Return the container, the path and the blobs' sizes by name of a URI.

        The URI is a datastore's path or a blob's address, and names one blob or a folder.
        Raises EmulatorError if it is in no container of this blob store.
        """
        if "/paths/" in uri:
            name, path = CONTAINER, uri.split("/paths/", 1)[1].strip("/")
        elif f"/{ACCOUNT}/" in uri:
            name, _, path = uri.split(f"/{ACCOUNT}/", 1)[1].partition("/")
        else:
            raise EmulatorError(f"{uri}: expected a path in a datastore of the workspace")
        container, path = self.service.get_container_client(name), path.rstrip("/")
        start = f"{path}/" if path else ""
        sizes = {blob.name: blob.size for blob in container.list_blobs(name_starts_with=path)}
        self.check()
        found = {blob: size for blob, size in sizes.items() if blob.startswith(start)}
        if not found and path in sizes:
            found = {path: sizes[path]}
        return container, path, found

    def fetch(self, uri: str, target: Path) -> None:
        """Download the files below a folder of the blob store to `target`, or one file as `target`.

        Raises EmulatorError if there is nothing, or a name that leads out of `target`.
        """
        container, path, blobs = self.find(uri)
        if not blobs:
            raise EmulatorError(f"{uri}: is empty")
        for blob in blobs:
            file = (target / blob[len(path) :].lstrip("/")).resolve()
            if not file.is_relative_to(target.resolve()):
                raise EmulatorError(f"{uri}: the blob {blob!r} would be written outside its folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as output:
                container.download_blob(blob).readinto(output)
        self.check()

    def upload(self, folder: Path, uri: str) -> None:
        """Upload all files of a folder below a datastore's path."""
        prefix = uri.split("/paths/", 1)[-1].strip("/")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            blob = f"{prefix}/{file.relative_to(folder).as_posix()}"
            with file.open("rb") as content:
                self.client.upload_blob(blob, content, overwrite=True)


@contextlib.contextmanager
def run_azurite(
    folder: Path, port: int, program: Path | None, containers: tuple[str, ...]
) -> Iterator[BlobStore]:
    """Run Azurite on a port (0: a free one) with its files in `folder`; yield its store.

    The workspace's container and those named are created. The account's key is new with each
    start, and never on a command line, which any local user can read.
    """
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    place = ["--blobPort", str(port), "--location", str(folder)]
    # Azurite knows the service's versions up to its own release; the current SDK is ahead of it.
    options = ["--skipApiVersionCheck", "--disableTelemetry", "--disableProductStyleUrl"]
    with subprocess.Popen(
        [*find_azurite(program), *place, *options],
        env=os.environ | {"NODE_OPTIONS": END_WITH_INPUT, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout
        printed = b""
        for line in process.stdout:
            printed += line
            if b"successfully listens" in line:
                break
        rest = threading.Thread(target=process.stdout.read, daemon=True)
        rest.start()
        try:
            if b"successfully listens" not in printed:
                reason = printed.decode(errors="replace").strip().split("\n")[-1]
                raise EmulatorError(
                    f"{folder}: Azurite did not start: {reason}. If another program has its port, "
                    "delete the emulator's address.json; if its files are damaged, this folder."
                )
            address = printed.decode().split("listens on ")[-1].strip()
            store = BlobStore(f"{address}/{ACCOUNT}", key)
            store.process = process
            for name in (CONTAINER, *containers):
                store.create(name)
            yield store
        finally:
            process.terminate()
            rest.join()


def take_tokens(store: BlobStore, tokens: Tokens, url: str) -> web.Application:
    """Return an application that serves the blob store to callers with a token for it.

    Others get the address to sign in, below `url`: "Authorize access to blobs using Microsoft
    Entra ID", "Bearer challenge".

    Valid requests are forwarded to Azurite with a signature by the account's key. Azurite's own
    token check accepts any well-formed token (observed).
    """

    async def take(request: web.Request) -> web.Response:
        try:
            tokens.check(request.headers.get("Authorization", ""), [AUDIENCE])
        except jwt.InvalidTokenError as error:
            place = f"Bearer authorization_uri={url}/{TENANT}/oauth2/authorize"
            headers = {"WWW-Authenticate": f"{place} resource_id={AUDIENCE}"}
            headers |= {"x-ms-error-code": "InvalidAuthenticationInfo"}
            raise web.HTTPUnauthorized(text=f"The token: {error}.", headers=headers) from None
        check_length(request, required=False)
        body = await read_body(request)
        store.check()
        path = f"{request.raw_path}{'&' if request.query_string else '?'}{store.sign_all()}"
        status, found, answer = await send_on(request, store.port, path, body, request.headers)
        return web.Response(status=status, headers=found, body=answer)

    application = web.Application(client_max_size=BLOB_BYTES)
    application.router.add_route("*", "/{path:.*}", take)
    return application
