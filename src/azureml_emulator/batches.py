"""Batch endpoints in the stand-in: a job is processes in a copy of the code that was uploaded.

As on Azure a process of the deployment calls `init` once and `run` for one mini-batch of files
after another, again when that fails; what lies below AZUREML_BI_OUTPUT_PATH is the job's output.
"""

import copy
import os
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import IO

from azureml_emulator.standin import ENDPOINT_NAME, Answered, Json, RefusedError, StandIn

# It ends when its standard input does: with the stand-in, however that ends.
DRIVER = """
import importlib.util, os, sys, threading, traceback
def end():
    while os.read(0, 1):
        pass
    os._exit(1)
threading.Thread(target=end, daemon=True).start()
script, size, retries, *files = sys.argv[1:]
spec = importlib.util.spec_from_file_location("entry", script)
entry = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entry)
entry.init()
for start in range(0, len(files), int(size)):
    batch = files[start : start + int(size)]
    for left in reversed(range(1 + int(retries))):
        try:
            print(*entry.run(batch), flush=True)
            break
        except Exception:
            traceback.print_exc()
            if not left:
                sys.stderr.flush()
                os._exit(1)
"""


def put_endpoint(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Create a batch endpoint, or replace its settings."""
    name = path.rstrip("/").split("/")[-1]
    if not ENDPOINT_NAME.match(name):
        message = f"The endpoint name {name} is invalid: 3 to 32 letters, digits and hyphens."
        raise RefusedError(400, "BadArgument", message)
    wanted = (body["properties"].get("defaults") or {}).get("deploymentName")
    if wanted and f"{key}/deployments/{wanted.lower()}" not in standin.resources:
        raise RefusedError(400, "BadArgument", f"The default names no deployment: {wanted}.")
    made = {"scoringUri": f"{standin.url}{path}/jobs", "swaggerUri": ""}
    return put(standin, path, key, body, made)


def put_deployment(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Create a batch deployment, or replace it."""
    standin.get(path, key.split("/deployments/")[0], body)
    properties = body["properties"]
    standin.asset(properties["codeConfiguration"]["codeId"])
    standin.asset(properties["model"]["assetId"])
    if not properties.get("compute"):
        raise RefusedError(400, "BadArgument", f"{path} names no compute.")
    return put(standin, path, key, body, {})


def put(standin: StandIn, path: str, key: str, body: Json, made: Json) -> Answered:
    """Keep a resource; an operation lets it come into force."""
    standin.refuse_busy(key)
    known = standin.resources.get(key)
    stored = standin.stored(path, body, known)
    state = {"provisioningState": "Updating" if known else "Creating"}
    stored["properties"] = {"properties": {}} | stored["properties"] | made | state
    standin.resources[key] = stored
    answer = copy.deepcopy(stored)
    return 200 if known else 201, answer, standin.later(key, lambda path: None)


def delete(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Delete an endpoint with its deployments, or a deployment; jobs stay."""
    if key not in standin.resources:
        return 204, None, ""
    standin.refuse_busy(key)
    endpoint, _, name = key.partition("/deployments/")
    defaults = standin.resources[endpoint]["properties"].get("defaults") or {}
    if name and (defaults.get("deploymentName") or "").lower() == name:
        raise RefusedError(400, "BadRequest", f"The deployment {name} is the endpoint's default.")
    standin.resources[key]["properties"]["provisioningState"] = "Deleting"

    def forget(key: str) -> None:
        with standin.lock:
            for name in [one for one in standin.resources if (one + "/").startswith(key + "/")]:
                del standin.resources[name]

    return 202, None, standin.later(key, forget)


def invoke(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Begin a job of the deployment that is asked for, or of the endpoint's default."""
    endpoint, asked = key.rsplit("/", 1)[0], body["properties"]
    standin.get(path, endpoint, body)
    defaults = standin.resources[endpoint]["properties"].get("defaults") or {}
    chosen = asked.get("deploymentName") or defaults.get("deploymentName") or ""
    deployment = f"{endpoint}/deployments/{chosen.lower()}"
    if deployment not in standin.resources:
        raise RefusedError(400, "BadArgument", f"{path}: there is no deployment {chosen}.")
    workspace = path[: key.index("/batchendpoints/")]
    name = asked.get("name") or f"batchjob-{uuid.uuid4()}"
    place = f"{workspace}/jobs/{name}"
    if place.lower() in standin.resources:
        raise RefusedError(409, "Conflict", f"A job of the name {name} exists already.")
    kinds = {"inputs": "inputData", "outputs": "outputData"}
    data = {
        ours: {
            name: {f"job{ours[:-1].capitalize()}Type": "uri_folder", "uri": one["uri"]}
            for name, one in asked[theirs].items()
        }
        for ours, theirs in kinds.items()
    }
    rest = {"jobType": "Pipeline", "status": "Running", "isArchived": False, "jobs": {}}
    rest |= {"displayName": name, "experimentName": endpoint.split("/")[-1], "settings": {}}
    rest |= {"properties": {"deployment": deployment}, "tags": {}, "services": {}}
    standin.resources[place.lower()] = standin.stored(place, {"properties": rest | data}, None)
    standin.save()
    start(standin, place.lower())
    return 201, copy.deepcopy(standin.resources[place.lower()]), ""


def start(standin: StandIn, key: str) -> None:
    """Do a job in the background; what went wrong stands in its log."""

    def run() -> None:
        job = standin.resources[key]
        home = standin.folder / "jobs" / job["name"]
        shutil.rmtree(home, ignore_errors=True)
        (home / "output").mkdir(parents=True)
        status = "Failed"
        with (home / "log.txt").open("ab") as log:
            try:
                status = "Completed" if work(standin, job["properties"], home, log) else "Failed"
            except Exception as error:  # of the stand-in itself
                log.write(repr(error).encode())
        with standin.lock:
            job["properties"]["status"] = status
            standin.save()

    threading.Thread(target=run, daemon=True).start()


def work(standin: StandIn, job: Json, home: Path, log: IO[bytes]) -> bool:
    """Fetch, run the processes, put the output into the blob store; return whether all was done."""
    deployment = standin.resources[job["properties"]["deployment"]]["properties"]
    configuration = deployment["codeConfiguration"]
    model = standin.asset(deployment["model"]["assetId"])["properties"]["modelUri"]
    (input_,), (output,) = job["inputs"].values(), job["outputs"].values()
    fetch = standin.storage["fetch"]
    fetch(standin.asset(configuration["codeId"])["properties"]["codeUri"], home / "code")
    fetch(model, home / "model" / model.rstrip("/").split("/")[-1])
    fetch(input_["uri"], home / "input")
    files = sorted(str(path) for path in (home / "input").rglob("*") if path.is_file())
    kept = {name: value for name, value in os.environ.items() if "AZUREML_" not in name}
    kept |= {"AZUREML_MODEL_DIR": str(home / "model")}
    kept |= {"AZUREML_BI_OUTPUT_PATH": str(home / "output")}
    count = deployment.get("maxConcurrencyPerInstance") or 1
    count *= (deployment.get("resources") or {}).get("instanceCount") or 1
    size = str(deployment.get("miniBatchSize") or 10)
    retries = str((deployment.get("retrySettings") or {}).get("maxRetries", 3))
    command = [sys.executable, "-c", DRIVER, str(home / "code" / configuration["scoringScript"])]
    processes = [
        subprocess.Popen(
            [*command, size, retries, *files[number::count]],
            env=kept | (deployment.get("environmentVariables") or {}),
            cwd=home / "code",
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for number in range(min(count, len(files)))
    ]
    ended = [process.wait() for process in processes]
    for process in processes:
        assert process.stdin
        process.stdin.close()
    target = output["uri"].split("/paths/", 1)[1].rstrip("/")
    for path in sorted(path for path in (home / "output").rglob("*") if path.is_file()):
        blob = f"{target}/{path.relative_to(home / 'output').as_posix()}"
        standin.storage["client"].upload_blob(blob, path.read_bytes(), overwrite=True)
    for folder in ("input", "output", "model"):
        shutil.rmtree(home / folder)
    return not any(ended)


def restore(standin: StandIn) -> None:
    """Begin jobs that ran when the stand-in ended, and operations that were under way, anew."""
    with standin.lock:
        for key, body in list(standin.resources.items()):
            if "/batchendpoints/" in key and "provisioningState" in body["properties"]:
                body["properties"]["provisioningState"] = "Succeeded"
            ours = "/jobs/" in key and "deployment" in body["properties"]["properties"]
            if ours and body["properties"]["status"] == "Running":
                start(standin, key)


def routes(workspace: str) -> list[tuple[str, dict]]:
    """Return the routes below a workspace's pattern."""
    endpoint = rf"{workspace}/batchendpoints/[^/]+"
    return [
        (rf"{workspace}/batchendpoints", {"GET": StandIn.listing}),
        (endpoint, {"GET": StandIn.get, "PUT": put_endpoint, "DELETE": delete}),
        (rf"{endpoint}/deployments", {"GET": StandIn.listing}),
        (
            rf"{endpoint}/deployments/[^/]+",
            {"GET": StandIn.get, "PUT": put_deployment, "DELETE": delete},
        ),
        (rf"{endpoint}/jobs", {"POST": invoke}),
    ]
