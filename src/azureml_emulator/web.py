"""HTTP servers on loopback, all on one event loop in a separate thread.

Every server has the same limits: a connection without a complete request head is closed after
IDLE_SECONDS, a body must arrive within READ_SECONDS (408) and may not exceed its application's
`client_max_size` (413). The parser of aiohttp refuses conflicting lengths with 400. A request for
another host than loopback is refused (403), against web pages that rebind their name to loopback.
"""

import asyncio
import io
import logging
import ssl
import sys
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import trustme
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

LOOPBACK = "127.0.0.1"
HOSTS = {LOOPBACK, "localhost"}
IDLE_SECONDS = 75.0  # nginx's default
READ_SECONDS = 60.0
STOP_SECONDS = 5.0  # for the current requests when a server stops
THREADS = 16  # for blocking work of all servers
NOT_SENT = {"host", "authorization", "expect", "keep-alive"}
NOT_RETURNED = {"date", "server"}
FRAMING = {"connection", "content-length", "transfer-encoding"}  # of one connection
LOG = logging.getLogger("azureml_emulator")  # silent unless the program configures it
LOG.addHandler(logging.NullHandler())
T = TypeVar("T")


class EmulatorError(Exception):
    """An error that the user can fix. The message states what, where and how to fix it."""


def warn(message: str) -> None:
    """Print a line to standard error."""
    print(f"azureml_emulator: {message}", file=sys.stderr, flush=True)


@dataclass
class Server:
    """One listening server."""

    servers: "Servers"
    runner: web.AppRunner
    port: int

    def stop(self) -> None:
        """Stop listening; requests under way may take STOP_SECONDS."""

        async def end() -> None:
            assert self.runner.server
            open_ = [one.transport for one in self.runner.server.connections if one.transport]
            await self.runner.cleanup()
            for transport in open_:  # TLS would wait for its peer to close
                transport.abort()

        self.servers.run(end())


class Servers:
    """The thread with the event loop. Blocking work of handlers goes to `asyncio.to_thread`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.threads = ThreadPoolExecutor(THREADS)
        self.loop.set_default_executor(self.threads)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop; wait for its result. Call it from other threads only."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def serve(
        self, application: web.Application, port: int = 0, context: ssl.SSLContext | None = None
    ) -> Server:
        """Serve an application on a port of loopback (0: a free one), with TLS if given a context.

        Raises EmulatorError if the port is taken.
        """
        application.middlewares.insert(0, check_host)

        async def listen() -> Server:
            runner = web.AppRunner(
                application,
                access_log=None,
                logger=LOG,
                keepalive_timeout=IDLE_SECONDS,
                shutdown_timeout=STOP_SECONDS,
            )
            await runner.setup()
            try:
                await web.TCPSite(runner, LOOPBACK, port, ssl_context=context).start()
            except OSError as error:
                await runner.cleanup()
                fix = "End the program that has this port, or delete the emulator's address.json."
                raise EmulatorError(f"{LOOPBACK}:{port}: {error.strerror}. {fix}") from None
            return Server(self, runner, runner.addresses[0][1])

        return self.run(listen())

    def close(self) -> None:
        """End the loop and its threads, after all servers were stopped."""

        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # lets the transports close

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.threads.shutdown()
        self.loop.close()


@web.middleware
async def check_host(request: web.Request, handler: Any) -> web.StreamResponse:
    """Refuse a request whose Host is not loopback's."""
    if (request.host.rpartition(":")[0] or request.host) in HOSTS:
        return await handler(request)
    refusal = web.HTTPForbidden(text=f"This server serves {LOOPBACK} alone.")
    refusal.force_close()
    raise refusal


def check_length(request: web.Request, required: bool) -> None:
    """Refuse a body by its head: 411 without Content-Length if that is required, 413 if too large.

    A refusal closes the connection: its body was not read.
    """
    length = request.content_length
    refusal: web.HTTPException | None = None
    if required and length is None:
        refusal = web.HTTPLengthRequired(text="Send the body's length as Content-Length alone.")
    elif length is not None and length > request.client_max_size:
        text = f"The body is too large: {length:,} bytes; at most {request.client_max_size:,}."
        refusal = web.HTTPRequestEntityTooLarge(request.client_max_size, length, text=text)
    if refusal:
        refusal.force_close()
        raise refusal


async def read_body(request: web.Request) -> bytes:
    """Return the body; 408 if it does not arrive within READ_SECONDS, 413 if it is too large."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await request.read()
    except TimeoutError:
        refusal = web.HTTPRequestTimeout(text=f"No complete body within {READ_SECONDS:g} s.")
        refusal.force_close()
        raise refusal from None


async def send_on(
    request: web.Request,
    address: int | Path,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    seconds: float | None = None,
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Send a request on to a port of loopback or a Unix socket; return status, headers, body.

    The path is sent as it was quoted. Raises ValueError if it is malformed, TimeoutError, OSError,
    aiohttp.ClientError.
    """
    connector: aiohttp.BaseConnector = (
        aiohttp.UnixConnector(str(address), force_close=True)
        if isinstance(address, Path)
        else aiohttp.TCPConnector(force_close=True)
    )
    client = aiohttp.ClientSession(  # for one request: Azure's server closes the connection
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=seconds),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        auto_decompress=False,
    )
    host = LOOPBACK if isinstance(address, Path) else f"{LOOPBACK}:{address}"
    sending = client.request(
        request.method,
        type(request.url)(f"http://{host}{path}", encoded=True),
        data=io.BytesIO(body) if request.body_exists else None,
        headers=kept(headers, NOT_SENT | FRAMING),
        allow_redirects=False,
    )
    # An answer to HEAD has the length of a body that is not sent.
    framing = FRAMING - {"content-length"} if request.method == "HEAD" else FRAMING
    async with client, sending as answer:
        return answer.status, kept(answer.headers, NOT_RETURNED | framing), await answer.read()


def kept(headers: Mapping[str, str], dropped: set[str]) -> list[tuple[str, str]]:
    """Return headers, repeated ones too, without those of one connection."""
    return [(name, value) for name, value in headers.items() if name.lower() not in dropped]


def bypassed(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that exempt loopback from a proxy, with the exemptions in `env`."""
    found = {}
    for name in ("NO_PROXY", "no_proxy"):  # the lower-case one has priority
        known = filter(None, env.get(name, "").split(","))
        found[name] = ",".join(dict.fromkeys([*known, LOOPBACK]))
    return found


def read_file(path: Path, kind: Any, fix: str) -> Any:
    """Return the content of a JSON file as a type that pydantic knows, None if there is no file.

    Raises EmulatorError, with the place in the file and `fix`, for other content; and OSError.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise EmulatorError(f"{path}: {place}: {first['msg']}. {fix}") from None


def write_atomic(path: Path, text: str) -> None:
    """Write UTF-8, readable by the owner only; readers see the complete file or the one before."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text, "utf-8", newline="\n")
    partial.replace(path)


def make_certificate(file: Path) -> ssl.SSLContext:
    """Return TLS with a new certificate for 127.0.0.1; write its CA to `file`, for clients."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    write_atomic(file, authority.cert_pem.bytes().decode())
    return context
