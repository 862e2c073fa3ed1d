"""The wire between a command and the workspace: each call counted, and one of them broken.

It breaks calls of all three kinds, where the emulator's own faults know the management API alone.
A refused one goes out with an invalid signature, so that the real service refuses it (a sign-in: to
a tenant that does not exist); a lost one is done, and then its answer does not come.
"""

import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from azure.core.exceptions import ServiceResponseError
from azure.core.pipeline.transport import RequestsTransport

from azureml_emulator.services.sign_in import TENANT

INVALID_TOKEN = "Bearer invalid"
SLEEP = 0.05  # seconds at most between two tries, or two questions after an operation


@dataclass
class Wire:
    """What went over it."""

    number: int = -1  # of the call that is broken, from 0
    how: str = "refuse"  # or lose, or interrupt
    calls: list[tuple[str, str]] = field(default_factory=list)  # kind and request line of each
    lock: threading.Lock = field(default_factory=threading.Lock)

    def broken(self, kind: str, line: str) -> bool:
        """Count one call; return whether it is the one."""
        with self.lock:
            self.calls.append((kind, line))
            return len(self.calls) - 1 == self.number


@contextlib.contextmanager
def tapped(wire: Wire) -> Iterator[None]:
    """Lead all calls of this process over the wire."""
    send: Callable[..., Any] = RequestsTransport.send
    scoring: Callable[..., Any] = urllib.request.OpenerDirector.open

    def over(transport: Any, request: Any, **options: Any) -> Any:
        kind = "management" if request.url.startswith("https") else "blob"
        broken = wire.broken(kind, f"{request.method} {request.url.split('?')[0]}")
        if broken and wire.how == "refuse":
            request.url = request.url.replace("sig=", "sig=x").replace(f"/{TENANT}/", "/nobody/")
            request.headers["Authorization"] = INVALID_TOKEN
        answer = send(transport, request, **options)
        if broken and wire.how == "interrupt":
            raise KeyboardInterrupt
        if broken and wire.how == "lose":
            raise ServiceResponseError("lost for a test")
        return answer

    def asked(opener: Any, request: Any, *rest: Any, **options: Any) -> Any:
        broken = wire.broken("scoring", request.full_url)
        if broken and wire.how == "refuse":
            request.add_header("Authorization", INVALID_TOKEN)
        answer = scoring(opener, request, *rest, **options)
        if broken and wire.how == "lose":
            answer.close()
            raise ConnectionResetError("lost for a test")
        return answer

    with (
        patch.object(RequestsTransport, "send", over),
        patch.object(RequestsTransport, "sleep", lambda _, asked: time.sleep(min(asked, SLEEP))),
        patch.object(urllib.request.OpenerDirector, "open", asked),
    ):
        yield
