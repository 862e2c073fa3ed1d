"""`digits local`: production on this machine, on loopback alone, until Ctrl-C.

It starts the stand-in of Azure ML's API (TLS with a certificate made here), Azurite for its blob
store, an endpoint, and a page that shows it; what was deployed when it last ran comes up again.
Everything lies in one folder, `address.json` among it: where `--workspace local` finds it.
"""

import contextlib
import datetime
import ipaddress
import json
import logging
import queue
import secrets
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import (
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    generate_container_sas,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from azureml_emulator import batches, jobs
from azureml_emulator.management import enforce, handler
from azureml_emulator.router import LOOPBACK, Router, Server
from azureml_emulator.standin import StandIn
from core.errors import DigitsError
from core.files import write_text
from mlops.azure.connection import REMOTES
from mlops.dashboard import page
from mlops.dashboard.detector import Detector
from mlops.dashboard.watch import Labels, Watch

FOLDER = Path(".standin")
AZURITE = Path("node_modules/azurite/dist/src/blob/main.js")
# Azurite's published account, the same on every machine: a name, not a secret.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# Node gets SIGTERM when its standard input ends: with this process, however that ends.
WITH_US = (
    "data:text/javascript,process.stdin.on('end',()=>process.kill(process.pid)).resume().unref()"
)
CONTAINER = "azureml"
COLLECTION = "model_inputs_outputs"  # what score.py collects
BLOCK_BYTES = 4_000_000  # that are appended at once; 4 MiB is the most
ONCE: dict[str, Any] = {"retry_total": 0}  # the SDK's first pause between two tries is 15 s
WAITING_BYTES = 64_000_000  # collected rows that may wait to be written
DAYS = 397  # that a certificate is valid
LAST_DAYS = 30  # of these it is no longer used when `digits local` starts
DRAIN_SECONDS = 30.0  # that writing what waits may take at the end
EXPIRE_SECONDS = 3600.0  # between two looks at what is too old to be kept


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate for 127.0.0.1 and of its key.

    They are made where they are absent, and anew in the certificate's last days.
    """
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    now = datetime.datetime.now(datetime.UTC)
    if certificate_file.exists() and key_file.exists():
        found = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        if found.not_valid_after_utc - now > datetime.timedelta(days=LAST_DAYS):
            return certificate_file, key_file
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, LOOPBACK)])
    loopback = x509.IPAddress(ipaddress.ip_address(LOOPBACK))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    certificate_file.unlink(missing_ok=True)  # it must never stand beside another's key
    key_file.touch(mode=0o600)
    key_file.write_bytes(key.private_bytes(pem, form, plain))
    certificate_file.write_bytes(certificate.public_bytes(pem))
    return certificate_file, key_file


@contextlib.contextmanager
def blob_store(folder: Path, port: int) -> Iterator[dict[str, Any]]:
    """Run Azurite; yield what `StandIn` must know of its storage."""
    if not AZURITE.exists():
        raise DigitsError(f"{AZURITE}: not found; run `make env` in the project's root")
    place = ["--blobPort", str(port), "--location", str(folder)]
    # Azurite knows the service's versions up to its own release; the current SDK is ahead of it.
    options = ["--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(
        ["node", "--import", WITH_US, str(AZURITE), *place, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    said = b""
    listening = False
    for line in process.stdout or ():
        said += line
        listening = b"successfully listens" in line
        if listening:
            break
    threading.Thread(target=lambda: process.stdout and process.stdout.read(), daemon=True).start()
    try:
        if not listening:
            raise DigitsError(f"Azurite did not start: {said.decode(errors='replace').strip()}")
        url = said.decode().split("listens on ")[-1].strip() + f"/{ACCOUNT}"
        service = BlobServiceClient(url, credential=KEY)
        for name in (CONTAINER, *REMOTES):  # jobs use DVC's
            with contextlib.suppress(ResourceExistsError):
                service.create_container(name)
        container = service.get_container_client(CONTAINER)
        yield {
            "url": url,
            "account": ACCOUNT,
            "key": KEY,
            "container": CONTAINER,
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};"
            f"AccountKey={KEY};BlobEndpoint={url};",
            "client": container,
            "offer": lambda name: offer(service, name),
            "fetch": lambda uri, target: fetch(service, uri, target),
            "expire": lambda prefix, oldest: expire(service, prefix, oldest),
        }
    finally:
        process.terminate()
        process.wait()


def offer(service: BlobServiceClient, name: str) -> tuple[str, str]:
    """Make a container for one upload; return its address and that with the right to write.

    Each upload has a container of its own, as on Azure: two codes would mix in one.
    """
    with contextlib.suppress(ResourceExistsError):
        service.create_container(name)
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    may = ContainerSasPermissions(read=True, add=True, create=True, write=True, list=True)
    signature = generate_container_sas(ACCOUNT, name, KEY, permission=may, expiry=until)
    address = f"{str(service.url).rstrip('/')}/{name}"
    return address, f"{address}?{signature}"


def fetch(service: BlobServiceClient, uri: str, target: Path) -> None:
    """Download what lies below a datastore's path, or below a blob's address, into a folder."""
    if "/paths/" in uri:
        name, path = CONTAINER, uri.split("/paths/", 1)[1]
    else:
        name, _, path = uri.split(f"/{ACCOUNT}/", 1)[1].partition("/")
    prefix = path.rstrip("/") + "/"
    container = service.get_container_client(name)
    found = False
    for blob in container.list_blob_names(name_starts_with=prefix):
        file = target / blob.removeprefix(prefix)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(container.download_blob(blob).readall())
        found = True
    if not found:
        raise DigitsError(f"{uri}: is empty")


def expire(service: BlobServiceClient, prefix: str, oldest: datetime.datetime) -> None:
    """Delete the blobs below CONTAINER/PREFIX that were last changed before `oldest`."""
    name, _, start = prefix.partition("/")
    container = service.get_container_client(name)
    for blob in container.list_blobs(name_starts_with=start):
        if blob.last_modified < oldest:
            container.delete_blob(blob.name)


class Collector:
    """Puts collected rows where Azure's collector does, from a thread of its own.

    Where they cannot be written, or not as fast as they come, they are lost and counted: no
    request waits for them. `close` writes what waits.
    """

    def __init__(self, container: ContainerClient, watch: Watch) -> None:
        """Write to `container`; tell `watch`."""
        self.container, self.watch = container, watch
        self.rows: queue.Queue[tuple[str, bytes] | None] = queue.Queue()  # None: the end
        self.lock = threading.Lock()
        self.waiting = 0  # bytes
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Write what waits; say how much of it could not be written in time. Nothing comes now."""
        self.rows.put(None)
        self.thread.join(DRAIN_SECONDS)
        if self.thread.is_alive():
            reason = f"{self.waiting:,} bytes were not written within {DRAIN_SECONDS:g} s."
            print(f"Collected requests are lost. {reason}", flush=True)

    def take(self, endpoint: str, deployment: str, headers: Any, rows: bytes) -> None:
        """Keep one batch of rows: a line with the envelope that Azure's collector writes."""
        now = datetime.datetime.now(datetime.UTC)
        event = headers.get("ce-type", "azureml.inference.unnamed")
        request = headers.get("ce-x-request-id", "")
        try:
            data = json.loads(rows)
        except ValueError as error:
            self.watch.lose(1, f"{deployment} sent no JSON to collect ({error}).")
            return
        line = {
            "specversion": "1.0",
            "id": headers.get("trace-id", ""),
            "source": f"/onlineEndpoints/{endpoint}/deployments/{deployment}",
            "type": event,
            "datacontenttype": headers.get("Content-Type", ""),
            "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "data": data,
            "correlationid": request,
            "xrequestid": request,
            "modelversion": headers.get("ce-model-version", "default"),
            "collectdatatype": headers.get("ce-collect-data-type", ""),
            "agent": headers.get("ce-agent", ""),
            "contentrange": f"bytes 0-{len(rows) - 1}/{len(rows)}",
        }
        name = event.removeprefix("azureml.inference.")
        path = f"modelDataCollector/{endpoint}/{deployment}/{name}/{now:%Y/%m/%d/%H}/local.jsonl"
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self.lock:
            fits = self.waiting + len(text) <= WAITING_BYTES
            self.waiting += len(text) if fits else 0
        if fits:
            self.rows.put((path, text))
        else:
            self.watch.lose(1, "The blob store is slower than requests come.")
        if name == COLLECTION and isinstance(data, list):
            self.watch.rows(endpoint, deployment, request, data)

    def work(self) -> None:
        """Write what comes, batches for one file at once, until the end."""
        item = self.rows.get()
        while item:
            batches: dict[str, bytes] = {}
            with contextlib.suppress(queue.Empty):
                while item:
                    batches[item[0]] = batches.get(item[0], b"") + item[1]
                    item = self.rows.get_nowait()
            for path, rows in batches.items():
                blob = self.container.get_blob_client(path)
                size = len(rows)
                try:
                    if not blob.exists(**ONCE):
                        blob.create_append_blob(**ONCE)
                    while rows:
                        end = rows.rfind(b"\n", 0, BLOCK_BYTES) + 1 or rows.index(b"\n") + 1
                        blob.append_block(rows[:end], **ONCE)
                        rows = rows[end:]
                except Exception as error:  # lost rows are no reason to stop collecting
                    reason = str(error).splitlines()[0] if str(error) else repr(error)
                    self.watch.lose(rows.count(10), f"The blob store refuses them: {reason}")
                with self.lock:
                    self.waiting -= size
            item = item and self.rows.get()


def main(folder: Path) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    address_file = folder / "address.json"
    address = json.loads(address_file.read_text("utf-8")) if address_file.exists() else {}
    certificate, key = make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    logging.getLogger("azure").setLevel(logging.CRITICAL)  # what fails is told in our words
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    with blob_store(folder / "blobs", address.get("blob_port", 0)) as storage:
        try:
            watch = Watch(Detector(Path.cwd()))
            collector = Collector(storage["client"], watch)
            router = Router(address.get("router_port", 0), collector.take, watch.request)
            standin = StandIn(folder, router, storage)
            server = Server((LOOPBACK, address.get("port", 0)), handler(standin))
            shown = page.handler(router, watch, Labels(storage["client"]))
            page_server = Server((LOOPBACK, address.get("page_port", 0)), shown)
        except OSError as error:
            raise DigitsError(f"{address_file}: {error}; is `digits local` running?") from None
        # Each connection's handshake is its thread's own affair.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        standin.url = f"https://{LOOPBACK}:{server.server_address[1]}"
        standin.token = address.get("token") or secrets.token_urlsafe()
        address = {
            "url": standin.url,
            "token": standin.token,
            "certificate": str(certificate),
            "blobs": storage["url"].removesuffix(f"/{ACCOUNT}"),
            "page": f"http://{LOOPBACK}:{page_server.server_address[1]}",
            "port": server.server_address[1],
            "page_port": page_server.server_address[1],
            "router_port": router.server.server_address[1],
            "blob_port": int(storage["url"].split(":")[2].split("/")[0]),
        }
        address_file.touch(mode=0o600)
        write_text(address_file, json.dumps(address, indent=1) + "\n")
        try:
            router.server.start()
            server.start()
            page_server.start()
            standin.restore()
            jobs.restore(standin)
            batches.restore(standin)
            print(
                f"Serving at {router.url}, to be watched at {address['page']}; deploy with "
                "`digits deploy apply --workspace local`. Ctrl-C stops it.",
                flush=True,
            )
            while not stop.wait(EXPIRE_SECONDS):
                standin.workers.submit(enforce, standin)
        finally:
            server.stop()
            page_server.stop()
            jobs.close(standin)
            standin.workers.shutdown(wait=True, cancel_futures=True)
            router.close()
            collector.close()
