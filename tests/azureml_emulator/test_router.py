"""The scoring address on requests of any bytes; the deployment behind it echoes."""

import dataclasses
import http.client
import socket
from collections.abc import Iterator
from unittest.mock import MagicMock

import aiohttp
import pytest
from aiohttp import web
from signed import keyed

from azureml_emulator import router as module
from azureml_emulator import web as limits
from azureml_emulator.router import Launch, Router, Running
from azureml_emulator.web import LOOPBACK, Servers

KEY = b"Authorization: Bearer secret"
TWO = b"Content-Length: 2"
ALIVE = MagicMock(**{"poll.return_value": None})  # a process
LAUNCH = Launch("code", "model", "score.py", "log", {}, 60.0)


async def echo(request: web.Request) -> web.Response:
    """Send back what came, and how; fail for a query that names a status."""
    if request.query_string.isdigit():
        return web.Response(status=int(request.query_string), text="of the model")
    headers = {"path": request.raw_path, "got": ",".join(sorted(map(str.lower, request.headers)))}
    return web.Response(body=await request.read(), headers=headers)


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    """A router with one endpoint, whose deployment echoes."""
    servers = Servers()
    application = web.Application(client_max_size=10_000_000)
    application.router.add_route("*", "/{path:.*}", echo)
    behind = servers.serve(application)
    made = Router(servers, 0, MagicMock())
    made.endpoints["digits"] = keyed("secret", {"blue": 100})
    made.running["digits", "blue"] = Running(ALIVE, behind.port, LAUNCH, "blue")
    yield made
    made.server.stop()
    made.sink.stop()
    behind.stop()
    servers.close()


def asked(router: Router, path: bytes, *headers: bytes, body: bytes = b"{}") -> int:
    """Send a request as bytes; return the answer's status."""
    complete = b"\r\n".join(
        [b"POST " + path + b" HTTP/1.1", b"Host: localhost", *headers, b"", body]
    )
    with socket.create_connection((LOOPBACK, router.port), timeout=30) as connection:
        connection.sendall(complete)
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            return answer.status


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (b"/digits/score", (KEY, TWO), 200),
        (b"/digits/score?script=%00", (KEY, TWO), 200),
        (b"/digits/score", (KEY, TWO, b"Content-Type: multipart/form-data; boundary=x"), 200),
        (b"/digits/score", (KEY, TWO, b"Content-Type: message/rfc822"), 200),
        (b"/digits/score", (KEY, TWO, b"Expect: 100-continue"), 200),
        (b"/digits/sc\x01ore", (KEY, TWO), 400),
        (b"/digits/sc\xc3\xa9re", (KEY, TWO), 400),
        (b"/digits/score", (KEY, TWO, b"X: a\rb"), 400),
        (b"/digits/score", (KEY, TWO, b"X: a\r\r\n b"), 400),
        (b"/digits/score", (KEY, TWO, b"a b: c"), 400),
        # Conflicting lengths, and lengths that are no number.
        (b"/digits/score", (KEY, TWO, b"Transfer-Encoding: chunked"), 400),
        (b"/digits/score", (KEY, TWO, b"Content-Length: 3"), 400),
        (b"/digits/score", (KEY, b"Content-Length: \xb2"), 400),
        (b"/digits/score", (KEY, b"Content-Length: " + b"9" * 20), 400),
        # Limits come before the key.
        (b"/digits/score", (b"Content-Length: " + b"9" * 15,), 413),
        (b"/digits/score", (TWO,), 401),
        (b"/other/score", (KEY, TWO), 404),
        (b"/digits/score", (KEY, TWO, b"x-ms-client-request-id: " + b"a" * 40), 200),
        (b"/digits/score", (KEY, TWO, b"x-ms-client-request-id: " + b"a" * 41), 400),
        (b"/digits/score", (KEY, TWO, b"x-ms-client-request-id: a:b"), 400),
    ],
)
def test_a_malformed_request_is_refused(
    router: Router, path: bytes, headers: tuple[bytes, ...], status: int
) -> None:
    assert asked(router, path, *headers) == status
    assert asked(router, b"/digits/score", KEY, TWO) == 200


def test_a_request_is_passed_on_as_it_came(router: Router) -> None:
    connection = http.client.HTTPConnection(LOOPBACK, router.port, timeout=30)
    body = bytes(range(256)) * 5000
    for _ in range(2):  # over the same connection
        headers = {"Authorization": "Bearer secret", "X-One": "1"}
        connection.request("POST", "/digits/score?script=a%2Fb+c", body, headers)
        answer = connection.getresponse()
        assert answer.read() == body
        assert answer.headers["path"] == "/score?script=a%2Fb+c"
        assert answer.headers["azureml-model-deployment"] == "blue"
        passed = set(answer.headers["got"].split(","))
        added = {"connection", "host", "content-length", "x-ms-request-id"}
        assert passed == added | {"accept-encoding", "x-one"}  # the client's own
    connection.close()


def test_a_deployment_that_does_not_answer_is_a_502(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        gone = Running(ALIVE, free.getsockname()[1], LAUNCH)
        monkeypatch.setitem(router.running, ("digits", "blue"), gone)
        assert asked(router, b"/digits/score", KEY, TWO) == 502
    assert gone.under_way == 0


@pytest.mark.parametrize("own", [b"413", b"500", b"201"])
def test_a_failure_of_the_model_is_a_424(router: Router, own: bytes) -> None:
    connection = http.client.HTTPConnection(LOOPBACK, router.port, timeout=30)
    headers = {"Authorization": "Bearer secret"}
    connection.request("POST", f"/digits/score?{own.decode()}", b"{}", headers)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (424, b"of the model")
    assert answer.headers["ms-azureml-model-error-statuscode"] == own.decode()
    assert answer.headers["azureml-model-deployment"] == "blue"
    connection.close()


def test_more_requests_than_the_deployment_takes_get_429(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = router.running["digits", "blue"]
    monkeypatch.setattr(busy, "under_way", busy.launch.limit)
    assert asked(router, b"/digits/score", KEY, TWO) == 429
    monkeypatch.setattr(busy, "under_way", busy.launch.limit - 1)
    assert asked(router, b"/digits/score", KEY, TWO) == 200
    assert busy.under_way == busy.launch.limit - 1


def test_an_answer_after_the_request_timeout_is_a_408(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:  # it accepts and never answers
        launch = dataclasses.replace(LAUNCH, request_seconds=0.05)
        slow = Running(ALIVE, silent.getsockname()[1], launch)
        monkeypatch.setitem(router.running, ("digits", "blue"), slow)
        assert asked(router, b"/digits/score", KEY, TWO) == 408


def test_a_slow_body_is_a_408(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_SECONDS", 0.05)
    assert asked(router, b"/digits/score", KEY, TWO, body=b"{") == 408


@pytest.mark.parametrize("sent", [b"", b"POST /digits/score HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_a_complete_head_is_closed(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.05)
    servers = Servers()
    made = Router(servers, 0, MagicMock())
    try:
        with socket.create_connection((LOOPBACK, made.port), timeout=30) as connection:
            connection.sendall(sent)
            assert connection.recv(100) == b""
    finally:
        made.close()
        servers.close()


def test_limits_come_before_the_key_and_hold_for_what_is_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ROWS_BYTES", 1)
    monkeypatch.setattr(module, "BODY_BYTES", 1)
    servers = Servers()
    made = Router(servers, 0, MagicMock())
    made.endpoints["digits"] = keyed("secret")
    made.sinks["secret"] = ("digits", "blue")
    own = {"Authorization": aiohttp.encode_basic_auth("emulator", "secret")}
    try:
        for port, headers, body, status in (
            (made.sink.port, own | {"Content-Length": "2"}, b"[]", 413),
            (made.sink.port, own | {"Transfer-Encoding": "chunked"}, iter([b"[]"]), 411),
            (made.sink.port, {"Content-Length": "1"}, b"1", 401),
            (made.port, {"Content-Length": "2"}, b"[]", 413),
            (made.port, {"Transfer-Encoding": "chunked"}, iter([b"[]"]), 411),
            (made.port, {"Content-Length": "1"}, b"1", 401),
        ):
            connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
            connection.request("POST", "/digits/score", body, headers, encode_chunked=True)
            assert connection.getresponse().status == status
            connection.close()
    finally:
        made.close()
        servers.close()
