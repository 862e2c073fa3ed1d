"""The emulator in this process: all its servers, and one folder with all its data.

`address.json` in the folder has the servers' addresses, for `client.connect` and other programs;
ports and the client's secret stay the same when the emulator starts again with the same folder.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from aiohttp import web
from filelock import FileLock, Timeout
from pydantic import Field

from azureml_emulator.collector import Collector, OnLost
from azureml_emulator.router import OnRequest, Router
from azureml_emulator.services import assets, deployments, jobs, urls
from azureml_emulator.services.sign_in import Tokens
from azureml_emulator.settings import read_settings
from azureml_emulator.state import State, read_state
from azureml_emulator.storage import ACCOUNT, run_azurite, take_tokens
from azureml_emulator.web import (
    LOOPBACK,
    EmulatorError,
    Servers,
    make_certificate,
    read_file,
    warn,
    write_atomic,
)

SUPERVISE_SECONDS = 1.0  # between two checks of the deployments' servers
Port = Annotated[int, Field(ge=0, le=65535)]  # 0: any


class Emulator:
    """A local Azure Machine Learning, as a context manager.

    Deployments of its last run are restored. Raises EmulatorError if Azurite is missing, the folder
    is in use, or its state is corrupted or of another version.
    """

    def __init__(
        self,
        folder: Path,
        azurite: Path | None = None,
        containers: Sequence[str] = (),
        on_request: OnRequest | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        """Keep everything in `folder`.

        `azurite` is its program (see `storage.find_azurite`). `containers` are created in addition
        to the workspace's own. `on_request` is called for each request, `on_lost` for requests
        whose rows were lost.
        """
        self.folder, self.azurite, self.containers = folder.resolve(), azurite, tuple(containers)
        self.on_request, self.on_lost = on_request, on_lost
        self.address_file = self.folder / "address.json"
        self.address: dict[str, Any] = {}
        self.opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.folder.chmod(0o700)
                stack.enter_context(FileLock(self.folder / "lock", timeout=0))
                kept = read_file(self.address_file, dict[str, Port | str], "Delete this file.")
                for name, value in (kept or {}).items():  # of its last run here
                    if isinstance(value, str) != ("port" in name):
                        self.address[name] = value
                read_state(self.folder / "state.json")  # before anything is started
                read_settings(self.folder)
                self.start(stack)
            except Timeout:
                message = "in use. Is the emulator of this folder running already?"
                raise EmulatorError(f"{self.folder}: {message}") from None
            except OSError as error:  # for instance, a folder where a file is expected
                place, fix = error.filename or self.folder, "Correct this and start again."
                raise EmulatorError(f"{place}: {error.strerror}. {fix}") from None
            self.opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start everything; `stack` ends it in reverse order."""
        azurite = run_azurite(
            self.folder / "blobs", self.address.get("blob_port", 0), self.azurite, self.containers
        )
        self.storage = stack.enter_context(azurite)
        self.servers = Servers()
        stack.callback(self.servers.close)
        self.collector = Collector(self.storage, self.on_lost)
        stack.callback(self.collector.close)
        authority = self.folder / "authority.pem"
        context = make_certificate(authority)
        self.router = Router(
            self.servers, self.address.get("router_port", 0), self.collector.take, self.on_request
        )
        stack.callback(self.router.close)
        tokens = Tokens(self.address.get("secret") or secrets.token_urlsafe(), self.folder)
        self.state = state = State(self.folder, self.router, self.storage, tokens)
        stack.callback(state.workers.shutdown, wait=True, cancel_futures=True)
        stack.callback(jobs.close, state)
        server = self.servers.serve(self.application(), self.address.get("port", 0), context)
        stack.callback(server.stop)
        blobs = self.storage.url.removesuffix(f"/{ACCOUNT}")
        if state.settings.identity_datastores:
            taking = take_tokens(self.storage, tokens, f"https://{LOOPBACK}:{server.port}")
            tls = self.servers.serve(taking, self.address.get("tls_blob_port", 0), context)
            stack.callback(tls.stop)
            self.address["tls_blob_port"] = tls.port
            blobs = f"https://{LOOPBACK}:{tls.port}"
        state.url = f"https://{LOOPBACK}:{server.port}"
        self.publish(
            url=state.url,
            secret=tokens.secret,
            certificate=str(authority),
            blobs=blobs,
            blob_key=self.storage.key,
            port=server.port,
            router_port=self.router.port,
            blob_port=self.storage.port,
        )
        assets.restore(state)
        deployments.restore(state)
        jobs.restore(state)
        supervised = asyncio.run_coroutine_threadsafe(self.supervise(), self.servers.loop)
        stack.callback(supervised.cancel)

    def application(self) -> web.Application:
        """Return the application that serves the management API."""
        return urls.application(self.state)

    async def supervise(self) -> None:
        """Supervise the deployments' servers and Azurite periodically."""
        stores = True
        while True:
            await asyncio.sleep(SUPERVISE_SECONDS)
            if stores and self.storage.process.poll() is not None:
                stores = False
                warn("Azurite has ended, so nothing is stored. Restart the emulator.")
            try:
                await asyncio.to_thread(deployments.supervise, self.state)
            except Exception as error:  # of one attempt; the next may succeed
                warn(f"the deployments' servers could not be supervised: {error!r}")

    def publish(self, **values: Any) -> None:
        """Write values to address.json."""
        self.address |= values
        write_atomic(self.address_file, json.dumps(self.address, indent=1) + "\n")


def stop_event() -> threading.Event:
    """Return an event that Ctrl-C, SIGTERM and SIGHUP set from now on, for a stand-alone program.

    Azure's SDK logs nothing from now on: the program prints what matters itself.
    """
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; `nohup` ignores it
        number = getattr(signal, name, signal.SIGINT)
        if name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
    return stop
