"""Hostile requests, generated from seeds: none gets 5xx, and the server's next answer is right.

`make test` sends those of the first 300 seeds, `make prove` 2,000, --all-cases 10,000.
"""

import errno
import io
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Endpoint, mnist_part
from PIL import Image
from test_request import png

pytestmark = pytest.mark.slow
Serve = Callable[..., Endpoint]
DIGITS = mnist_part("t10k", 3).images
GOOD = json.dumps({"data": DIGITS.tolist()}).encode()
FEW, SOME, ALL = 300, 2000, 10_000  # seeds
EVERY = 20  # requests, then a good one
VALUES: list[Any] = [
    None,
    True,
    "7",
    "",
    -1,
    256,
    1e308,
    -0.5,
    10**400,
    [],
    {},
    [[]],
    {"data": 1},
    "\ud800",
    "x" * 8_000_000,
    10**13,
]
TEXTS = [b"NaN", b"Infinity", b"1e999", b"-", b"0x1", b"\xff", b"\0", b"[", b"]", b"{", b'"', b","]
HEADERS = [
    "Content-Type: image/png",
    "Content-Type: multipart/form-data; boundary=x",
    "Content-Encoding: gzip",
    "x-request-id: " + "i" * 101,
    "x-request-id: \xe9\xff",
    "x-ms-client-request-id: ' OR 1=1",
    "TraceId: t",
    "Expect: 100-continue",
    "X: " + "y" * 9000,
    "Transfer-Encoding: chunked",
    "Content-Length: 7",
    "no colon",
]
PATHS = ["/score?script=%00", "/score?script=" + "x" * 3000, "/score?a&a=1&script=1&script=2"]


def broken(body: bytes, rng: random.Random) -> bytes:
    """Return bytes with some flipped, cut off, put in or repeated."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[place:]
            case 2:
                data[place:place] = rng.choice(TEXTS)
            case _:
                data[place:place] = data[place : place + rng.randrange(500)]
    return bytes(data)


def odd_json(rng: random.Random) -> bytes:
    """Return JSON that is right but for a value somewhere."""
    content: Any = {"data": DIGITS[:2].tolist(), "script": "mnist"}
    value = rng.choice(VALUES)
    match rng.randrange(6):
        case 0:
            content[rng.choice(["data", "script", "other"])] = value
        case 1:
            content["data"][rng.randrange(2)] = value
        case 2:
            content["data"][0][rng.randrange(28)] = value
        case 3:
            content["data"][1][rng.randrange(28)][rng.randrange(28)] = value
        case 4:
            del content["data"][0][rng.randrange(28)][rng.randrange(28) :]
        case _:
            content = rng.choice([value, [content], {"data": content}, {"data": [[0] * 783]}])
    return json.dumps(content).encode()


def odd_image(rng: random.Random) -> bytes:
    """Return an image file that is odd, and half of the time broken too."""
    size = rng.choice([(28, 28), (1, 1), (1, 300), (300, 2), (120, 77)])
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
    if rng.random() < 0.3:  # a header that promises what is not there
        sizes = [0, 1, 28, 4999, 65535, 1 << 31, (1 << 32) - 1]
        return png(rng.choice(sizes), rng.choice(sizes), zlib.compress(bytes(rng.randrange(999))))
    image = Image.fromarray(np.frombuffer(rng.randbytes(size[0] * size[1]), np.uint8).reshape(size))
    kind = "JPEG" if mode in ("L", "RGB", "CMYK") and rng.random() < 0.5 else "PNG"
    image = image.convert("RGB").convert("L" if mode == "CMYK" and kind == "PNG" else mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue() if rng.random() < 0.5 else broken(file.getvalue(), rng)


def bomb() -> bytes:
    """Return a PNG of a few kilobytes with 5000 x 5000 pixels."""
    return png(5000, 5000, zlib.compress(bytes(5001 * 5000), 9))


def text_bomb() -> bytes:
    """Return a PNG with a comment that unpacks to 500 MB."""
    image = bytearray(png(28, 28, zlib.compress(bytes(29 * 28))))
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(10_000_000)) for _ in range(50)) + packer.flush()
    chunk = b"zTXtComment\0\0" + packed
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return bytes(image[:33]) + whole + bytes(image[33:])


def among_zeros(value: Any) -> bytes:
    """Return JSON of an image with one value that is no number, which NumPy would give to all."""
    return json.dumps({"data": [[*[0] * 783, value]]}).encode()


LARGE = {
    "50 MB": lambda: b"[" + b"0," * 25_000_000,
    "10,000 images": lambda: b'{"data":[' + b",".join([b"[" + b"0," * 783 + b"0]"] * 10_000),
    "10,000 empty images": lambda: b'{"data":[' + b",".join([b"[]"] * 10_000) + b"]}",
    "a nest": lambda: b'{"data":' + b"[" * 5_000_000,
    "a long text": lambda: b'{"data":"' + b"x" * 9_000_000 + b'"}',
    "a long text among zeros": lambda: among_zeros("x" * 8_000_000),
    "a text among zeros": lambda: among_zeros("x" * 1_500_000),
    "a number of zeros": lambda: json.dumps({"data": [[0] * 784, 10**13]}).encode(),
    "a bomb": bomb,
    "a bomb of text": text_bomb,
}


def message(rng: random.Random) -> bytes:
    """Return a whole HTTP request."""
    kind = rng.randrange(10)
    body = odd_json(rng) if kind < 4 else odd_image(rng) if kind < 8 else rng.randbytes(200)
    if kind in (2, 3):
        body = broken(body, rng)
    method, path, extra = "POST", "/score", ""
    if rng.random() < 0.15:
        method = rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "BREW"])
    if rng.random() < 0.15:
        path = rng.choice(PATHS)
    if rng.random() < 0.15:
        extra = rng.choice(HEADERS) + "\r\n"
    length = len(body) + (rng.choice([-1, 1, 50]) if rng.random() < 0.1 else 0)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}"
    if extra[:7] not in ("Transfe", "Content-Length"[:7]) or "Type" in extra:
        head += f"Content-Length: {max(length, 0)}\r\n"
    whole = head.encode("latin-1") + b"\r\n" + body
    return broken(whole[: len(head)], rng) if rng.random() < 0.05 else whole


def send(port: int, request: bytes) -> bytes:
    """Send bytes, say that no more come, return all of the answer."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except OSError as error:  # refused before all was sent
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
    return answer


@pytest.fixture(scope="module")
def endpoint(serve: Serve) -> Endpoint:
    """An endpoint whose collection is off."""
    return serve()


def pid(endpoint: Endpoint) -> str:
    """Return what the log says of its worker: another one would be booted after a crash."""
    return str(endpoint.log.read_text("utf-8", errors="replace").count("ready for serving traffic"))


@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_gets_4xx_and_the_next_answer_is_right(
    endpoint: Endpoint, name: str
) -> None:
    expected = endpoint.post(GOOD)[:2]
    status, answer, _ = endpoint.post(LARGE[name]())
    assert 400 <= status < 500
    assert set(answer) == {"message"}
    assert 10 < len(answer["message"]) < 200
    assert endpoint.post(GOOD)[:2] == expected
    assert pid(endpoint) == "1"


@pytest.mark.parametrize(
    "count",
    [
        FEW,
        pytest.param(SOME, marks=pytest.mark.prove),
        pytest.param(ALL, marks=[pytest.mark.prove, pytest.mark.all_cases]),
    ],
)
def test_hostile_requests_get_no_5xx_and_stop_nothing(endpoint: Endpoint, count: int) -> None:
    expected = endpoint.post(GOOD)[:2]
    assert expected[0] == 200
    statuses: dict[int, int] = {}
    for seed in range(count):
        request = message(random.Random(seed))
        answer = send(endpoint.port, request).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        status = int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500, f"seed {seed}: {request[:300]!r} got {answer[:300]!r}"
        if 400 <= status < 500 and b'"message"' in answer:
            sentence = json.loads(answer[answer.index(b'{"message"') :])["message"]
            assert 3 < len(sentence) < 400
        if seed % EVERY == 0:
            assert endpoint.post(GOOD)[:2] == expected, f"after seed {seed}"
    assert pid(endpoint) == "1", "the worker was started again"
    print(f"answers by status: {dict(sorted(statuses.items()))}")
    assert statuses[400] > count / 3
