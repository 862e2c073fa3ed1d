"""Tokens and endpoints' keys of an emulator, for tests that call it without an SDK."""

import contextlib
import functools
import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from azureml_emulator.router import Endpoint
from azureml_emulator.services.deployments import ML
from azureml_emulator.services.sign_in import CLIENT, TENANT, TOKEN, Access, Tokens
from azureml_emulator.services.urls import INVOKED
from azureml_emulator.web import LOOPBACK


def sign_in(address: dict[str, Any], raw: bytes = b"", **form: str) -> tuple[int, Any]:
    """Ask the emulator with an address for a token, with a form; return status and answer.

    `raw` is sent in place of the form.
    """
    context = ssl.create_default_context(cafile=address["certificate"])
    connection = http.client.HTTPSConnection(LOOPBACK, address["port"], context=context)
    form = {
        "grant_type": "client_credentials",
        "client_id": CLIENT,
        "client_secret": address["secret"],
        "scope": f"{address['url']}/.default",
    } | form
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    with contextlib.closing(connection):
        connection.request("POST", f"/{TENANT}{TOKEN}", raw or urlencode(form), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@functools.lru_cache(8)
def _token(secret: str, port: int, certificate: str, authority: str, audience: str) -> str:
    address = {"secret": secret, "port": port, "certificate": certificate, "url": audience}
    return str(sign_in(address)[1]["access_token"])


def bearer(address: dict[str, Any], path: str = "") -> str:
    """Return a token of the emulator with an address, for the service that has a path."""
    certificate = address["certificate"]
    authority = Path(certificate).read_text()  # another one after each start
    audience = ML if INVOKED.search(path.partition("?")[0]) else address["url"]
    return _token(address["secret"], address["port"], certificate, authority, audience)


def keyed(key: str, traffic: dict[str, int] | None = None) -> Endpoint:
    """Return an endpoint that accepts one key."""
    no_tokens: Tokens = None  # type: ignore[assignment]
    return Endpoint(Access(no_tokens, [key]), traffic or {})
