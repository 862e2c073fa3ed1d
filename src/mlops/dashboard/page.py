"""The HTTP server of the live page of `digits local`.

GET / and the files in web/ return the page, GET /state the state of watch.py as JSON. POST /score
forwards an image to the endpoint with its key, which the page does not know, under an id that marks
a try-out; POST /label stores its true label. /state, /score and /label need the secret at the end
of the page's address, because other users of this machine can reach the port.
"""

import asyncio
import datetime
import hmac
import html
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from azure.storage.blob import ContainerClient

from azureml_emulator.router import MODEL_STATUS, Router
from azureml_emulator.web import check_length, read_body
from digits.production import records
from mlops.azure import collected
from mlops.dashboard.watch import LiveState

WEB = Path(__file__).parent / "web"
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
BODY_BYTES = 10_000_000  # the limit of request.py
ANSWER_SECONDS = 60.0  # timeout of an endpoint
SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SESSION = web.AppKey("session", aiohttp.ClientSession)


def application(
    router: Router, live_state: LiveState, container: ContainerClient, secret: str
) -> web.Application:
    """Return the application that serves the page; `container` has the collected data."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Reject requests without the secret; add the headers SAFE to every answer."""
        response: web.StreamResponse
        given = request.headers.get("Authorization", "").encode(errors="replace")
        try:
            private = request.path in ("/state", "/score", "/label")
            if private and not hmac.compare_digest(given, f"Bearer {secret}".encode()):
                raise web.HTTPUnauthorized(text="open the address that `digits local` prints")
            response = await handler(request)
        except web.HTTPException as error:
            response = refuse(error)
        response.headers.update(SAFE)
        return response

    async def show_state(request: web.Request) -> web.Response:
        wanted = request.query.get("endpoint", "")
        known = await asyncio.to_thread(state, router, live_state, container, wanted)
        return web.json_response(known)

    async def show_page(request: web.Request) -> web.Response:
        text = (WEB / "index.html").read_text("utf-8")
        text = text.replace("{item}", html.escape(live_state.project.item))
        return web.Response(text=text, content_type="text/html")

    async def score(request: web.Request) -> web.Response:
        return await pass_on(request, router)

    async def label(request: web.Request) -> web.Response:
        names = ("request_id", "label", "script")
        row: Json = {name: request.query.get(name, "") for name in names}
        endpoint, project = request.query.get("endpoint", ""), live_state.project
        known = project.task and row["label"] in project.task.classes
        if endpoint not in router.endpoints or not known or row["script"] not in project.scripts:
            raise web.HTTPBadRequest(text="expected an endpoint, a class and a script that exist")
        if not row["request_id"].startswith(records.TRYOUT):
            raise web.HTTPBadRequest(text="only images tried on the page can be labelled here")
        row |= {"time": datetime.datetime.now(datetime.UTC), "position": 0}
        await asyncio.to_thread(collected.append_labels, container, endpoint, [row])
        return web.json_response({"label": row["label"]})

    async def session(app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as app[SESSION]:
            yield

    app = web.Application(middlewares=[guard], client_max_size=BODY_BYTES)
    app.cleanup_ctx.append(session)
    app.router.add_get("/state", show_state)
    app.router.add_post("/score", score)
    app.router.add_post("/label", label)
    for file in WEB.iterdir():  # fixed routes: no path of a request is opened
        if file.suffix in KINDS:
            app.router.add_get(f"/{file.name}", content(file))
    app.router.add_get("/", show_page)
    return app


def content(file: Path) -> Handler:
    """Return a handler that answers with the content of a file."""
    body = file.read_bytes()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=KINDS[file.suffix], charset="utf-8")

    return answer


async def pass_on(request: web.Request, router: Router) -> web.Response:
    """Forward an image to an endpoint, with its key; return the endpoint's answer."""
    check_length(request, required=True)
    name, script = request.query.get("endpoint", ""), request.query.get("script", "")
    endpoint = router.endpoints.get(name)
    if endpoint is None:
        text = "nothing is deployed yet: run `digits deploy apply --workspace local`"
        raise web.HTTPNotFound(text=text)
    headers = {
        "Authorization": f"Bearer {endpoint.access.new_secret()}",
        "Content-Type": request.headers.get("Content-Type", ""),
        "x-ms-client-request-id": records.TRYOUT + uuid.uuid4().hex,
    }
    body = await read_body(request)
    began = time.monotonic()
    try:
        async with request.app[SESSION].post(
            f"{router.url}/{name}/score",
            params={"script": script, "explain": "true"},
            data=io.BytesIO(body),  # aiohttp sends a stream in parts
            headers=headers,
        ) as answer:
            text = await answer.text(errors="replace")
    except (aiohttp.ClientError, TimeoutError) as error:
        message = f"the endpoint does not answer: {error}"
        return web.json_response({"message": message}, status=502)
    try:
        found = dict(json.loads(text))
    except (ValueError, TypeError):
        found = {"message": text[:300]}
    found["deployment"] = answer.headers.get("azureml-model-deployment", "")
    found["request_id"] = headers["x-ms-client-request-id"]
    found["milliseconds"] = (time.monotonic() - began) * 1000
    own = answer.headers.get(MODEL_STATUS)  # more specific about the picture than 424
    return web.json_response(found, status=int(own or answer.status))


def state(router: Router, live_state: LiveState, container: ContainerClient, wanted: str) -> Json:
    """Return the state of the endpoint `wanted`, or of the one that was used last."""
    names = sorted(router.endpoints)
    used = [name for name in reversed(list(live_state.endpoints)) if name in names]
    name = wanted if wanted in names else next(iter([*used, *names]), "")
    endpoint = router.endpoints.get(name)
    traffic = endpoint.traffic if endpoint else {}
    up = {deployment for place, deployment in list(router.running) if place == name}
    live = {one for one, weight in traffic.items() if weight}
    return live_state.state(name, live, container) | {
        "endpoint": name,
        "endpoints": names,
        "deployments": [
            {"name": one, "weight": traffic.get(one, 0), "up": one in up}
            for one in sorted({*traffic, *up})
        ],
    }


def refuse(error: web.HTTPException) -> web.Response:
    """Return an error as JSON and close the connection, whose body may be unread."""
    response = web.json_response({"message": error.text}, status=error.status)
    response.force_close()
    return response
