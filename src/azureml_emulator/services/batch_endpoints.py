"""Batch endpoints: a job is processes in a copy of the code that was uploaded.

As on Azure a process of the deployment calls `init` once and `run` for one mini-batch of files
after another, again when that fails; what lies below AZUREML_BI_OUTPUT_PATH is the job's output.
"""

import os
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import IO

from azureml_emulator.services import online_endpoints
from azureml_emulator.state import Answer, Json, RefusedError, State

# It ends when its standard input does: with the emulator, however that ends. The output is a mount
# of blob storage on Azure, where no file can be renamed: github.com/microsoft/hi-ml/issues/258.
DRIVER = """
import importlib.util, os, sys, threading, traceback
def end():
    while os.read(0, 1):
        pass
    os._exit(1)
threading.Thread(target=end, daemon=True).start()
def refuse(source, *rest, **options):
    raise PermissionError(f"{source}: a file of mounted blob storage cannot be renamed.")
os.rename = os.replace = refuse
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


def put_endpoint(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a batch endpoint, or replace its settings."""
    online_endpoints.check_name(path)
    wanted = (body["properties"].get("defaults") or {}).get("deploymentName")
    if wanted and f"{key}/deployments/{wanted.lower()}" not in state.resources:
        raise RefusedError(400, "BadArgument", f"The default names no deployment: {wanted}.")
    body["properties"] |= {"scoringUri": f"{state.url}{path}/jobs", "swaggerUri": ""}
    return put(state, path, key, body)


def put_deployment(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a batch deployment, or replace it."""
    state.get(path, key.split("/deployments/")[0], body)
    properties = body["properties"]
    state.asset(properties["codeConfiguration"]["codeId"])
    state.asset(properties["model"]["assetId"])
    if not properties.get("compute"):
        raise RefusedError(400, "BadArgument", f"{path} names no compute.")
    return put(state, path, key, body)


def put(state: State, path: str, key: str, body: Json) -> Answer:
    """Keep a resource; an operation lets it come into force."""
    state.refuse_busy(key)
    body["properties"].setdefault("properties", {})
    return state.put_later(path, key, body, lambda path: None)


def delete(state: State, path: str, key: str, body: Json) -> Answer:
    """Delete an endpoint with its deployments, or a deployment; jobs stay."""
    if key not in state.resources:
        return 204, None, ""
    state.refuse_busy(key)
    endpoint, _, name = key.partition("/deployments/")
    defaults = state.resources[endpoint]["properties"].get("defaults") or {}
    if name and (defaults.get("deploymentName") or "").lower() == name:
        raise RefusedError(400, "BadRequest", f"The deployment {name} is the endpoint's default.")
    state.resources[key]["properties"]["provisioningState"] = "Deleting"

    def forget(key: str) -> None:
        with state.lock:
            for name in [one for one in state.resources if (one + "/").startswith(key + "/")]:
                del state.resources[name]

    return 202, None, state.later(key, forget)


def invoke(state: State, path: str, key: str, body: Json) -> Answer:
    """Begin a job of the deployment that is asked for, or of the endpoint's default."""
    endpoint, asked = key.rsplit("/", 1)[0], body["properties"]
    state.get(path, endpoint, body)
    defaults = state.resources[endpoint]["properties"].get("defaults") or {}
    chosen = asked.get("deploymentName") or defaults.get("deploymentName") or ""
    deployment = f"{endpoint}/deployments/{chosen.lower()}"
    if deployment not in state.resources:
        raise RefusedError(400, "BadArgument", f"{path}: there is no deployment {chosen}.")
    workspace = path[: key.index("/batchendpoints/")]
    name = asked.get("name") or f"batchjob-{uuid.uuid4()}"
    place = f"{workspace}/jobs/{name}"
    if place.lower() in state.resources:
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
    answer = state.put(place, place.lower(), {"properties": rest | data})
    start(state, place.lower())
    return answer


def start(state: State, key: str) -> None:
    """Do a job in the background; what went wrong stands in its log."""

    def run() -> None:
        job = state.resources[key]
        home = state.folder / "jobs" / job["name"]
        shutil.rmtree(home, ignore_errors=True)
        (home / "output").mkdir(parents=True)
        status = "Failed"
        with (home / "log.txt").open("ab") as log:
            try:
                status = "Completed" if work(state, job["properties"], home, log) else "Failed"
            except Exception as error:  # of the emulator itself
                log.write(repr(error).encode())
        with state.lock:
            job["properties"]["status"] = status
            state.save()

    threading.Thread(target=run, daemon=True).start()


def work(state: State, job: Json, home: Path, log: IO[bytes]) -> bool:
    """Fetch, run the processes, put the output into the blob store; return whether all was done."""
    deployment = state.resources[job["properties"]["deployment"]]["properties"]
    configuration = deployment["codeConfiguration"]
    model = state.asset(deployment["model"]["assetId"])["properties"]["modelUri"]
    (input_,), (output,) = job["inputs"].values(), job["outputs"].values()
    fetch = state.storage.fetch
    fetch(state.asset(configuration["codeId"])["properties"]["codeUri"], home / "code")
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
    state.storage.upload(home / "output", target)
    for folder in ("input", "output", "model"):
        shutil.rmtree(home / folder)
    return not any(ended)


def restore(state: State) -> None:
    """Begin jobs that ran when the emulator ended, and operations that were under way, anew."""
    with state.lock:
        for key, body in list(state.resources.items()):
            if "/batchendpoints/" in key and "provisioningState" in body["properties"]:
                body["properties"]["provisioningState"] = "Succeeded"
            ours = "/jobs/" in key and "deployment" in body["properties"]["properties"]
            if ours and body["properties"]["status"] == "Running":
                start(state, key)
