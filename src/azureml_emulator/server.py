"""The emulator in this process: all its servers, and one folder with all that it keeps.

`address.json` in the folder says where the servers are, for `client.connect` and other programs;
ports and token stay the same when the emulator starts again with the same folder.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import sqlite3
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from azureml_emulator.collector import Collector, OnLost
from azureml_emulator.controls import Controls
from azureml_emulator.router import OnRequest, Router
from azureml_emulator.services import assets, batch_endpoints, deployments, jobs, urls, workspaces
from azureml_emulator.state import State, read_state
from azureml_emulator.storage import ACCOUNT, run_azurite
from azureml_emulator.web import (
    LOOPBACK,
    EmulatorError,
    Servers,
    make_certificate,
    warn,
    write_atomic,
)

EXPIRE_SECONDS = 3600.0  # between two looks at what is too old to be kept
SUPERVISE_SECONDS = 1.0  # between two looks at the deployments' servers


class Emulator:
    """A local Azure Machine Learning, as a context manager.

    What was deployed when it last ran comes up again. Raises EmulatorError if Azurite is missing,
    the folder is in use, or its state is damaged or of another version.
    """

    def __init__(
        self,
        folder: Path,
        azurite: Path | None = None,
        containers: Sequence[str] = (),
        on_request: OnRequest | None = None,
        on_lost: OnLost | None = None,
        controls: bool = False,
    ) -> None:
        """Keep everything in `folder`.

        `azurite` is its program (see `storage.find_azurite`); `containers` are made beside the
        workspace's own; the functions are called for each request and for requests whose rows were
        lost; `controls` switches the test controls on.
        """
        self.folder, self.azurite, self.containers = folder.resolve(), azurite, tuple(containers)
        self.on_request, self.on_lost = on_request, on_lost
        self.with_controls = controls
        self.address_file = self.folder / "address.json"
        self.address: dict[str, Any] = {}
        self.opened = contextlib.ExitStack()

    def __enter__(self) -> "Emulator":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with contextlib.ExitStack() as stack:
            stack.callback(lock(self.folder).close)
            self.address = self.read_address()
            read_state(self.folder / "state.json")  # before anything is started
            self.start(stack)
            self.opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start everything; `stack` gets what ends it, in the reverse order."""
        azurite = run_azurite(
            self.folder / "blobs", self.port("blob"), self.azurite, self.containers
        )
        self.storage = stack.enter_context(azurite)
        self.servers = Servers()
        stack.callback(self.servers.close)
        self.collector = Collector(self.storage.client, self.on_lost)
        stack.callback(self.collector.close)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority, certificate, key = make_certificate(self.folder)
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError:  # damaged
            key.unlink()
            authority, certificate, key = make_certificate(self.folder)
            context.load_cert_chain(certificate, key)
        try:
            self.router = Router(
                self.servers, self.port("router"), self.collector.take, self.on_request
            )
            stack.callback(self.router.close)
            self.state = state = State(self.folder, self.router, self.storage)
            stack.callback(state.workers.shutdown, wait=True, cancel_futures=True)
            stack.callback(jobs.close, state)
            state.token = self.address.get("token") or secrets.token_urlsafe()
            middlewares, addresses = [], dict[str, Any]()
            if self.with_controls:
                controls = Controls(state)
                middlewares.append(controls.middleware)
                server = self.servers.serve(controls.application(), self.port("controls"))
                stack.callback(server.stop)
                addresses["controls"] = f"http://{LOOPBACK}:{server.port}"
                addresses["controls_port"] = server.port
            api = urls.application(state, middlewares)
            server = self.servers.serve(api, self.address.get("port", 0), context)
            stack.callback(server.stop)
        except OSError as error:
            raise EmulatorError(
                f"{self.address_file}: {error}. Delete this file if another program has the port."
            ) from None
        state.url = f"https://{LOOPBACK}:{server.port}"
        for name in ("controls", "controls_port"):  # of an earlier start
            self.address.pop(name, None)
        self.publish(
            url=state.url,
            token=state.token,
            certificate=str(authority),
            blobs=self.storage.url.removesuffix(f"/{ACCOUNT}"),
            blob_key=self.storage.key,
            port=server.port,
            router_port=self.router.port,
            blob_port=self.storage.port,
            **addresses,
        )
        assets.restore(state)
        deployments.restore(state)
        batch_endpoints.restore(state)
        jobs.restore(state)
        for work, seconds in (
            (workspaces.enforce_retention, EXPIRE_SECONDS),
            (deployments.supervise, SUPERVISE_SECONDS),
        ):
            repeated = asyncio.run_coroutine_threadsafe(
                self.repeat(work, seconds), self.servers.loop
            )
            stack.callback(repeated.cancel)

    async def repeat(self, work: Callable[[State], None], seconds: float) -> None:
        """Do something to the state again and again."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(work, self.state)
            except Exception as error:  # of one time; the next may do
                warn(f"{work.__name__}: {error!r}")

    def read_address(self) -> dict[str, Any]:
        """Return what address.json held when the emulator last ran here."""
        if not self.address_file.exists():
            return {}
        try:
            address = dict(json.loads(self.address_file.read_text("utf-8")))
            ports = [port for name, port in address.items() if name.endswith("port")]
            if all(isinstance(port, int) for port in ports):
                return address
            raise ValueError
        except (ValueError, TypeError):
            message = f"{self.address_file}: expected JSON, found something else. Delete this file."
            raise EmulatorError(message) from None

    def port(self, name: str) -> int:
        """Return the port that a server had when the emulator last ran, 0 for any."""
        return int(self.address.get(f"{name}_port", 0))

    def publish(self, **values: Any) -> None:
        """Write values to address.json."""
        self.address |= values
        write_atomic(self.address_file, json.dumps(self.address, indent=1) + "\n")


def lock(folder: Path) -> sqlite3.Connection:
    """Return a lock on a folder; closing it, or the end of this process, sets the folder free.

    Raises EmulatorError if another process has it.
    """
    file = sqlite3.connect(folder / "lock", timeout=0, check_same_thread=False)
    try:
        file.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        file.close()
        message = f"{folder}: in use ({error}). Is the emulator of this folder running already?"
        raise EmulatorError(message) from None
    return file


def stop_event() -> threading.Event:
    """Return an event that Ctrl-C, SIGTERM and SIGHUP set from now on, for a program of its own.

    Azure's SDK logs nothing from now on: the program prints what matters itself.
    """
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; `nohup` ignores it
        number = getattr(signal, name, signal.SIGINT)
        if name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
    return stop
