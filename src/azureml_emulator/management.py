"""Azure's management API as the stand-in serves it: routes, small answers, faults, a record.

Faults can be switched on for tests (`PUT /standin/faults`, a list of `Fault`s); every call since
then is recorded (`GET /standin/calls`, with what is left of the faults).
"""

import copy
import datetime
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from urllib.parse import parse_qs, urlsplit

from azureml_emulator import batches, jobs
from azureml_emulator.router import Handler
from azureml_emulator.standin import (
    FAILURES,
    LOCATION,
    PROVIDER,
    QUOTA,
    SIZES,
    Answered,
    Json,
    RefusedError,
    StandIn,
)

RECORDED = 20_000  # calls
ASSETS = "models|codes|environments|data"
STORES = "workspace(blob|artifact)store"


@dataclass
class Fault:
    """Something that goes wrong: on the calls that match, or in a deployment's creation.

    - fail: the call is refused with `status` and `code`, and nothing is done
    - lose: the call is done, then the connection is closed without an answer
    - hang: no answer for `seconds`, then as fail
    - quota, image, unhealthy: what a deployment's operation ends with
    """

    do: str
    method: str = ""
    path: str = ""  # a regular expression, found in the call's path
    skip: int = 0  # calls that match before the first that goes wrong
    times: int = 1_000_000
    status: int = 400
    code: str = "InjectedFault"
    seconds: float = 0


def workspace(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return a workspace: any that is named exists."""
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, key))
    group = path.split("/providers/")[0]
    account = f"{group}/providers/Microsoft.Storage/storageAccounts/{standin.storage['account']}"
    properties = {"workspaceId": identity, "storageAccount": account, "mlFlowTrackingUri": ""}
    resource = standin.stored(path, {"properties": properties}, None)
    return 200, resource | {"location": LOCATION}, ""


def datastore(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return the workspace's blob store."""
    properties = {
        "datastoreType": "AzureBlob",
        "accountName": standin.storage["account"],
        "containerName": standin.storage["container"],
        "endpoint": "core.windows.net",
        "protocol": "https",
        "isDefault": True,
        "credentials": {"credentialsType": "AccountKey"},
        "tags": {},
    }
    stored = standin.stored(path, {"properties": properties}, None)
    return 200, {"value": [stored]} if key.endswith("/datastores") else stored, ""


def secrets(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return the blob store's key."""
    return 200, {"secretsType": "AccountKey", "key": standin.storage["key"]}, ""


def upload(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return where code may be uploaded to."""
    place, signed = standin.storage["offer"](str(uuid.uuid5(uuid.NAMESPACE_URL, key)))
    credential = {"credentialType": "SAS", "sasUri": signed}
    reference = {"blobUri": place, "storageAccountArmId": "/local", "credential": credential}
    kind = {"pendingUploadId": str(uuid.uuid4()), "pendingUploadType": "TemporaryBlobReference"}
    return 200, {"blobReferenceForConsumption": reference} | kind, ""


def list_keys(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return an endpoint's keys."""
    endpoint = key.rsplit("/", 1)[0]
    standin.get(path, endpoint, body)
    first, second = standin.keys[endpoint]
    return 200, {"primaryKey": first, "secondaryKey": second}, ""


def token_of(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return a token, which here is the first key."""
    endpoint = key.rsplit("/", 1)[0]
    standin.get(path, endpoint, body)
    until = int(time.time()) + 3600
    times = {"expiryTimeUtc": until, "refreshAfterTimeUtc": until - 600, "tokenType": "Bearer"}
    return 200, {"accessToken": standin.keys[endpoint][0]} | times, ""


def logs(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return the last lines of a deployment's server."""
    deployment = key.rsplit("/", 1)[0]
    standin.get(path, deployment, body)
    log = standin.home(deployment) / "log.txt"
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    return 200, {"content": "\n".join(lines[-(body.get("tail") or 500) :])}, ""


def operation(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return how far an operation is."""
    name = key.split("/")[-1]
    if name not in standin.operations:
        raise RefusedError(404, "NotFound", f"There is no operation {name}.")
    known = {key: value for key, value in standin.operations[name].items() if key != "resource"}
    return 200, {"id": path, "name": name} | known, ""


def usages(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return the quota of each family of sizes, in cores."""
    usage = {"id": path, "type": f"{PROVIDER}/vm/dedicatedCores", "unit": "Count"}
    found = []
    for family, limit in QUOTA.items():
        name = {"value": family, "localizedValue": family}
        used = standin.used(family)
        found.append(usage | {"name": name, "currentValue": used, "limit": limit})
    return 200, {"value": found}, ""


def sizes(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Return the sizes that there are."""
    rest: Json = {
        "gpus": 0,
        "osVhdSizeMB": 1,
        "maxResourceVolumeMB": 1,
        "memoryGB": 7.0,
    }
    rest |= {
        "lowPriorityCapable": False,
        "premiumIO": True,
        "supportedComputeTypes": ["AmlCompute"],
    }
    value = [
        {"name": name, "vCPUs": cores, "family": family} | rest
        for name, (cores, family) in SIZES.items()
    ]
    return 200, {"value": value}, ""


def put_scale(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Keep a deployment's setting of Azure Monitor; nothing here scales by it."""
    target = body["properties"]["targetResourceUri"]
    if target.lower() not in standin.resources:
        raise RefusedError(400, "ResourceNotFound", f"The target {target} was not found.")
    for profile in body["properties"]["profiles"]:
        bounds = [int(profile["capacity"][name]) for name in ("minimum", "default", "maximum")]
        if bounds != sorted(bounds):
            raise RefusedError(400, "InvalidProfile", f"{bounds} are not in order.")
    return standin.put_plain(path, key, body)


def put_policy(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Keep a storage account's rules, and go by them."""
    answer = standin.put_plain(path, key, body)
    standin.workers.submit(enforce, standin)
    return answer


def enforce(standin: StandIn) -> None:
    """Delete blobs that the storage account's rules say are too old."""
    now = datetime.datetime.now(datetime.UTC)
    with standin.lock:
        found = [body for key, body in standin.resources.items() if "/managementpolicies/" in key]
    for rule in (rule for one in found for rule in one["properties"]["policy"]["rules"]):
        days = rule["definition"]["actions"]["baseBlob"]["delete"]
        oldest = now - datetime.timedelta(days=days["daysAfterModificationGreaterThan"])
        for prefix in rule["definition"]["filters"]["prefixMatch"]:
            standin.storage["expire"](prefix, oldest)


W = rf"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/{PROVIDER.lower()}/workspaces/[^/]+"
P = rf"/subscriptions/[^/]+/providers/{PROVIDER.lower()}/locations/[^/]+"
E = rf"{W}/onlineendpoints/[^/]+"
G = r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers"
Methods = dict[str, Callable[..., Answered]]
ROUTES: list[tuple[str, Methods]] = [
    (W, {"GET": workspace}),
    (rf"{W}/datastores(/{STORES})?", {"GET": datastore}),
    (rf"{W}/datastores/{STORES}/listsecrets", {"POST": secrets}),
    (rf"{W}/jobs", {"GET": StandIn.listing}),
    (rf"{W}/jobs/[^/]+", {"GET": StandIn.get, "PUT": jobs.put_job}),
    (rf"{W}/jobs/[^/]+/cancel", {"POST": jobs.cancel}),
    (rf"{W}/computes/[^/]+", {"GET": StandIn.get, "PUT": jobs.put_compute}),
    (rf"{W}/codes/[^/]+/versions/[^/]+/startpendingupload", {"POST": upload}),
    (rf"{W}/({ASSETS})", {"GET": StandIn.containers}),
    (rf"{W}/({ASSETS})/[^/]+", {"GET": StandIn.container}),
    (rf"{W}/({ASSETS})/[^/]+/versions", {"GET": StandIn.listing}),
    (
        rf"{W}/({ASSETS})/[^/]+/versions/[^/]+",
        {"GET": StandIn.get, "PUT": StandIn.put_asset, "DELETE": StandIn.delete_plain},
    ),
    (rf"{W}/onlineendpoints", {"GET": StandIn.listing}),
    (E, {"GET": StandIn.get, "PUT": StandIn.put_endpoint, "DELETE": StandIn.delete}),
    (rf"{E}/listkeys", {"POST": list_keys}),
    (rf"{E}/token", {"POST": token_of}),
    (rf"{E}/deployments", {"GET": StandIn.listing}),
    (
        rf"{E}/deployments/[^/]+",
        {"GET": StandIn.get, "PUT": StandIn.put_deployment, "DELETE": StandIn.delete},
    ),
    (rf"{E}/deployments/[^/]+/getlogs", {"POST": logs}),
    (
        rf"{G}/microsoft.insights/autoscalesettings/[^/]+",
        {"GET": StandIn.get, "PUT": put_scale, "DELETE": StandIn.delete_plain},
    ),
    (
        rf"{G}/microsoft.storage/storageaccounts/[^/]+/managementpolicies/default",
        {"GET": StandIn.get, "PUT": put_policy, "DELETE": StandIn.delete_plain},
    ),
    (rf"{P}/operations/[^/]+", {"GET": operation}),
    (rf"{P}/usages", {"GET": usages}),
    (rf"{P}/vmsizes", {"GET": sizes}),
    *batches.routes(W),
]


def call(standin: StandIn, method: str, path: str, body: Json) -> Answered:
    """Return status, body and the id of the operation that began, of one call."""
    key = path.rstrip("/").lower()
    for pattern, methods in ROUTES:
        if re.fullmatch(pattern, key) and method in methods:
            with standin.lock:
                return methods[method](standin, path, key, body)
    raise RefusedError(404, "NotFound", f"{method} {path} is nothing that the stand-in knows.")


def handler(standin: StandIn) -> type[Handler]:
    """Return the class that answers HTTP calls."""
    faults: list[Fault] = []
    calls: deque[Json] = deque(maxlen=RECORDED)

    class Management(Handler):
        """Azure's management API, and the stand-in's own switches."""

        def do_any(self) -> None:
            """Answer one call; write it down."""
            url, raw = urlsplit(self.path), self.body()
            body = json.loads(raw) if raw else {}
            if self.headers.get("Authorization") != f"Bearer {standin.token}":
                error = RefusedError(
                    401, "InvalidAuthenticationToken", "The access token is invalid."
                )
                return self.say(401, error.body)
            if url.path == "/standin/calls":
                return self.say(200, {"calls": list(calls), "faults": list(map(asdict, faults))})
            if url.path == "/standin/faults":
                faults[:] = [Fault(**fault) for fault in body]
                failures = [fault.do for fault in faults if fault.do in FAILURES]
                standin.failure = failures[0] if failures else ""
                calls.clear()
                return self.say(200, {})
            if url.path == "/standin/lose":
                jobs.lose(standin, body["job"])
                return self.say(200, {})
            fault = self.fault(url.path)
            record: Json = {"method": self.command, "path": url.path, "query": parse_qs(url.query)}
            record |= {"request": copy.deepcopy(body) if raw else None}
            calls.append(record)
            if chosen := self.headers.get("azureml-model-deployment"):
                body["properties"]["deploymentName"] = chosen  # that a batch endpoint is to use
            if fault and fault.do in ("fail", "hang"):
                time.sleep(fault.seconds)
                error = RefusedError(fault.status, fault.code, f"Refused for a test: {url.path}")
                return self.say(fault.status, error.body)
            headers = {}
            try:
                status, answer, operation = call(standin, self.command, url.path, body)
                if operation:
                    place = "/subscriptions/local/providers/{}/locations/{}/operations/{}"
                    place = standin.url + place.format(PROVIDER, LOCATION, operation)
                    headers = {"Azure-AsyncOperation": place, "Location": place, "Retry-After": "0"}
            except RefusedError as error:
                status, answer = error.status, error.body
            record |= {"status": status, "response": answer}
            if fault and fault.do == "lose":
                self.close_connection = True
                return None
            return self.say(status, answer, headers)

        def fault(self, path: str) -> Fault | None:
            """Return the fault that is switched on for this call."""
            for fault in faults:
                if fault.do in FAILURES or fault.method not in ("", self.command):
                    continue
                if re.search(fault.path, path, re.I):
                    fault.skip -= 1
                    if fault.skip < 0 and fault.times > 0:
                        fault.times -= 1
                        return fault
            return None

        def say(self, status: int, body: Json | None, headers: Json | None = None) -> None:
            """Send JSON."""
            raw = b"" if body is None else json.dumps(body).encode()
            self.answer(status, raw, {"Content-Type": "application/json"} | (headers or {}))

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do_any  # noqa: N815

    return Management
