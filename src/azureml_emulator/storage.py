"""The workspace's blob store: Azurite, Microsoft's own emulator, as a process of this one."""

import contextlib
import datetime
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas

from azureml_emulator.web import EmulatorError

PROGRAM = Path("node_modules/azurite/dist/src/blob/main.js")
# Azurite's published account, the same on every machine: a name, not a secret.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "azureml"
# Node ends when its standard input does: with this process, however that ends.
END_WITH_INPUT = (
    "--import=data:text/javascript,"
    "process.stdin.on('end',()=>process.kill(process.pid)).resume().unref()"
)
OFFER_HOURS = 1  # that the right to upload lasts


def find_azurite(given: Path | None) -> list[str]:
    """Return the command that starts Azurite: as given, below node_modules here, or on PATH.

    Raises EmulatorError if there is none.
    """
    program = given or (PROGRAM if PROGRAM.exists() else shutil.which("azurite-blob"))
    if program is None or not Path(program).exists():
        where = str(given or f"{PROGRAM} or azurite-blob on PATH")
        raise EmulatorError(
            f"Azurite not found: expected {where}. Install it (npm install azurite) or name its "
            "dist/src/blob/main.js by --azurite."
        )
    script = Path(program).resolve()  # npm puts a link to it on PATH
    if script.suffix != ".js":
        return [str(program)]
    if shutil.which("node") is None:
        raise EmulatorError("node not found on PATH: install Node.js 20 or newer for Azurite.")
    return ["node", str(program)]


class BlobStore:
    """A running Azurite with the workspace's container."""

    def __init__(self, url: str) -> None:
        self.url = url  # with the account
        self.service = BlobServiceClient(url, credential=KEY)
        self.client = self.service.get_container_client(CONTAINER)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.split(":")[2].split("/")[0])

    @property
    def connection_string(self) -> str:
        """The connection string for Azure's SDKs."""
        account = f"AccountName={ACCOUNT};AccountKey={KEY}"
        return f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={self.url};"

    def create(self, container: str) -> None:
        """Create a container unless it exists."""
        with contextlib.suppress(ResourceExistsError):
            self.service.create_container(container)

    def offer(self, container: str) -> tuple[str, str]:
        """Create a container for one upload; return its address and that with the right to write.

        Each upload has a container of its own, as on Azure: two codes would mix in one.
        """
        self.create(container)
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=OFFER_HOURS)
        may = ContainerSasPermissions(read=True, add=True, create=True, write=True, list=True)
        signature = generate_container_sas(ACCOUNT, container, KEY, permission=may, expiry=until)
        address = f"{str(self.service.url).rstrip('/')}/{container}"
        return address, f"{address}?{signature}"

    def fetch(self, uri: str, target: Path) -> None:
        """Download what lies below a datastore's path, or below a blob's address, to a folder.

        Raises EmulatorError if there is nothing.
        """
        if "/paths/" in uri:
            name, path = CONTAINER, uri.split("/paths/", 1)[1]
        else:
            name, _, path = uri.split(f"/{ACCOUNT}/", 1)[1].partition("/")
        prefix = path.rstrip("/") + "/"
        container = self.service.get_container_client(name)
        found = False
        for blob in container.list_blob_names(name_starts_with=prefix):
            file = target / blob.removeprefix(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(container.download_blob(blob).readall())
            found = True
        if not found:
            raise EmulatorError(f"{uri}: is empty")

    def upload(self, folder: Path, prefix: str) -> None:
        """Upload all files of a folder below a prefix of the workspace's container."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            blob = f"{prefix}/{file.relative_to(folder).as_posix()}"
            self.client.upload_blob(blob, file.read_bytes(), overwrite=True)

    def expire(self, prefix: str, oldest: datetime.datetime) -> None:
        """Delete the blobs below CONTAINER/PREFIX that were last changed before `oldest`."""
        name, _, start = prefix.partition("/")
        container = self.service.get_container_client(name)
        for blob in container.list_blobs(name_starts_with=start):
            if blob.last_modified < oldest:
                container.delete_blob(blob.name)


@contextlib.contextmanager
def run_azurite(
    folder: Path, port: int, program: Path | None, containers: tuple[str, ...]
) -> Iterator[BlobStore]:
    """Run Azurite on a port (0: a free one) with its files in `folder`; yield its store.

    The workspace's container and those named are created.
    """
    place = ["--blobPort", str(port), "--location", str(folder)]
    # Azurite knows the service's versions up to its own release; the current SDK is ahead of it.
    options = ["--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(
        [*find_azurite(program), *place, *options],
        env=os.environ | {"NODE_OPTIONS": END_WITH_INPUT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    printed = b""
    listening = False
    for line in process.stdout or ():
        printed += line
        listening = b"successfully listens" in line
        if listening:
            break
    threading.Thread(target=lambda: process.stdout and process.stdout.read(), daemon=True).start()
    try:
        if not listening:
            reason = printed.decode(errors="replace").strip()
            raise EmulatorError(f"Azurite did not start: {reason}")
        store = BlobStore(printed.decode().split("listens on ")[-1].strip() + f"/{ACCOUNT}")
        for name in (CONTAINER, *containers):
            store.create(name)
        yield store
    finally:
        process.terminate()
        process.wait()
