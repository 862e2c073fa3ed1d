"""The stand-in's router on requests of any bytes; the deployment behind it echoes."""

import http.client
import socket
from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest

from azureml_emulator.router import LOOPBACK, Endpoint, Handler, Router, Running, Server

KEY = b"Authorization: Bearer secret"
TWO = b"Content-Length: 2"


class Echo(Handler):
    """Answers with the body."""

    def do_POST(self) -> None:  # noqa: N802
        """Send back what came."""
        self.answer(200, self.body(), {})


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    """A router with one endpoint, whose deployment echoes."""
    behind = Server((LOOPBACK, 0), Echo).start()
    made = Router(0, MagicMock(), MagicMock())
    made.endpoints["digits"] = Endpoint(["secret"], {"blue": 100})
    made.running["digits", "blue"] = Running(MagicMock(), behind.server_address[1], behind)
    made.server.start()
    try:
        yield made
    finally:
        made.server.stop()
        behind.stop()


def asked(router: Router, path: bytes, *headers: bytes) -> int:
    """Send a request as bytes; return the answer's status."""
    port = router.server.server_address[1]
    whole = b"\r\n".join([b"POST " + path + b" HTTP/1.1", b"Host: x", *headers, b"", b"{}"])
    with socket.create_connection((LOOPBACK, port), timeout=30) as connection:
        connection.sendall(whole)
        connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (b"/digits/score", (KEY, TWO), 200),
        (b"/digits/score?script=%00", (KEY, TWO), 200),
        (b"/digits/score", (KEY, TWO, b"Content-Type: multipart/form-data; boundary=x"), 200),
        (b"/digits/score", (KEY, TWO, b"Content-Type: message/rfc822"), 200),
        (b"/digits/sc\x01ore", (KEY, TWO), 400),
        (b"/digits/sc\xc3\xa9re", (KEY, TWO), 400),
        (b"/digits/score", (KEY, TWO, b"X: a\rb"), 400),
        (b"/digits/score", (KEY, TWO, b"X: a\r\r\n b"), 400),
        (b"/digits/score", (KEY, TWO, b"a b: c"), 400),
        (b"/digits/score", (KEY, TWO, b"Transfer-Encoding: chunked"), 411),
        (b"/digits/score", (KEY, b"Content-Length: \xb2"), 411),
        (b"/digits/score", (KEY, b"Content-Length: " + b"9" * 20), 413),
    ],
)
def test_a_malformed_request_is_refused(
    router: Router, path: bytes, headers: tuple[bytes, ...], status: int
) -> None:
    assert asked(router, path, *headers) == status
    assert asked(router, b"/digits/score", KEY, TWO) == 200
