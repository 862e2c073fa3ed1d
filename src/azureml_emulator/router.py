"""The endpoint of the stand-in: keys, weights, one inference server a deployment, collected rows.

All on loopback. A server is Azure's own, started with the deployment's code and model; what it
collects comes in on a port of its own, so that the rows' deployment is known, and goes to the
folder that Azure's collector would fill.
"""

import contextlib
import http.client
import os
import random
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.errors import (
    FirstHeaderLineIsContinuationDefect,
    MisplacedEnvelopeHeaderDefect,
    MissingHeaderBodySeparatorDefect,
)
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from azureml_emulator import inference

LOOPBACK = "127.0.0.1"
LENGTH_DIGITS = 9  # of a body's; what is larger is not even read
DRAIN_SECONDS = 30  # that requests under way may take when their deployment is deleted
WRONG = (  # of headers: the parser is one for mails, and finds fault with their contents, too
    FirstHeaderLineIsContinuationDefect,
    MisplacedEnvelopeHeaderDefect,
    MissingHeaderBodySeparatorDefect,
)
NO_ROUTE = (
    "No valid deployments to route to. Please check that the endpoint has at least one deployment "
    "with positive weight values or use a deployment specific header to route."
)


class Server(ThreadingHTTPServer):
    """A server of this machine alone; Ctrl-C does not wait for clients that keep a connection."""

    daemon_threads = True
    request_queue_size = 128

    def start(self) -> "Server":
        """Serve from a thread."""
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop serving and free the port."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class Handler(BaseHTTPRequestHandler):
    """What both of the stand-in's servers share."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a kept connection would wait 40 ms for each answer's body

    def log_message(self, *arguments: Any) -> None:
        """Write no line a request."""

    def body(self) -> bytes:
        """Return the request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send one answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@dataclass
class Running:
    """One deployment's inference server."""

    process: subprocess.Popen[bytes]
    port: int
    sink: Server
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
        port: int,
        collect: Callable[[str, str, Any, bytes], None],
        record: Callable[[str, str, int, float], None],
    ) -> None:
        """Listen on `port` (0: a free one).

        `collect(endpoint, deployment, headers, rows)` gets what is collected,
        `record(endpoint, deployment, status, seconds)` each request once it is answered.
        """
        self.endpoints: dict[str, Endpoint] = {}
        self.running: dict[tuple[str, str], Running] = {}
        self.lock = threading.Lock()
        self.collect, self.record = collect, record
        self.server = Server((LOOPBACK, port), self._scoring())
        self.url = f"http://{LOOPBACK}:{self.server.server_address[1]}"

    def start(
        self,
        place: tuple[str, str],
        code: Path,
        model: Path,
        env: dict[str, str],
        log: Path,
        seconds: float,
    ) -> None:
        """Start the server of deployment `place`; return once it is healthy.

        It replaces the one that ran. Raises DigitsError as `inference.start` does.
        """
        sink = Server((LOOPBACK, 0), self._sink(*place)).start()
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            port = free.getsockname()[1]
        settings = {
            "AML_APP_INSIGHTS_ENABLED": "false",
            "AZUREML_MDC_HOST": LOOPBACK,
            "AZUREML_MDC_PORT": str(sink.server_address[1]),
            "NO_PROXY": LOOPBACK,
        }
        try:
            workers = int(env.get("WORKER_COUNT", "1"))
            env = os.environ | env | settings
            process = inference.start(code, model, port, log, env, seconds, workers)
        except BaseException:
            sink.stop()
            raise
        fresh = Running(process, port, sink)
        with self.lock:
            before = self.running.get(place)
            self.running[place] = fresh
        if before:
            self._end(before)

    def stop(self, place: tuple[str, str]) -> None:
        """Stop a deployment's server when its requests under way are answered."""
        with self.lock:
            before = self.running.pop(place, None)
        if before:
            self._end(before)

    def close(self) -> None:
        """Stop everything."""
        self.server.stop()
        for place in list(self.running):
            self.stop(place)

    def _end(self, running: Running) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while running.under_way and time.monotonic() < deadline:
            time.sleep(0.02)
        inference.stop(running.process)
        running.sink.stop()

    @contextlib.contextmanager
    def route(self, endpoint: str, wanted: str | None) -> Iterator[tuple[str, int] | None]:
        """Yield name and port of the deployment for a request, or None when there is none."""
        with self.lock:
            traffic = self.endpoints[endpoint].traffic
            weights = {
                name: weight
                for name, weight in traffic.items()
                if weight and (endpoint, name) in self.running
            }
            name = wanted or (
                random.choices(*zip(*weights.items(), strict=True))[0] if weights else ""
            )
            running = self.running.get((endpoint, name))
            if running:
                running.under_way += 1
        try:
            yield (name, running.port) if running else None
        finally:
            if running:
                with self.lock:
                    running.under_way -= 1

    def _sink(self, endpoint: str, deployment: str) -> type[Handler]:
        collect = self.collect

        class Sink(Handler):
            """Takes what azureml-ai-monitoring sends."""

            def do_POST(self) -> None:
                """Keep one batch of rows."""
                collect(endpoint, deployment, self.headers, self.body())
                self.answer(200, b"", {})

        return Sink

    def _scoring(self) -> type[Handler]:
        router = self

        class Scoring(Handler):
            """POST /ENDPOINT/score."""

            def do_POST(self) -> None:
                """Check the key, choose a deployment, pass the request on."""
                if refusal := _refusal(self.headers):
                    self.close_connection = True  # what follows cannot be told from a body
                    return self.answer(*refusal, {})
                body = self.body()
                name, _, rest = self.path.lstrip("/").partition("/")
                endpoint = router.endpoints.get(name)
                if endpoint is None:
                    return self.answer(404, b"There is no such endpoint.", {})
                if (
                    self.headers.get("Authorization", "").removeprefix("Bearer ")
                    not in endpoint.keys
                ):
                    return self.answer(401, b"The key or token is missing or wrong.", {})
                began = time.monotonic()
                with router.route(name, self.headers.get("azureml-model-deployment")) as target:
                    answer: tuple[int, bytes, dict[str, str]] = (404, NO_ROUTE.encode(), {})
                    if target:
                        answer = _forward(target, "/" + rest, body, self.headers)
                    seconds = time.monotonic() - began
                    router.record(name, target[0] if target else "", answer[0], seconds)
                    return self.answer(*answer)

            def do_GET(self) -> None:
                """Refuse what is no POST."""
                self.close_connection = True  # it may have a body
                self.answer(405, b"Send a POST.", {"Allow": "POST"})

            do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

        return Scoring


def _refusal(headers: Any) -> tuple[int, bytes] | None:
    length = headers.get("Content-Length", "")
    rest = headers.get_payload()  # a line that is no header, and all after it
    if (isinstance(rest, str) and rest) or any(isinstance(one, WRONG) for one in headers.defects):
        return 400, b"The headers are malformed."
    if "Transfer-Encoding" in headers or not length.isdecimal():
        return 411, b"Send the body's length as Content-Length alone."
    if len(length) > LENGTH_DIGITS:
        return 413, b"The body is too large."
    return None


def _forward(
    target: tuple[str, int], path: str, body: bytes, headers: Any
) -> tuple[int, bytes, dict[str, str]]:
    deployment, port = target
    passed = {"x-ms-request-id": str(uuid.uuid4())}
    passed |= {
        name: value
        for name, value in headers.items()
        if name.lower() not in ("host", "authorization", "connection", "content-length")
    }
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
    try:
        connection.request("POST", path, body, passed)
        answer = connection.getresponse()
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower()
            not in ("connection", "content-length", "transfer-encoding", "date", "server")
        }
        return answer.status, answer.read(), kept | {"azureml-model-deployment": deployment}
    except (ValueError, http.client.InvalidURL) as error:  # nothing was sent
        return 400, f"the request is malformed: {str(error)[:200]}".encode(), {}
    except (OSError, http.client.HTTPException) as error:
        text = f"the deployment's server does not answer: {error}"
        return 502, text.encode(), {"azureml-model-deployment": deployment}
    finally:
        connection.close()
