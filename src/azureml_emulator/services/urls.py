"""Azure's management API: the table of routes, and the application that serves it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import jwt
from aiohttp import web

from azureml_emulator.services import (
    assets,
    batch_endpoints,
    deployments,
    jobs,
    online_endpoints,
    sign_in,
    workspaces,
)
from azureml_emulator.services import sweeps as sweeps  # which registers itself as a kind of job
from azureml_emulator.services.deployments import ML
from azureml_emulator.state import OPERATION, PROVIDER, Answer, Json, RefusedError, State, part_of
from azureml_emulator.web import LOG, check_length, read_body, warn

# Audiences of tokens for the management API, besides its own address. Batch endpoints take tokens
# for ML: learn.microsoft.com/azure/machine-learning/how-to-authenticate-batch-endpoint.
AUDIENCES = ("https://management.azure.com", "https://management.core.windows.net")
TOKEN_ERRORS = {
    jwt.ExpiredSignatureError: "ExpiredAuthenticationToken",
    jwt.InvalidAudienceError: "InvalidAuthenticationTokenAudience",
}
BODY_BYTES = 4 << 20  # of a request to Azure's Resource Manager
TABLE = "src/azureml_emulator/README.md"  # the table of emulated features
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Handlers = dict[str, Callable[..., Answer]]


def plain(put: Callable[..., Answer]) -> Handlers:
    """Return the handlers of a resource without a process."""
    return {"GET": State.get, "DELETE": State.delete, "PUT": put}


def live(put: Callable[..., Answer]) -> Handlers:
    """Return the handlers of an endpoint or a deployment."""
    patch = partial(State.patch, put=put)
    return {"GET": State.get, "DELETE": deployments.delete, "PUT": put, "PATCH": patch}


W = f"{PROVIDER.lower()}/workspaces/*"
P = f"{PROVIDER.lower()}/locations/*"
ONLINE, BATCH = f"{W}/onlineendpoints", f"{W}/batchendpoints"
ROUTES: dict[str, Handlers] = {  # by the path after /providers/, with * for each name
    W: {"GET": workspaces.get},
    f"{W}/datastores": {"GET": workspaces.list_datastores},
    f"{W}/datastores/*": {"GET": workspaces.get_datastore},
    f"{W}/datastores/*/listsecrets": {"POST": workspaces.list_secrets},
    f"{P}/mfeoperationsstatus/*": {"GET": workspaces.get_operation},
    f"{P}/usages": {"GET": workspaces.list_usages},
    f"{P}/vmsizes": {"GET": workspaces.list_sizes},
    "microsoft.insights/autoscalesettings/*": plain(workspaces.put_autoscale),
    "microsoft.storage/storageaccounts/*/managementpolicies/*": plain(workspaces.put_retention),
    f"{W}/codes/*/versions/*/startpendingupload": {"POST": assets.start_pending_upload},
    f"{W}/jobs": {"GET": State.listing},
    f"{W}/jobs/*": {"GET": State.get, "PUT": jobs.put_job},
    f"{W}/jobs/*/cancel": {"POST": jobs.cancel},
    f"{W}/runs/*/details": {"GET": jobs.get_run_details},
    f"{W}/rundata": {"POST": jobs.get_run_data},
    f"{W}/computes": {"GET": State.listing},
    f"{W}/computes/*": plain(jobs.put_compute),
    ONLINE: {"GET": State.listing},
    f"{ONLINE}/*": live(online_endpoints.put_endpoint),
    f"{ONLINE}/*/providers/*/diagnosticsettings/*": plain(workspaces.put_diagnostics),
    f"{ONLINE}/*/regeneratekeys": {"POST": online_endpoints.regenerate_keys},
    f"{ONLINE}/*/listkeys": {"POST": online_endpoints.list_keys},
    f"{ONLINE}/*/token": {"POST": online_endpoints.get_token},
    f"{ONLINE}/*/deployments": {"GET": State.listing},
    f"{ONLINE}/*/deployments/*": live(online_endpoints.put_deployment),
    f"{ONLINE}/*/deployments/*/getlogs": {"POST": online_endpoints.get_logs},
    BATCH: {"GET": State.listing},
    f"{BATCH}/*": live(batch_endpoints.put_endpoint),
    f"{BATCH}/*/deployments": {"GET": State.listing},
    f"{BATCH}/*/deployments/*": live(batch_endpoints.put_deployment),
    f"{BATCH}/*/jobs": {"GET": batch_endpoints.list_jobs, "POST": batch_endpoints.invoke},
}
for kind in ("models", "codes", "environments", "data"):
    ROUTES |= {
        f"{W}/{kind}": {"GET": assets.list_containers},
        f"{W}/{kind}/*": {"GET": assets.get_container},
        f"{W}/{kind}/*/versions": {"GET": assets.list_versions},
        f"{W}/{kind}/*/versions/*": plain(assets.put_version) | {"DELETE": assets.delete_version},
    }
NUMBER, TEXT, OBJECT = (int, float), (str,), (dict,)
TYPES: dict[str, tuple[type, ...]] = {  # of optional parts of bodies
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
            (list,): "profiles policy.rules searchSpace.* logs",
        }.items()
        for name in names.split()
    },
}
DURATIONS = (  # in ISO 8601
    "properties.livenessProbe.initialDelay",
    "properties.livenessProbe.period",
    "properties.requestSettings.requestTimeout",
    "properties.limits.timeout",
    "properties.limits.trialTimeout",
)
IGNORED = (  # accepted parts of bodies that have no effect here; a warning is printed once
    "identity",
    "properties.appInsightsEnabled",
    "properties.egressPublicNetworkAccess",
    "properties.publicNetworkAccess",
    "properties.readinessProbe",
    "properties.environmentId",
    "properties.queueSettings",
    "properties.loggingLevel",
    "properties.policy",
    "properties.profiles",
    "properties.logs",
    "properties.identity",
    "properties.retrySettings.timeout",
    "properties.trial.environmentId",
    "properties.requestSettings.maxQueueWait",
)
# The versions of the API that the locked SDK, Microsoft's JavaScript client and mlops call.
API_VERSIONS = {
    PROVIDER.lower(): "2022-02-01-preview 2022-10-01 2023-04-01 2023-04-01-preview "
    "2023-08-01-preview 2023-10-01 2024-01-01-preview 2024-10-01-preview 2025-01-01-preview "
    "2025-12-01",
    "microsoft.insights/autoscalesettings": "2022-10-01",
    "microsoft.insights/diagnosticsettings": "2021-05-01-preview",
    "microsoft.storage": "2023-01-01",
}
INVOKED = re.compile("/batchendpoints/[^/]+/jobs$", re.I)  # a batch endpoint's own address
HISTORY = "/history/v1.0"  # the service of runs, which has no versions
OF_HISTORY = (f"{W}/runs/*/details", f"{W}/rundata")
SERVICES = ("", HISTORY, "/mferp/managementfrontend")  # of a workspace, by their addresses
ADDRESS = re.compile("(.*?)(/subscriptions/[^/]+(/resourcegroups/[^/]+)?/providers/(.+))", re.I)
VERBS = {"PUT": "CreateOrUpdate", "PATCH": "Update", "DELETE": "Delete", "POST": "Action"}


def call(state: State, method: str, path: str, body: Json) -> Answer:
    """Answer one call: return status, body, and the id of the operation that began."""
    found = ADDRESS.fullmatch(path.rstrip("/"))
    service, path, group, resource = found.groups() if found else ("", path, "", "")
    parts = resource.split("/")
    named = ("*" if number % 2 == 0 and number else one for number, one in enumerate(parts))
    route = "/".join(named).lower()
    # A location belongs to the subscription; all else is in a resource group.
    known = found and all(parts) and bool(group) != route.startswith(P)
    known = known and (service == HISTORY) == (route in OF_HISTORY) and service in SERVICES
    handler = ROUTES.get(route, {}).get(method)
    if handler and known:
        with state.lock:
            given = checked(body)
            answer = handler(state, path, path.lower(), given)
            note_ignored(state, given)
            return answer
    if not known or not route.startswith(f"{W}/"):
        raise RefusedError(404, "NotFound", f"The emulator does not know {method} {path}.")
    verb = VERBS.get(method, "Get" if len(parts) % 2 else "List")
    name = f"{'_'.join(parts[3::2])}_{verb}"
    message = f"The emulator does not emulate {name}, {method} {path}. See {TABLE}."
    raise RefusedError(501, "NotImplemented", message)


def check_version(path: str, version: str) -> None:
    """Refuse a call in a version of the API that no client uses, with Azure's message.

    Source: github.com/Azure/azure-rest-api-specs/issues/14807.
    """
    resource = re.search(".*/providers/(.+)", path, re.I)
    provider, _, kind = (resource[1] if resource else "").partition("/")
    found = (f"{provider}/{kind.partition('/')[0]}".lower(), provider.lower())
    known = next((API_VERSIONS[one] for one in found if one in API_VERSIONS), None)
    if known is None or INVOKED.search(path) or path.startswith(HISTORY):
        return
    if not version:
        message = "The api-version query parameter (?api-version=) is required for all requests."
        raise RefusedError(400, "MissingApiVersionParameter", message)
    if version not in known.split():
        message = (
            f"The resource type '{kind.partition('/')[0]}' could not be found in the namespace "
            f"'{provider}' for api version '{version}'. The supported api-versions are "
            f"'{known.replace(' ', ',')}'."
        )
        raise RefusedError(404, "InvalidResourceType", message)


def note_ignored(state: State, body: Json) -> None:
    """Print once, for each ignored part of a body, that it has no effect."""
    for place in IGNORED:
        if part_of(body, place) and place not in state.ignored:
            state.ignored.add(place)
            name = place.rpartition(".")[2]
            warn(f"accepted, but not emulated: {name}. See {TABLE}.")


def checked(body: Any, place: str = "") -> Any:
    """Return a body, or the part at a place, without nulls: Azure treats them as missing.

    Raises RefusedError (400) if a part is not of its type.
    """
    kinds = TYPES.get(place)
    if kinds and (not isinstance(body, kinds) or isinstance(body, bool)):
        names: dict[Any, str] = {NUMBER: "number", TEXT: "string", OBJECT: "object"}
        wanted = names.get(kinds, "array")
        message = f"The request is invalid: {place or 'the body'}: expected a JSON {wanted}."
        raise RefusedError(400, "InvalidRequestContent", message)
    if not isinstance(body, dict):
        if place in DURATIONS:
            deployments.duration(body)
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


async def read_json(request: web.Request) -> Any:
    """Return a request's body, {} if it has none. Raises RefusedError if it is not JSON."""
    raw = await read_body(request)
    try:
        return json.loads(raw) if raw else {}
    except ValueError as error:
        message = f"The body of {request.method} {request.path} is not JSON: {error}."
        raise RefusedError(400, "InvalidRequestContent", message) from None


def authenticate(state: State) -> Any:
    """Return the middleware that refuses a body that is too large, then a wrong token.

    It also answers sign-in, which needs no token. The errors are those of Azure Resource Manager.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        check_length(request, required=False)
        if request.path.endswith((sign_in.CONFIGURATION, sign_in.TOKEN)):
            return await sign_in.respond(state.tokens, state.url, request)
        try:
            if request.path != "/discovery":
                header = request.headers.get("Authorization", "")
                if not header:
                    message = "Authentication failed. The 'Authorization' header is missing."
                    raise RefusedError(401, "AuthenticationFailed", message)
                invoked = INVOKED.search(request.path)
                state.tokens.check(header, [ML] if invoked else [state.url, *AUDIENCES])
            return await handler(request)
        except jwt.InvalidTokenError as error:
            code = TOKEN_ERRORS.get(type(error), "InvalidAuthenticationToken")
            place = f'authorization_uri="{state.url}/{sign_in.TENANT}", error="invalid_token"'
            body = RefusedError(401, code, f"The access token: {error}.").body
            return answer(401, body, {"WWW-Authenticate": f"Bearer {place}"})
        except RefusedError as error:
            return answer(error.status, error.body)

    return check


def application(state: State, middlewares: Sequence[Any] = ()) -> web.Application:
    """Return the management API; `middlewares` run after the check of the token."""

    async def respond(request: web.Request) -> web.Response:
        path, method = request.raw_path.partition("?")[0], request.method
        if path == "/discovery":  # addresses of services; needs no token
            return answer(200, {"api": state.url, "history": state.url})
        check_version(path, request.query.get("api-version", ""))
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
        if operation:  # the SDK polls the first of these until it has a final status (observed)
            place = state.url + OPERATION.format(operation)
            own = f"{state.url}{request.path_qs}" if method in ("PUT", "PATCH") else place
            headers = {"Azure-AsyncOperation": place, "Location": own, "Retry-After": "0"}
            headers |= {"x-ms-async-operation-timeout": "PT30M"}
        return answer(status, found, headers)

    made = web.Application(
        client_max_size=BODY_BYTES, middlewares=[authenticate(state), *middlewares]
    )
    made.router.add_route("*", "/{path:.*}", respond)
    return made
