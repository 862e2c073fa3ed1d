"""Azure's management API: the table of routes, and the application that serves it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from azureml_emulator.services import assets, batch_endpoints, jobs, online_endpoints, workspaces
from azureml_emulator.services import sweeps as sweeps  # which registers itself as a kind of job
from azureml_emulator.state import OPERATION, PROVIDER, Answer, Json, RefusedError, State
from azureml_emulator.web import LOG, check_length, read_body, warn

BODY_BYTES = 4 << 20  # of a request to Azure's Resource Manager
TABLE = "src/azureml_emulator/README.md"  # what is emulated
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
HISTORY = rf"/history/v1\.0{W}"
PLAIN = {"GET": State.get, "DELETE": State.delete}
ONE_ONLINE = {"GET": State.get, "DELETE": online_endpoints.delete}
ONE_BATCH = {"GET": State.get, "DELETE": batch_endpoints.delete}
ROUTES: list[tuple[str, dict[str, Callable[..., Answer]]]] = [
    (W, {"GET": workspaces.get}),
    (rf"{W}/datastores", {"GET": workspaces.list_datastores}),
    (STORES, {"GET": workspaces.get_datastore}),
    (rf"{STORES}/listsecrets", {"POST": workspaces.list_secrets}),
    (rf"{P}/mfeoperationsstatus/[^/]+", {"GET": workspaces.get_operation}),
    (rf"{P}/usages", {"GET": workspaces.list_usages}),
    (rf"{P}/vmsizes", {"GET": workspaces.list_sizes}),
    (AUTOSCALE, PLAIN | {"PUT": workspaces.put_autoscale}),
    (RETENTION, PLAIN | {"PUT": workspaces.put_retention}),
    (ASSETS, {"GET": assets.list_containers}),
    (rf"{ASSETS}/[^/]+", {"GET": assets.get_container}),
    (rf"{ASSETS}/[^/]+/versions", {"GET": assets.list_versions}),
    (rf"{ASSETS}/[^/]+/versions/[^/]+", PLAIN | {"PUT": assets.put_version}),
    (UPLOAD, {"POST": assets.start_pending_upload}),
    (rf"{W}/jobs", {"GET": State.listing}),
    (rf"{W}/jobs/[^/]+", {"GET": State.get, "PUT": jobs.put_job}),
    (rf"{W}/jobs/[^/]+/cancel", {"POST": jobs.cancel}),
    (rf"{W}/computes/[^/]+", {"GET": State.get, "PUT": jobs.put_compute}),
    (rf"{W}/onlineendpoints", {"GET": State.listing}),
    (
        ONLINE,
        ONE_ONLINE
        | {"PUT": online_endpoints.put_endpoint, "PATCH": online_endpoints.patch_endpoint},
    ),
    (rf"{ONLINE}/regeneratekeys", {"POST": online_endpoints.regenerate_keys}),
    (rf"{ONLINE}/listkeys", {"POST": online_endpoints.list_keys}),
    (rf"{ONLINE}/token", {"POST": online_endpoints.get_token}),
    (rf"{ONLINE}/deployments", {"GET": State.listing}),
    (
        rf"{ONLINE}/deployments/[^/]+",
        ONE_ONLINE
        | {"PUT": online_endpoints.put_deployment, "PATCH": online_endpoints.patch_deployment},
    ),
    (rf"{ONLINE}/deployments/[^/]+/getlogs", {"POST": online_endpoints.get_logs}),
    (rf"{W}/batchendpoints", {"GET": State.listing}),
    (BATCH, ONE_BATCH | {"PUT": batch_endpoints.put_endpoint}),
    (rf"{BATCH}/deployments", {"GET": State.listing}),
    (rf"{BATCH}/deployments/[^/]+", ONE_BATCH | {"PUT": batch_endpoints.put_deployment}),
    (rf"{BATCH}/jobs", {"POST": batch_endpoints.invoke}),
    (rf"{HISTORY}/runs/[^/]+/details", {"GET": jobs.get_run_details}),
    (rf"{HISTORY}/rundata", {"POST": jobs.get_run_data}),
]
NUMBER, TEXT, OBJECT = (int, float), (str,), (dict,)
TYPES: dict[str, tuple[type, ...]] = {  # of parts of bodies, where they are given
    "": OBJECT,
    **dict.fromkeys(("properties", "tags", "sku", "identity"), OBJECT),
    **dict.fromkeys(("tags.*", "kind", "location", "identity.type"), TEXT),
    "sku.capacity": NUMBER,
    **{
        f"properties.{name}": kind
        for kind, names in {
            TEXT: "authMode instanceType jobType command computeId codeId environmentId compute "
            "modelUri codeUri dataUri image condaFile outputAction environmentVariables.* "
            "targetResourceUri computeType inputs.*.jobInputType codeConfiguration.codeId "
            "codeConfiguration.scoringScript inputData.*.uri outputData.*.uri deploymentName",
            NUMBER: "traffic.* mirrorTraffic.* livenessProbe.failureThreshold miniBatchSize "
            "limits.maxTotalTrials limits.maxConcurrentTrials resources.instanceCount "
            "errorThreshold retrySettings.maxRetries maxConcurrencyPerInstance",
            OBJECT: "properties traffic mirrorTraffic codeConfiguration environmentVariables "
            "dataCollector dataCollector.collections dataCollector.collections.* livenessProbe "
            "readinessProbe requestSettings scaleSettings inputs inputs.* outputs outputs.* limits "
            "defaults retrySettings resources trial distribution searchSpace samplingAlgorithm "
            "inputData inputData.* outputData outputData.* policy",
            (list,): "profiles policy.rules searchSpace.*",
        }.items()
        for name in names.split()
    },
}
IGNORED = (  # parts of bodies that are accepted and have no effect here, which is printed once
    "identity",
    "properties.appInsightsEnabled",
    "properties.egressPublicNetworkAccess",
    "properties.publicNetworkAccess",
    "properties.readinessProbe",
    "properties.environmentId",
    "properties.queueSettings",
    "properties.loggingLevel",
)
VERBS = {"PUT": "CreateOrUpdate", "PATCH": "Update", "DELETE": "Delete", "POST": "Action"}


def call(state: State, method: str, path: str, body: Json) -> Answer:
    """Return status, body and the id of the operation that began, of one call."""
    key = path.rstrip("/").lower()
    for pattern, methods in ROUTES:
        if re.fullmatch(pattern, key) and method in methods:
            with state.lock:
                given = checked(body)
                answer = methods[method](state, path.rstrip("/"), key, given)
                note_ignored(state, given)
                return answer
    below = re.match(rf"{W}/(.+)", key)
    if below is None:
        raise RefusedError(404, "NotFound", f"The emulator does not know {method} {path}.")
    parts = path[below.start(1) :].rstrip("/").split("/")
    verb = VERBS.get(method, "List" if len(parts) % 2 else "Get")
    name = f"{'_'.join(parts[::2])}_{verb}"
    message = f"The emulator does not emulate {name}, {method} {path}. {TABLE} lists what it does."
    raise RefusedError(501, "NotImplemented", message)


def note_ignored(state: State, body: Json) -> None:
    """Print once of each part of bodies that it is accepted and has no effect."""
    for place in IGNORED:
        outer, _, name = place.rpartition(".")
        part = body.get(outer, {}) if outer else body
        if part.get(name) and place not in state.ignored:
            state.ignored.add(place)
            warn(f"accepted, not emulated: {name}. {TABLE} lists what is.")


def checked(body: Any, place: str = "") -> Any:
    """Return a body, or the part at a place, without nulls: on Azure they are as if absent.

    Raises RefusedError (400) if a part is not of its type.
    """
    kinds = TYPES.get(place)
    if kinds and (not isinstance(body, kinds) or isinstance(body, bool)):
        names: dict[Any, str] = {NUMBER: "number", TEXT: "string", OBJECT: "object"}
        wanted = names.get(kinds, "array")
        message = f"The request is invalid: {place or 'the body'}: expected a JSON {wanted}."
        raise RefusedError(400, "InvalidRequestContent", message)
    if not isinstance(body, dict):
        return body
    found = {}
    for name, value in body.items():
        exact, any_ = (f"{place}.{one}".lstrip(".") for one in (name, "*"))
        if value is not None:
            found[name] = checked(value, exact if exact in TYPES or any_ not in TYPES else any_)
    return found


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
        known = request.headers.get("Authorization") == f"Bearer {state.token}"
        if not known and request.path != "/discovery":
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
        path, method = request.raw_path.partition("?")[0], request.method
        if path == "/discovery":  # of the workspace's services, for everyone
            return answer(200, {"api": state.url, "history": state.url})
        if method in ("PUT", "POST", "PATCH"):
            body = await read_json(request)
        else:
            body = dict(request.query)
        # A batch endpoint's own header for the deployment that is to be used.
        chosen = request.headers.get("azureml-model-deployment")
        if chosen and isinstance(body, dict):
            body["properties"] = {"deploymentName": chosen} | (body.get("properties") or {})
        try:
            status, found, operation = await asyncio.to_thread(call, state, method, path, body)
        except RefusedError:
            raise
        except Exception as error:
            LOG.exception("%s %s", method, path)
            raise RefusedError(500, "InternalServerError", repr(error)) from None
        headers = {}
        if operation:  # the SDK polls the first of these until it has a final status (ran)
            place = f"{state.url}{OPERATION}{operation}"
            headers = {
                "Azure-AsyncOperation": place,
                "Location": f"{state.url}{path}" if method in ("PUT", "PATCH") else place,
                "x-ms-async-operation-timeout": "PT30M",
                "Retry-After": "0",
            }
        return answer(status, found, headers)

    made = web.Application(
        client_max_size=BODY_BYTES, middlewares=[authenticate(state), *middlewares]
    )
    made.router.add_route("*", "/{path:.*}", respond)
    return made
