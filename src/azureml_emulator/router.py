"""The scoring address of online endpoints: keys, weights, one inference server a deployment.

What a deployment's data collector sends comes in on a port of its own, so that the rows'
deployment is known.
"""

import asyncio
import contextlib
import io
import os
import random
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from azureml_emulator import inference
from azureml_emulator.web import LOOPBACK, Server, Servers, check_length, read_body

BODY_BYTES = 100_000_000  # of a request; the deployment's own code may take less
ROWS_BYTES = 100_000_000  # that a deployment collects at once
DRAIN_SECONDS = 30.0  # that requests under way may take when their deployment is deleted
DRAIN_POLL_SECONDS = 0.02
NOT_SENT = {"host", "authorization", "connection", "content-length", "expect", "keep-alive"}
NOT_RETURNED = {"connection", "content-length", "transfer-encoding", "date", "server"}
# What a client gets of a deployment's own failure, which comes with the answer's body: 424. Source
# of this and of 408 and 429: learn.microsoft.com/azure/machine-learning/
# how-to-troubleshoot-online-endpoints, "HTTP status codes".
MODEL_STATUS = "ms-azureml-model-error-statuscode"
MODEL_REASON = ("ms-azureml-model-error-reason", "model_error")
CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{0,40}")
NO_ROUTE = (
    "No valid deployments to route to. Please check that the endpoint has at least one deployment "
    "with positive weight values or use a deployment specific header to route."
)
OnRequest = Callable[[str, str, int, float], object]  # endpoint, deployment, status, seconds


@dataclass
class Running:
    """One deployment's inference server."""

    process: subprocess.Popen[bytes]
    port: int
    sink: Server
    limit: int = 2  # requests that may be under way
    seconds: float = 5.0  # that one may take
    under_way: int = 0


@dataclass
class Endpoint:
    """What the router knows of an endpoint."""

    keys: list[str]
    traffic: dict[str, int] = field(default_factory=dict)


class Router:
    """All endpoints and the servers behind them."""

    def __init__(
        self,
        servers: Servers,
        port: int,
        collect: Callable[[str, str, Mapping[str, str], bytes], object],
        on_request: OnRequest | None = None,
    ) -> None:
        """Serve on `port` (0: a free one).

        `collect(endpoint, deployment, headers, rows)` gets what is collected, `on_request` each
        request before it is answered; its deployment is "" if none was chosen.
        """
        self.endpoints: dict[str, Endpoint] = {}
        self.running: dict[tuple[str, str], Running] = {}
        self.lock = threading.Lock()
        self.servers, self.collect, self.on_request = servers, collect, on_request
        application = web.Application(client_max_size=BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self.score)
        application.cleanup_ctx.append(self.client)
        self.server = servers.serve(application, port)
        self.port = self.server.port
        self.url = f"http://{LOOPBACK}:{self.port}"

    async def client(self, application: web.Application) -> Any:
        """Keep a client for the deployments' servers while this one runs."""
        added = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),  # Azure's server keeps none
            skip_auto_headers=added,
            auto_decompress=False,
        )
        yield
        await self.session.close()

    def start(
        self,
        place: tuple[str, str],
        code: Path,
        model: Path,
        env: Mapping[str, str],
        log: Path,
        seconds: float,
        limit: int = 2,
        request_seconds: float = 5.0,
    ) -> None:
        """Start the server of deployment `place`; return once it is healthy, within `seconds`.

        At most `limit` requests are passed on to it at once, each for `request_seconds`. It
        replaces the one that ran. Raises EmulatorError as `inference.start` does.
        """
        sink = self.servers.serve(self.sink(*place))
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            port = free.getsockname()[1]
        settings = {
            "AML_APP_INSIGHTS_ENABLED": "false",
            "AZUREML_MDC_HOST": LOOPBACK,
            "AZUREML_MDC_PORT": str(sink.port),
            "NO_PROXY": LOOPBACK,
        }
        try:
            workers = int(env.get("WORKER_COUNT", "1"))
            env = {**os.environ, **env, **settings}
            process = inference.start(code, model, port, log, env, seconds, workers)
        except BaseException:
            sink.stop()
            raise
        fresh = Running(process, port, sink, limit, request_seconds)
        with self.lock:
            before = self.running.get(place)
            self.running[place] = fresh
        if before:
            self.end(before)

    def stop(self, place: tuple[str, str]) -> None:
        """Stop a deployment's server when its requests under way are answered."""
        with self.lock:
            before = self.running.pop(place, None)
        if before:
            self.end(before)

    def close(self) -> None:
        """Stop everything."""
        self.server.stop()
        for place in list(self.running):
            self.stop(place)

    def end(self, running: Running) -> None:
        """End a server that gets no more requests."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while running.under_way and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL_SECONDS)
        inference.stop(running.process)
        running.sink.stop()

    @contextlib.contextmanager
    def route(self, endpoint: str, chosen: str | None) -> Iterator[tuple[str, Running | None]]:
        """Yield the deployment for a request, None for its server if there is none."""
        with self.lock:
            weights = {
                name: weight
                for name, weight in self.endpoints[endpoint].traffic.items()
                if weight and (endpoint, name) in self.running
            }
            drawn = random.choices(*zip(*weights.items(), strict=True)) if weights else [""]
            name = chosen or drawn[0]
            running = self.running.get((endpoint, name))
            if running:
                running.under_way += 1
        try:
            yield name, running
        finally:
            if running:
                with self.lock:
                    running.under_way -= 1

    def sink(self, endpoint: str, deployment: str) -> web.Application:
        """Return what takes the rows that azureml-ai-monitoring posts to /modeldata/log (ran)."""

        async def take(request: web.Request) -> web.Response:
            check_length(request, required=True)
            rows = await read_body(request)
            await asyncio.to_thread(self.collect, endpoint, deployment, request.headers, rows)
            return web.Response()

        application = web.Application(client_max_size=ROWS_BYTES)
        application.router.add_post("/{path:.*}", take)
        return application

    async def score(self, request: web.Request) -> web.Response:
        """Check length and key, choose a deployment, pass the request on."""
        if request.method != "POST":
            raise web.HTTPMethodNotAllowed(request.method, ["POST"], text="Send a POST.")
        check_length(request, required=True)
        name, _, rest = request.raw_path.lstrip("/").partition("/")
        endpoint = self.endpoints.get(name)
        if not request.raw_path.isascii():
            raise web.HTTPBadRequest(text="The path is malformed: it must be percent-encoded.")
        if endpoint is None:
            raise web.HTTPNotFound(text="There is no such endpoint.")
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if key not in endpoint.keys:
            raise web.HTTPUnauthorized(text="The key or token is missing or wrong.")
        if not CLIENT_ID.fullmatch(request.headers.get("x-ms-client-request-id", "")):
            raise web.HTTPBadRequest(text="x-ms-client-request-id: up to 40 of A-Z a-z 0-9 _ -.")
        body = await read_body(request)
        began = time.monotonic()
        chosen = request.headers.get("azureml-model-deployment")
        with self.route(name, chosen) as (deployment, running):
            if running is None:
                deployment, answer = "", web.Response(status=404, text=NO_ROUTE)
            elif running.under_way > running.limit:
                answer = web.Response(status=429, text="Too many pending requests.")
            else:
                answer = await self.forward(deployment, running, rest, body, request)
        if self.on_request:
            status = int(answer.headers.get(MODEL_STATUS, answer.status))
            row = (name, deployment, status, time.monotonic() - began)
            await asyncio.to_thread(self.on_request, *row)
        return answer

    async def forward(
        self, deployment: str, running: Running, path: str, body: bytes, request: web.Request
    ) -> web.Response:
        """Return a deployment's answer, 424 if it is no 200, 408 if late, 502 if there is none."""
        path, _, query = path.partition("?")
        url = request.rel_url.build(  # as it came, quoted by the client
            scheme="http",
            host=LOOPBACK,
            port=running.port,
            path=f"/{path}",
            query_string=query,
            encoded=True,
        )
        sent = kept(request.headers, NOT_SENT)
        if "x-ms-request-id" not in request.headers:
            sent.append(("x-ms-request-id", str(uuid.uuid4())))
        origin = ("azureml-model-deployment", deployment)
        limit = aiohttp.ClientTimeout(total=running.seconds)
        content = io.BytesIO(body)
        try:
            async with self.session.post(
                url, data=content, headers=sent, allow_redirects=False, timeout=limit
            ) as answer:
                status, headers = answer.status, [*kept(answer.headers, NOT_RETURNED), origin]
                if status != 200:
                    headers += [(MODEL_STATUS, str(status)), MODEL_REASON]
                    status = 424
                return web.Response(status=status, body=await answer.read(), headers=headers)
        except ValueError as error:  # nothing was sent
            return web.Response(status=400, text=f"the request is malformed: {str(error)[:200]}")
        except TimeoutError:
            text = f"The model took longer than {running.seconds:g} s."
            return web.Response(status=408, text=text, headers=[origin])
        except (OSError, aiohttp.ClientError) as error:
            text = f"the deployment's server does not answer: {error}"
            return web.Response(status=502, text=text, headers=[origin])


def kept(headers: Mapping[str, str], dropped: set[str]) -> list[tuple[str, str]]:
    """Return headers, as often as they come, without those of one connection."""
    return [(name, value) for name, value in headers.items() if name.lower() not in dropped]
