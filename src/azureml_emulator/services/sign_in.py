"""Microsoft Entra ID for clients with a secret: tokens that expire, each for one audience.

Requests and answers: "Microsoft identity platform and the OAuth 2.0 client credentials flow"; the
errors: "Microsoft Entra authentication and authorization error codes".
"""

import datetime
import secrets
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import jwt
from aiohttp import web

from azureml_emulator.web import read_body, write_atomic

TENANT = CLIENT = "00000000-0000-0000-0000-000000000000"
SECONDS = 3600  # validity; Entra ID's tokens are valid for 60 to 90 minutes
SCOPE = "/.default"  # after the audience
FIELDS = 20  # maximum in a body, a limit of the emulator alone; a client sends four
CONFIGURATION, TOKEN = "/v2.0/.well-known/openid-configuration", "/oauth2/v2.0/token"


class Tokens:
    """Issues tokens to a client with a secret, and checks them."""

    def __init__(self, secret: str, folder: Path) -> None:
        """Sign with the key in `folder`; create it if it is missing."""
        file = folder / "signing.key"
        if not file.exists():
            write_atomic(file, secrets.token_urlsafe())
        self.secret, self.key = secret, file.read_text("utf-8")

    def issue(self, audience: str, seconds: int | None = None) -> str:
        """Return a token for an audience, valid for some seconds, by default SECONDS."""
        now = int(time.time())
        end = now + (SECONDS if seconds is None else seconds)
        claims = {"aud": audience, "iat": now, "nbf": now, "exp": end, "uti": uuid.uuid4().hex}
        return jwt.encode(claims | {"appid": CLIENT, "tid": TENANT}, self.key, "HS256")

    def check(self, header: str, audiences: Iterable[str]) -> None:
        """Raise jwt.InvalidTokenError unless a header has a valid token for one of the audiences.

        Its subclasses InvalidAudienceError and ExpiredSignatureError state the reason.
        """
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.isascii():
            raise jwt.InvalidTokenError("The header must be: Authorization: Bearer TOKEN")
        both = {audience.rstrip("/") + end for audience in audiences for end in ("", "/")}
        options = {"require": ["aud", "exp"]}
        jwt.decode(token, self.key, ["HS256"], options, audience=both)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Access:
    """What an endpoint accepts: its keys, or tokens for an audience if that is not empty."""

    tokens: Tokens
    keys: list[str]
    audience: str = ""

    def accepts(self, header: str) -> bool:
        """Return whether a header Authorization has a valid key or token."""
        if not self.audience:
            given = header.encode(errors="surrogateescape")
            known = [f"Bearer {key}".encode() for key in self.keys]
            return any(secrets.compare_digest(given, key) for key in known)
        try:
            self.tokens.check(header, [self.audience])
        except jwt.InvalidTokenError:
            return False
        return True

    def new_secret(self) -> str:
        """Return a valid key or token."""
        return self.tokens.issue(self.audience) if self.audience else self.keys[0]


async def respond(tokens: Tokens, url: str, request: web.Request) -> web.Response:
    """Answer a request for the configuration of sign-in, or for a token."""
    if not request.path.startswith(f"/{TENANT}/"):
        return refuse(400, "invalid_request", 90002, f"Tenant not found: {request.path}.")
    if request.path.endswith(CONFIGURATION):
        place = f"{url}/{TENANT}"
        answer = {"issuer": f"{place}/v2.0", "token_endpoint": place + TOKEN}
        return web.json_response(answer | {"authorization_endpoint": f"{place}/oauth2/authorize"})
    body = (await read_body(request)).decode(errors="replace")
    if body.count("&") > FIELDS:  # a second of work for a few megabytes, before any secret
        text = f"The emulator takes at most {FIELDS} fields."
        return web.json_response(
            {"error": "invalid_request", "error_description": text}, status=400
        )
    given = dict(parse_qsl(body))
    grant, scope, secret = (given.get(n, "") for n in ("grant_type", "scope", "client_secret"))
    if not grant:
        return refuse(400, "invalid_request", 900144, "The body must contain 'grant_type'.")
    if grant != "client_credentials":
        return refuse(400, "unsupported_grant_type", 70003, f"{grant} is not supported.")
    if given.get("client_id") != CLIENT:
        return refuse(400, "unauthorized_client", 700016, "The application was not found.")
    if not secret:
        return refuse(401, "invalid_client", 7000216, "'client_secret' is required.")
    if not secrets.compare_digest(secret.encode(), tokens.secret.encode()):
        return refuse(401, "invalid_client", 7000215, "Invalid client secret provided.")
    audience = scope.removesuffix(SCOPE)
    if audience in ("", scope) or " " in scope:
        return refuse(400, "invalid_scope", 1002012, f"The scope {scope} is not valid.")
    lives = dict.fromkeys(("expires_in", "ext_expires_in"), SECONDS)
    answer = {"token_type": "Bearer", "access_token": tokens.issue(audience)}
    return web.json_response(answer | lives)


def refuse(status: int, error: str, code: int, text: str) -> web.Response:
    """Return an error as Entra ID does."""
    body = {"error": error, "error_description": f"AADSTS{code}: {text}", "error_codes": [code]}
    now = datetime.datetime.now(datetime.UTC)
    ids = {name: str(uuid.uuid4()) for name in ("trace_id", "correlation_id")}
    return web.json_response(body | ids | {"timestamp": f"{now:%Y-%m-%d %H:%M:%SZ}"}, status=status)
