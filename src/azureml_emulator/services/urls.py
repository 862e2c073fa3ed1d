"""Azure's management API: the table of routes, and the application that serves it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from azureml_emulator.services import assets, batch_endpoints, jobs, online_endpoints, workspaces
from azureml_emulator.services.workspaces import LOCATION
from azureml_emulator.state import PROVIDER, Answer, Json, RefusedError, State
from azureml_emulator.web import check_length, read_body

BODY_BYTES = 4 << 20  # of a request to Azure's Resource Manager
OPERATION = f"/subscriptions/local/providers/{PROVIDER}/locations/{LOCATION}/operations/"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

W = rf"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/{PROVIDER.lower()}/workspaces/[^/]+"
P = rf"/subscriptions/[^/]+/providers/{PROVIDER.lower()}/locations/[^/]+"
G = r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers"
ONLINE, BATCH = rf"{W}/onlineendpoints/[^/]+", rf"{W}/batchendpoints/[^/]+"
ASSETS = rf"{W}/(models|codes|environments|data)"
UPLOAD = rf"{W}/codes/[^/]+/versions/[^/]+/startpendingupload"
AUTOSCALE = rf"{G}/microsoft.insights/autoscalesettings/[^/]+"
RETENTION = rf"{G}/microsoft.storage/storageaccounts/[^/]+/managementpolicies/default"
STORES = rf"{W}/datastores/workspace(blob|artifact)store"
PLAIN = {"GET": State.get, "DELETE": State.delete}
ONE_ONLINE = {"GET": State.get, "DELETE": online_endpoints.delete}
ONE_BATCH = {"GET": State.get, "DELETE": batch_endpoints.delete}
ROUTES: list[tuple[str, dict[str, Callable[..., Answer]]]] = [
    (W, {"GET": workspaces.get}),
    (rf"{W}/datastores", {"GET": workspaces.get_datastore}),
    (STORES, {"GET": workspaces.get_datastore}),
    (rf"{STORES}/listsecrets", {"POST": workspaces.list_secrets}),
    (rf"{P}/operations/[^/]+", {"GET": workspaces.get_operation}),
    (rf"{P}/usages", {"GET": workspaces.list_usages}),
    (rf"{P}/vmsizes", {"GET": workspaces.list_sizes}),
    (AUTOSCALE, PLAIN | {"PUT": workspaces.put_autoscale}),
    (RETENTION, PLAIN | {"PUT": workspaces.put_retention}),
    (ASSETS, {"GET": assets.list_containers}),
    (rf"{ASSETS}/[^/]+", {"GET": assets.get_container}),
    (rf"{ASSETS}/[^/]+/versions", {"GET": assets.list_versions}),
    (
        rf"{ASSETS}/[^/]+/versions/[^/]+",
        {"GET": State.get, "PUT": assets.put_version, "DELETE": assets.delete_version},
    ),
    (UPLOAD, {"POST": assets.start_pending_upload}),
    (rf"{W}/jobs", {"GET": State.listing}),
    (rf"{W}/jobs/[^/]+", {"GET": State.get, "PUT": jobs.put_job}),
    (rf"{W}/jobs/[^/]+/cancel", {"POST": jobs.cancel}),
    (rf"{W}/computes/[^/]+", {"GET": State.get, "PUT": jobs.put_compute}),
    (rf"{W}/onlineendpoints", {"GET": State.listing}),
    (ONLINE, ONE_ONLINE | {"PUT": online_endpoints.put_endpoint}),
    (rf"{ONLINE}/listkeys", {"POST": online_endpoints.list_keys}),
    (rf"{ONLINE}/token", {"POST": online_endpoints.get_token}),
    (rf"{ONLINE}/deployments", {"GET": State.listing}),
    (rf"{ONLINE}/deployments/[^/]+", ONE_ONLINE | {"PUT": online_endpoints.put_deployment}),
    (rf"{ONLINE}/deployments/[^/]+/getlogs", {"POST": online_endpoints.get_logs}),
    (rf"{W}/batchendpoints", {"GET": State.listing}),
    (BATCH, ONE_BATCH | {"PUT": batch_endpoints.put_endpoint}),
    (rf"{BATCH}/deployments", {"GET": State.listing}),
    (rf"{BATCH}/deployments/[^/]+", ONE_BATCH | {"PUT": batch_endpoints.put_deployment}),
    (rf"{BATCH}/jobs", {"POST": batch_endpoints.invoke}),
]


def call(state: State, method: str, path: str, body: Json) -> Answer:
    """Return status, body and the id of the operation that began, of one call."""
    key = path.rstrip("/").lower()
    for pattern, methods in ROUTES:
        if re.fullmatch(pattern, key) and method in methods:
            with state.lock:
                return methods[method](state, path, key, body)
    raise RefusedError(404, "NotFound", f"The emulator does not know {method} {path}.")


def answer(status: int, body: Json | None, headers: dict[str, str] | None = None) -> web.Response:
    """Return an answer in JSON."""
    raw = b"" if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | (headers or {})
    return web.Response(status=status, body=raw, headers=headers)


def refusal(error: RefusedError) -> web.Response:
    """Return the answer of a refused call."""
    return answer(error.status, error.body)


async def read_json(request: web.Request) -> Any:
    """Return a request's body, {} if it has none. Raises RefusedError if it is no JSON."""
    raw = await read_body(request)
    try:
        return json.loads(raw) if raw else {}
    except ValueError as error:
        message = f"The body of {request.method} {request.path} is no JSON: {error}."
        raise RefusedError(400, "InvalidRequestContent", message) from None


def authenticate(state: State) -> Any:
    """Return the middleware that refuses a body that is too large, then a wrong token."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        check_length(request, required=False)
        if request.headers.get("Authorization") != f"Bearer {state.token}":
            message = "The access token is invalid."
            return refusal(RefusedError(401, "InvalidAuthenticationToken", message))
        try:
            return await handler(request)
        except RefusedError as error:
            return refusal(error)

    return check


def application(state: State, middlewares: Sequence[Any] = ()) -> web.Application:
    """Return the management API; `middlewares` stand between the check of the token and it."""

    async def respond(request: web.Request) -> web.Response:
        body = await read_json(request)
        # A batch endpoint's own header for the deployment that is to be used.
        if chosen := request.headers.get("azureml-model-deployment"):
            body["properties"]["deploymentName"] = chosen
        path = request.raw_path.partition("?")[0]
        status, found, operation = await asyncio.to_thread(call, state, request.method, path, body)
        headers = {}
        if operation:  # the SDK polls the first of these until it has a final status (ran)
            place = f"{state.url}{OPERATION}{operation}"
            headers = {"Azure-AsyncOperation": place, "Location": place, "Retry-After": "0"}
        return answer(status, found, headers)

    made = web.Application(
        client_max_size=BODY_BYTES, middlewares=[authenticate(state), *middlewares]
    )
    made.router.add_route("*", "/{path:.*}", respond)
    return made
