"""Batch endpoints: a job runs as processes in a copy of the uploaded code.

As on Azure, a process of the deployment calls `init` once, then `run` for each mini-batch of files,
and repeats a `run` that fails. The files below AZUREML_BI_OUTPUT_PATH are the job's output. With
the output action AppendRow, each row that `run` returns is written there as a line.
"""

import copy
import json
import sys
import uuid
from pathlib import Path

from azureml_emulator.services import jobs, online_endpoints
from azureml_emulator.state import Answer, Json, RefusedError, State, need

# It ends when its standard input is closed, even if the emulator is killed. On Azure the output is
# a mount of blob storage, where no file can be renamed: github.com/microsoft/hi-ml/issues/258.
DRIVER = """
import importlib.util, json, os, sys, threading, traceback
def end():
    while os.read(0, 1):
        pass
    os._exit(1)
threading.Thread(target=end, daemon=True).start()
def refuse(source, *rest, **options):
    raise PermissionError(f"{source}: a file of mounted blob storage cannot be renamed.")
os.rename = os.replace = refuse
script, settings, *files = sys.argv[1:]
settings = json.loads(settings)
spec = importlib.util.spec_from_file_location("entry", script)
entry = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entry)
def keep(rows):
    text = rows.to_csv(header=False, index=False) if hasattr(rows, "to_csv") else "".join(
        f"{row}\\n" for row in rows)
    with open(settings["rows"], "a") as file:
        file.write(text)
entry.init()
failed = 0
for start in range(0, len(files), settings["size"]):
    batch = files[start : start + settings["size"]]
    for left in reversed(range(1 + settings["retries"])):
        try:
            rows = entry.run(batch)
            print(*rows, flush=True)
            if settings["rows"]:
                keep(rows)
            break
        except Exception:
            traceback.print_exc()
            failed += len(batch) * (not left)
    if 0 <= settings["threshold"] < failed:
        sys.stderr.flush()
        os._exit(1)
"""


def put_endpoint(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a batch endpoint, or replace its settings."""
    online_endpoints.check_name(path)
    need(body, "properties")
    wanted = (body["properties"].get("defaults") or {}).get("deploymentName")
    if wanted and f"{key}/deployments/{wanted.lower()}" not in state.resources:
        raise RefusedError(400, "BadArgument", f"The default deployment does not exist: {wanted}.")
    # An object, even without a default: clients set its deploymentName, source: learn.microsoft
    # .com/azure/machine-learning/how-to-use-batch-model-deployments.
    body["properties"] |= {"defaults": {"deploymentName": wanted}}
    body["properties"] |= {"scoringUri": f"{state.url}{path}/jobs", "swaggerUri": ""}
    return state.put_later(path, key, body, lambda key: None)


def put_deployment(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a batch deployment, or replace it."""
    state.get(path, key.split("/deployments/")[0], body)
    online_endpoints.check_name(path)
    need(body, "properties")
    properties = body["properties"]
    need(properties, "compute")
    if not (properties.get("codeConfiguration") or {}).get("codeId"):
        message = "The emulator does not emulate a batch deployment without code."
        raise RefusedError(501, "NotImplemented", message)
    state.asset(properties["codeConfiguration"]["codeId"])
    if properties.get("model"):
        need(properties, "model.assetId")
        state.asset(properties["model"]["assetId"])
    return state.put_later(path, key, body, lambda key: None)


def list_jobs(state: State, path: str, key: str, body: Json) -> Answer:
    """Return the jobs of an endpoint, newest first."""
    endpoint = key.rsplit("/", 1)[0]
    state.get(path, endpoint, body)
    found = [
        copy.deepcopy(one)
        for one in state.resources.values()
        if str(one["properties"].get("properties", {}).get("deployment")).startswith(f"{endpoint}/")
    ]
    return 200, {"value": found[::-1]}, ""


def invoke(state: State, path: str, key: str, body: Json) -> Answer:
    """Begin a job of the requested deployment, or of the endpoint's default."""
    need(body, "properties")
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
        raise RefusedError(409, "Conflict", f"A job named {name} exists already.")
    kinds = {"inputs": "inputData", "outputs": "outputData"}
    data = {
        ours: {
            name: {f"job{ours[:-1].capitalize()}Type": "uri_folder", "uri": one["uri"]}
            for name, one in (asked.get(theirs) or {}).items()
        }
        for ours, theirs in kinds.items()
    }
    data["outputs"] = data["outputs"] or {"score": {"jobOutputType": "uri_folder"}}
    if len(data["inputs"]) != 1 or len(data["outputs"]) != 1:
        raise RefusedError(400, "BadArgument", "A deployment of a model takes one input folder.")
    rest: Json = {"jobType": "Pipeline", "status": "Running", "jobs": {}, "displayName": name}
    rest |= {"experimentName": endpoint.split("/")[-1], "settings": {}, "tags": {}}
    rest |= {"properties": {"deployment": deployment}, "inputs": data["inputs"]}
    rest |= jobs.described(state, place) | {"outputs": jobs.given_outputs(name, data)}
    answer = state.put(place, place.lower(), {"properties": rest})
    jobs.begin(state, place.lower())
    return answer


def plan(state: State, job: Json, home: Path) -> list[jobs.Node]:
    """Return the processes of a batch job; each scores its share of the files."""
    deployment = state.asset(job["properties"]["deployment"])["properties"]
    configuration, env = deployment["codeConfiguration"], {}
    bound = jobs.bind(state, job, home)
    (input_,) = (Path(value) for name, value in bound.items() if name.startswith("inputs."))
    (output,) = (Path(value) for name, value in bound.items() if name.startswith("outputs."))
    code = home / "0" / "code"
    state.storage.fetch(state.asset(configuration["codeId"])["properties"]["codeUri"], code)
    if deployment.get("model"):
        uri = state.asset(deployment["model"]["assetId"])["properties"]["modelUri"]
        state.storage.fetch(uri, home / "model" / uri.rstrip("/").split("/")[-1])
        env["AZUREML_MODEL_DIR"] = str(home / "model")
    env["AZUREML_BI_OUTPUT_PATH"] = str(output)
    files = [input_] if input_.is_file() else [one for one in input_.rglob("*") if one.is_file()]
    named = sorted(map(str, files))
    count = deployment.get("maxConcurrencyPerInstance") or 1
    count *= (deployment.get("resources") or {}).get("instanceCount") or 1
    rows = (deployment.get("outputAction") or "AppendRow") == "AppendRow"
    settings = {
        "size": int(deployment.get("miniBatchSize") or 10),
        "retries": int((deployment.get("retrySettings") or {}).get("maxRetries", 3)),
        "threshold": int(deployment.get("errorThreshold", -1)),
        "rows": str(output / (deployment.get("outputFileName") or "predictions.csv")) * rows,
    }
    script = code / (configuration.get("scoringScript") or "score.py")
    command = [sys.executable, "-c", DRIVER, str(script), json.dumps(settings)]
    env |= deployment.get("environmentVariables") or {}
    shares = [named[number::count] for number in range(min(count, len(named)))]
    return [jobs.Node([*command, *share], code, env) for share in shares]


jobs.PLANS["Pipeline"] = plan
