"""The scoring address of online endpoints: keys, weights, one inference server per deployment.

Data collectors send to a separate port. Each deployment has a password, known only to its server,
that identifies its rows.
"""

import asyncio
import contextlib
import os
import random
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from azureml_emulator import inference
from azureml_emulator.services.sign_in import Access
from azureml_emulator.web import LOOPBACK, Servers, bypassed, check_length, read_body, send_on

BODY_BYTES = 100_000_000  # of a request; the deployment's own code may accept less
ROWS_BYTES = 100_000_000  # of collected rows in one call
DRAIN_SECONDS = 30.0  # for the current requests of a deployment that is deleted
DRAIN_POLL_SECONDS = 0.02
# The status for a deployment's own failure, with the body of its answer: 424. Source of this and of
# 408 and 429: learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints,
# "HTTP status codes".
MODEL_STATUS = "ms-azureml-model-error-statuscode"
MODEL_REASON = ("ms-azureml-model-error-reason", "model_error")
CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{0,40}")
NO_ROUTE = (
    "No valid deployments to route to. Please check that the endpoint has at least one deployment "
    "with positive weight values or use a deployment specific header to route."
)
OnRequest = Callable[[str, str, int, float], object]  # endpoint, deployment, status, seconds


@dataclass(frozen=True)
class Launch:
    """The arguments with which a deployment's inference server is started."""

    code: str  # folders
    model: str
    script: str  # below `code`
    log: str
    env: dict[str, str]
    seconds: float  # maximum time until it is healthy
    limit: int = 2  # requests that may be under way
    request_seconds: float = 5.0  # maximum time of one request


@dataclass
class Running:
    """One deployment's inference server."""

    process: subprocess.Popen[bytes]
    address: inference.Address
    launch: Launch
    name: str = ""  # the deployment's, as it was first spelled
    password: str = ""  # of its data collector
    under_way: int = 0
    failures: int = 0  # of restarts after it ended
    next_start: float = 0.0  # time.monotonic() of the earliest restart

    def lost(self) -> bool:
        """Return whether it has ended, or cannot be reached because its socket was deleted."""
        gone = isinstance(self.address, Path) and not self.address.exists()
        return gone or self.process.poll() is not None


@dataclass
class Endpoint:
    """What the router knows of an endpoint."""

    access: Access
    traffic: dict[str, int] = field(default_factory=dict)


def short_folder() -> str | None:
    """Return the folder for sockets, None for the usual one: their paths have 103 bytes at most."""
    return "/tmp" if inference.UNIX and len(os.fsencode(tempfile.gettempdir())) > 80 else None


class Router:
    """All endpoints and the servers behind them, by names in lower case: Azure ignores the case."""

    def __init__(
        self,
        servers: Servers,
        port: int,
        collect: Callable[[str, str, Mapping[str, str], bytes], object],
        on_request: OnRequest | None = None,
    ) -> None:
        """Serve on `port` (0: a free one).

        `collect(endpoint, deployment, headers, rows)` is called with collected rows, `on_request`
        with each request before it is answered. A deployment is "" if none was chosen.
        """
        self.endpoints: dict[str, Endpoint] = {}
        self.running: dict[tuple[str, str], Running] = {}
        self.lock = threading.Lock()
        self.servers, self.collect, self.on_request = servers, collect, on_request
        self.aborted = threading.Event()  # cancels current starts
        application = web.Application(client_max_size=BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self.score)
        self.server = servers.serve(application, port)
        self.sinks: dict[str, tuple[str, str]] = {}  # endpoint and deployment by password
        sink = web.Application(client_max_size=ROWS_BYTES)
        sink.router.add_post("/{path:.*}", self.take_rows)
        self.sink = servers.serve(sink)
        self.port = self.server.port
        self.url = f"http://{LOOPBACK}:{self.port}"

    def start(
        self,
        endpoint: str,
        deployment: str,
        launch: Launch,
        may_replace: Callable[[Running | None], bool] = lambda before: True,
    ) -> None:
        """Start a deployment's server; return once it is healthy.

        Then it replaces the running one, if `may_replace` allows. Raises EmulatorError as
        `inference.start` does; then the running one stays.
        """
        password, place = secrets.token_urlsafe(), (endpoint.lower(), deployment.lower())
        self.sinks[password] = (endpoint, deployment)
        settings = {
            "AML_APP_INSIGHTS_ENABLED": "false",
            "AZUREML_MDC_HOST": f"emulator:{password}@{LOOPBACK}",
            "AZUREML_MDC_PORT": str(self.sink.port),
        }
        given = os.environ | launch.env
        address = Path(tempfile.mkdtemp(prefix="aml-", dir=short_folder()), "s")  # 0700
        try:
            process = inference.start(
                Path(launch.code),
                Path(launch.model),
                address,
                Path(launch.log),
                given | settings | bypassed(given),
                launch.seconds,
                int(launch.env.get("WORKER_COUNT", "1")),
                launch.script,
                self.aborted,
            )
        except BaseException:
            shutil.rmtree(address.parent, ignore_errors=True)
            del self.sinks[password]
            raise
        fresh = Running(process, address, launch, deployment, password)
        with self.lock:
            before = self.running.get(place)
            if may_replace(before):
                self.running[place] = fresh
            else:
                before = fresh
        if before:
            self.end(before)

    def stop(self, place: tuple[str, str]) -> None:
        """Stop a deployment's server after its current requests."""
        with self.lock:
            before = self.running.pop((place[0].lower(), place[1].lower()), None)
        if before:
            self.end(before)

    def close(self) -> None:
        """Stop everything."""
        self.server.stop()
        for place in list(self.running):
            self.stop(place)
        self.sink.stop()

    def end(self, running: Running) -> None:
        """End a server that gets no more requests."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while running.under_way and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL_SECONDS)
        inference.stop(running.process)
        if isinstance(running.address, Path):
            shutil.rmtree(running.address.parent, ignore_errors=True)
        self.sinks.pop(running.password, None)

    @contextlib.contextmanager
    def route(self, endpoint: str, chosen: str | None) -> Iterator[Running | None]:
        """Yield the server of the deployment for a request, or None if there is none."""
        with self.lock:
            weights = {
                name.lower(): weight
                for name, weight in self.endpoints[endpoint].traffic.items()
                if weight and (endpoint, name.lower()) in self.running
            }
            drawn = random.choices(*zip(*weights.items(), strict=True)) if weights else [""]
            running = self.running.get((endpoint, (chosen or drawn[0]).lower()))
            if running:
                running.under_way += 1
        try:
            yield running
        finally:
            if running:
                with self.lock:
                    running.under_way -= 1

    async def take_rows(self, request: web.Request) -> web.Response:
        """Take the rows that azureml-ai-monitoring posts to /modeldata/log (observed)."""
        try:
            given = aiohttp.BasicAuth.decode(request.headers.get("Authorization", ""))
            place = self.sinks[given.password]
        except (ValueError, KeyError):
            text = "The deployment's password is missing or wrong."
            raise web.HTTPUnauthorized(text=text) from None
        check_length(request, required=True)
        rows = await read_body(request)
        await asyncio.to_thread(self.collect, *place, request.headers, rows)
        return web.Response()

    async def score(self, request: web.Request) -> web.Response:
        """Check length and key, choose a deployment, pass the request on."""
        name, _, rest = request.raw_path.lstrip("/").partition("/")
        described = request.method == "GET" and rest.partition("?")[0] == "swagger.json"
        if request.method != "POST" and not described:
            raise web.HTTPMethodNotAllowed(request.method, ["POST"], text="Send a POST.")
        check_length(request, required=not described)
        endpoint = self.endpoints.get(name.lower())
        if not request.raw_path.isascii():
            raise web.HTTPBadRequest(text="The path is malformed: it must be percent-encoded.")
        if endpoint is None:
            raise web.HTTPNotFound(text="There is no such endpoint.")
        if not endpoint.access.accepts(request.headers.get("Authorization", "")):
            raise web.HTTPUnauthorized(text="The key or token is missing, wrong or expired.")
        if not CLIENT_ID.fullmatch(request.headers.get("x-ms-client-request-id", "")):
            raise web.HTTPBadRequest(text="x-ms-client-request-id: up to 40 of A-Z a-z 0-9 _ -.")
        body = await read_body(request)
        began = time.monotonic()
        with self.route(name.lower(), request.headers.get("azureml-model-deployment")) as target:
            if target is None:
                answer = web.Response(status=404, text=NO_ROUTE)
            elif target.under_way > target.launch.limit:
                answer = web.Response(status=429, text="Too many pending requests.")
            else:
                answer = await self.forward(target, rest, body, request)
        if self.on_request:
            seconds, deployment = time.monotonic() - began, target.name if target else ""
            status = int(answer.headers.get(MODEL_STATUS, answer.status))
            await asyncio.to_thread(self.on_request, name, deployment, status, seconds)
        return answer

    async def forward(
        self, target: Running, path: str, body: bytes, request: web.Request
    ) -> web.Response:
        """Return a deployment's answer; 424 if its status is not 200, 408 if late, 502 if none."""
        headers = request.headers.copy()
        headers.setdefault("x-ms-request-id", str(uuid.uuid4()))
        origin, seconds = ("azureml-model-deployment", target.name), target.launch.request_seconds
        try:
            if target.process.poll() is not None:  # another process may have its port by now
                raise ConnectionError("it has ended")
            at, own = inference.found(target.address)
            headers.update(own)
            status, found, answer = await send_on(request, at, f"/{path}", body, headers, seconds)
            found.append(origin)
            if status != 200:
                found += [(MODEL_STATUS, str(status)), MODEL_REASON]
                status = 424
            return web.Response(status=status, body=answer, headers=found)
        except ValueError as error:  # nothing was sent
            return web.Response(status=400, text=f"the request is malformed: {str(error)[:200]}")
        except TimeoutError:
            text = f"The model took longer than {seconds:g} s."
            return web.Response(status=408, text=text, headers=[origin])
        except (OSError, aiohttp.ClientError) as error:
            text = f"the deployment's server does not answer: {error}"
            return web.Response(status=502, text=text, headers=[origin])
