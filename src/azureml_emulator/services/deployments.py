"""Start, supervise and restore the servers of endpoints' deployments."""

import contextlib
import json
import math
import os
import secrets
import shutil
import time
import uuid
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path

import isodate

from azureml_emulator.router import Endpoint, Launch, Running
from azureml_emulator.services.sign_in import Access
from azureml_emulator.state import BUSY, Answer, Json, RefusedError, State
from azureml_emulator.web import EmulatorError, read_file, warn, write_atomic

LOG_BYTES = 10_000_000
LAUNCHED = "launch.json"
PROBE: Json = {"initialDelay": "PT10S", "period": "PT10S", "failureThreshold": 30}  # Azure's own
CRASHED = "User container has crashed or terminated"
ML = "https://ml.azure.com"  # the audience of tokens for endpoints with authMode AADToken
MLFLOW_SCORE = Path(__file__).with_name("mlflow_score.py")


def route(state: State, path: str) -> None:
    """Give the router an endpoint's keys and weights; set the endpoint's addresses."""
    with state.lock:
        body = state.resources[path]
        properties, name = body["properties"], body["name"]
        keys = state.keys.setdefault(path, [secrets.token_urlsafe(24) for _ in range(2)])
        audience = {"key": "", "amltoken": path}.get(properties["authMode"].lower(), ML)
        access = Access(state.tokens, keys[:2], audience)
        state.router.endpoints[name.lower()] = Endpoint(access, dict(properties["traffic"]))
        for uri, end in (("scoringUri", "score"), ("swaggerUri", "swagger.json")):
            properties[uri] = f"{state.router.url}/{name}/{end}"


def place_of(state: State, path: str) -> tuple[str, str]:
    """Return (endpoint, deployment) of a deployment's path."""
    endpoint = path.split("/deployments/")[0]
    return state.resources[endpoint]["name"], state.resources[path]["name"]


def folder_of(state: State, path: str) -> Path:
    """Return the folder of a deployment."""
    return state.folder / "deployments" / "_".join(path.split("/")[-5::2])


def deploy(state: State, path: str) -> None:
    """Fetch code and model into a new folder and start the server; then drop the old folders.

    A folder with LAUNCHED belongs to a server that became healthy: a restart uses it. As with
    Azure's rolling update, an update that fails leaves the former server as it was.
    """
    properties = state.resources[path]["properties"]
    home = folder_of(state, path)
    fresh = home / uuid.uuid4().hex[:8]
    code, model = fresh / "code", fresh / "azureml-models"
    try:
        code.mkdir(parents=True)
        count = state.resources[path]["sku"]["capacity"]
        build_image(state, str(properties.get("environmentId")).lower())
        launch = prepare(state, properties, count, code, model, home / "log.txt")
        state.router.start(*place_of(state, path), launch)
        write_atomic(fresh / LAUNCHED, json.dumps(asdict(launch)))
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, EmulatorError):
            raise RefusedError(400, "ResourceNotReady", f"{CRASHED}: {error}.") from None
        raise
    for old in home.iterdir():
        if old.is_dir() and old != fresh:
            shutil.rmtree(old, ignore_errors=True)


def build_image(state: State, environment: str) -> None:
    """Wait for the build time of an environment's image at its first deployment."""
    with state.lock:
        due = time.time() + state.settings.image_build_seconds
        left = state.images.setdefault(environment, due) - time.time()
    state.router.aborted.wait(max(0, left))


def prepare(
    state: State, properties: Json, instances: int, code: Path, model: Path, log: Path
) -> Launch:
    """Fetch the assets of a deployment; return how to start its server."""
    env = dict(properties.get("environmentVariables") or {})
    if identity := properties.get("model"):
        asset = state.asset(identity)
        uri = asset["properties"]["modelUri"]
        # As on Azure, where AZUREML_MODEL_DIR is /var/azureml-app/azureml-models/NAME/VERSION.
        model = model / asset["id"].split("/")[-3] / asset["name"]
        state.storage.fetch(uri, model / uri.rstrip("/").split("/")[-1])
    model.mkdir(parents=True, exist_ok=True)
    configuration = properties.get("codeConfiguration") or {}
    script = configuration.get("scoringScript") or "score.py"
    if configuration.get("codeId"):
        asset = state.asset(configuration["codeId"])
        state.storage.fetch(asset["properties"]["codeUri"], code)
        if not (code / script).is_file():
            raise EmulatorError(f"the code has no file {script}")
    else:
        shutil.copy(MLFLOW_SCORE, code / script)
    collections = (properties.get("dataCollector") or {}).get("collections", {}).values()
    if any(str(one.get("dataCollectionMode")).lower() == "enabled" for one in collections):
        env |= {"AZUREML_MDC_ENABLED": "true"}
    probe = PROBE | (properties.get("livenessProbe") or {})
    seconds = duration(probe["initialDelay"])
    seconds += duration(probe["period"]) * probe["failureThreshold"]
    asked = properties.get("requestSettings") or {}
    limit = 2 * (asked.get("maxConcurrentRequestsPerInstance") or 1) * instances
    request_seconds = duration(asked.get("requestTimeout") or "PT5S")
    return Launch(str(code), str(model), script, str(log), env, seconds, limit, request_seconds)


def duration(text: str) -> float:
    """Return the seconds of an ISO 8601 duration without months. Raises RefusedError (400)."""
    with contextlib.suppress(isodate.ISO8601Error, TypeError):
        found = isodate.parse_duration(text)
        if isinstance(found, timedelta):  # a month has no fixed length
            return found.total_seconds()
    raise RefusedError(400, "ValidationError", f"{text} is not a duration such as PT10S.")


def delete(state: State, path: str, key: str, body: Json) -> Answer:
    """Delete an endpoint with all below it, or a deployment that gets no requests."""
    if key not in state.resources:
        return 204, None, ""
    for one in state.resources:
        if (one + "/").startswith(key + "/"):  # a starting deployment would lose its endpoint
            state.refuse_busy(one)
    endpoint, _, name = key.partition("/deployments/")
    settings = state.resources[endpoint]["properties"]
    if name:
        state.refuse_busy(endpoint)
        traffic = settings.get("traffic", {})
        live = {one.lower() for one, weight in traffic.items() if weight}
        live.add((settings.get("defaults", {}).get("deploymentName") or "").lower())
        if name in live:
            message = f"The deployment {name} has traffic, or is the endpoint's default."
            raise RefusedError(400, "BadRequest", f"{message} Change that before deleting it.")
        traffic.pop(state.resources[key]["name"], None)
    state.resources[key]["properties"]["provisioningState"] = "Deleting"
    return 202, None, state.later(key, partial(remove, state))


def remove(state: State, path: str) -> None:
    """Stop the processes of a resource and of those below it; delete its record."""
    below = [key for key in list(state.resources) if (key + "/").startswith(path + "/")]
    # Azure keeps these: learn.microsoft.com/azure/azure-monitor/platform/diagnostic-settings.
    below = [key for key in below if "/diagnosticsettings/" not in key]
    for key in below:
        if "/deployments/" in key and "/onlineendpoints/" in key:
            state.router.stop(place_of(state, key))
            shutil.rmtree(folder_of(state, key), ignore_errors=True)
    with state.lock:
        if path in state.keys:
            state.router.endpoints.pop(state.resources[path]["name"].lower(), None)
            del state.keys[path]
        for key in below:
            del state.resources[key]


def supervise(state: State) -> None:
    """Restart servers that ended or lost their socket, as Kubernetes does; keep logs short.

    A deployment whose server does not restart is Failed until it does.
    """
    for (endpoint, deployment), running in list(state.router.running.items()):
        log = Path(running.launch.log)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            end = log.read_bytes()[-LOG_BYTES // 2 :]
            log.write_bytes(end)  # the server appends
        ended = running.lost() and time.monotonic() >= running.next_start
        if ended and not state.closed:
            running.next_start = math.inf  # while it starts
            state.workers.submit(start_again, state, endpoint, deployment, running)


def start_again(state: State, endpoint: str, deployment: str, running: Running) -> None:
    """Start the server of a deployment whose process ended; after a failure, retry later."""
    status, reason = "Succeeded", ""
    try:
        state.router.start(endpoint, running.name, running.launch, lambda one: one is running)
    except (EmulatorError, OSError) as error:
        # Kubernetes waits 10 s, twice as long each time, and five minutes at most.
        running.next_start = time.monotonic() + min(300, 10 * 2**running.failures)
        running.failures += 1
        status, reason = "Failed", str(error)
    with state.lock:
        for key, body in state.resources.items():
            if key.endswith(f"/onlineendpoints/{endpoint}/deployments/{deployment}"):
                properties = body["properties"]
                if properties["provisioningState"] not in BUSY and not state.closed:
                    properties["provisioningState"] = status
    if reason and running.failures == 1:
        warn(f"{endpoint}/{deployment} ended and does not start again: {reason}")


def restore(state: State) -> None:
    """Start the servers that ran, and finish the operations that were under way."""
    keys = [key for key in state.resources if "endpoints/" in key and "/diagnostic" not in key]
    for key in sorted(keys, key=len):  # endpoints before their deployments
        try:
            restore_one(state, key)
        except Exception as error:  # its state is invalid
            state.leave_out(key, f"it cannot be restored ({error!r})")


def restore_one(state: State, key: str) -> None:
    """Restore the former state of an endpoint or a deployment."""
    endpoint, _, deployment = key.partition("/deployments/")
    online, status = "/onlineendpoints/" in key, state_of(state, key)
    if deployment and state_of(state, endpoint) == "Deleting":
        return
    if online and not deployment:
        route(state, key)
    if status == "Deleting":
        state.later(key, partial(remove, state))
    elif online and deployment:
        launched = sorted(folder_of(state, key).glob(f"*/{LAUNCHED}"), key=os.path.getmtime)
        launch: Launch | None = None  # if unknown, it is deployed again
        with contextlib.suppress(EmulatorError, OSError):
            launch = read_file(launched[-1], Launch, "") if launched else None
        if status != "Failed":
            again = status in BUSY or not launch
            state.later(key, lambda key: resume(state, key, launch, again), state.pending(key))
        elif launch:  # still Failed, with the server from before the update
            state.workers.submit(resume, state, key, launch, False)
    elif status in BUSY:
        state.later(key, lambda key: None, state.pending(key))


def state_of(state: State, key: str) -> str:
    """Return a resource's provisioning state."""
    return str(state.resources[key]["properties"].get("provisioningState"))


def resume(state: State, key: str, launch: Launch | None, again: bool) -> None:
    """Start a deployment's server as it ran; with `again`, then finish its operation."""
    if launch:
        try:
            state.router.start(*place_of(state, key), launch, lambda before: before is None)
        except EmulatorError as error:
            if not again:
                raise RefusedError(400, "ResourceNotReady", f"{CRASHED}: {error}.") from None
    if again:
        deploy(state, key)
