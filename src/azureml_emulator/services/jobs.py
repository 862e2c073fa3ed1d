"""Jobs, sweeps and computes: each node of a job is a process in a copy of its code.

It gets what Azure provides: environment variables, inputs, folders for outputs, an identity (here
the blob store's connection string), a file for its log. A job that loses its machine, or is
interrupted by the emulator's end, restarts from scratch.
"""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azure.storage.blob import ContainerSasPermissions

from azureml_emulator.inference import stop
from azureml_emulator.services.deployments import duration
from azureml_emulator.services.online_endpoints import size_of
from azureml_emulator.state import Answer, Json, RefusedError, State, need
from azureml_emulator.storage import CONTAINER
from azureml_emulator.web import bypassed, warn

POLL_SECONDS = 0.1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")  # of jobs: npm @azure/arm-machinelearning
ENDED = {"Completed", "Failed", "Canceled"}
CHANGEABLE = {"tags", "displayName", "description", "isArchived"}  # of a job that exists
MADE = {"services", "outputs", "properties", "status"}  # clients send these back as they read them
OUTPUT = "azureml://datastores/workspaceblobstore/paths/azureml/{job}/{output}/"
# Runs a command; when its input ends because its starter ended, the process group is killed.
SUPERVISE = """
import os, signal, subprocess, sys, threading
def end():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
code = subprocess.call(sys.argv[1], shell=True)
os._exit(code % 256)
"""
# Creates the tables: jobs that begin at the same time in a new database would conflict.
TRACKING = "import mlflow, sys; mlflow.MlflowClient(sys.argv[1]).search_experiments(max_results=1)"
TRACKING_LOCK = threading.Lock()
DATABASE = "mlflow.db"


@dataclass
class Node:
    """One process of a job."""

    command: list[str]
    folder: Path
    env: dict[str, str] = field(default_factory=dict)


Plan = Callable[[State, Json, Path], list[Node]]  # the job, its home


def end(state: State, key: str) -> None:
    """Kill a job's processes, if it has any."""
    for ran in state.processes.get(key, ()):
        if ran.stdin:
            ran.stdin.close()


def close(state: State) -> None:
    """Kill the running jobs; they restart with the emulator."""
    state.closed = True
    state.router.aborted.set()
    for key in list(state.processes):
        end(state, key)


def put_job(state: State, path: str, key: str, body: Json) -> Answer:
    """Begin a job."""
    need(body, "properties.jobType")
    properties, name = body["properties"], path.rstrip("/").split("/")[-1]
    refuse_unknown(properties)
    given = (properties.get("inputs", {}), properties.get("outputs", {}))
    for one in itertools.chain([name], *given):  # each becomes a folder
        if not NAME.fullmatch(one):
            message = f"The name {one} is invalid: letters, digits, hyphens and underscores."
            raise RefusedError(400, "UserError", message)
    if check := CHECKS.get(properties["jobType"]):
        check(properties)
    if known := state.resources.get(key):  # its tags and whether it is archived may change
        now = known["properties"]
        if any(properties[one] != now.get(one) for one in properties.keys() - MADE - CHANGEABLE):
            raise RefusedError(400, "UserError", f"A job named {name} exists already.")
        changed = {one: properties[one] for one in properties.keys() & CHANGEABLE}
        return state.put(path, key, known | {"properties": now | changed})
    compute = str(properties.get("computeId") or "").lower()
    if compute and compute not in state.resources:
        raise RefusedError(400, "UserError", f"The compute {compute} does not exist.")
    given = {"properties": {}, "tags": {}, "inputs": {}} | properties | described(state, path)
    given["outputs"] = given_outputs(name, properties)
    answer = state.put(path, key, body | {"properties": given | {"status": "NotStarted"}})
    begin(state, key)
    return answer


def refuse_unknown(properties: Json) -> None:
    """Refuse a job that would not run as on Azure."""
    kind, trial = properties["jobType"], properties.get("trial", {})
    sampling = properties.get("samplingAlgorithm", {}).get("samplingAlgorithmType")
    distribution = (properties | trial).get("distribution", {}).get("distributionType")
    for what, found, known in (
        ("jobType", kind, ("Command", "Sweep")),
        ("samplingAlgorithmType", sampling, (None, "Grid", "Random")),
        ("distributionType", distribution, (None, "TensorFlow")),
        ("earlyTermination", properties.get("earlyTermination"), (None,)),
    ):
        if found not in known:
            raise RefusedError(
                501, "NotImplemented", f"The emulator does not emulate {what} {found}."
            )
    need(properties, "command" if kind == "Command" else "trial.command")


def described(state: State, path: str) -> Json:
    """Return what Azure adds to each job."""
    studio = {"jobServiceType": "Studio", "endpoint": f"{state.url}{path}", "status": ""}
    return {"services": {"Studio": studio}, "isArchived": False}


def given_outputs(name: str, properties: Json) -> Json:
    """Return a job's outputs, with default places where none is requested."""
    store = f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{name}"
    found = {"default": {"jobOutputType": "uri_folder", "uri": store, "mode": "ReadWriteMount"}}
    for output, one in properties.get("outputs", {}).items():
        found[output] = {"uri": OUTPUT.format(job=name, output=output)} | one
    return found


def begin(state: State, key: str) -> None:
    """Run a job or a sweep in the background until it has ended."""
    work = BEGIN.get(state.resources[key]["properties"]["jobType"], run)
    threading.Thread(target=work, args=(state, key), daemon=True).start()


def restore(state: State) -> None:
    """Restart the jobs that were running when the emulator ended."""
    for key, body in list(state.resources.items()):
        properties = body["properties"]
        ours = "/jobs/" in key and properties.get("jobType") in (*PLANS, *BEGIN)
        if ours and properties.get("status") not in ENDED and not properties.get("sweep"):
            begin(state, key)


def set_status(state: State, key: str, status: str) -> bool:
    """Set a job's status unless the job has ended; return whether it had ended."""
    with state.lock:
        properties = state.resources[key]["properties"]
        if properties["status"] in ENDED:
            return True
        properties["status"] = status
        state.try_to_save()
    return False


def bind(state: State, job: Json, home: Path) -> dict[str, str]:
    """Fetch a job's inputs, create its output folders; return the values of `inputs.NAME` ..."""
    found = {}
    for name, one in job.get("inputs", {}).items():
        if one["jobInputType"] == "literal":
            found[f"inputs.{name}"] = str(one["value"])
            continue
        uri, target = one["uri"], home / "inputs" / name
        if uri.startswith(("azureml:/subscriptions", "/subscriptions")):
            asset = state.asset(uri)["properties"]
            uri = asset.get("dataUri") or asset.get("modelUri")
        if one["jobInputType"] == "uri_file":
            target /= uri.rstrip("/").split("/")[-1]
        state.storage.fetch(uri, target)
        found[f"inputs.{name}"] = str(target)
    for name in job.get("outputs", {}).keys() - {"default"}:
        (home / "outputs" / name).mkdir(parents=True)
        found[f"outputs.{name}"] = str(home / "outputs" / name)
    return found


def plan_command(state: State, job: Json, home: Path) -> list[Node]:
    """Return the nodes of a command job; each has its own copy of the code."""
    command, made = job["command"], []
    for name, value in bind(state, job, home).items():
        command = command.replace(f"${{{{{name}}}}}", value)
    for rank, env in enumerate(clusters(job)):
        folder = home / str(rank) / "code"
        folder.mkdir(parents=True)
        if job.get("codeId"):
            state.storage.fetch(state.asset(job["codeId"])["properties"]["codeUri"], folder)
        env |= job.get("environmentVariables") or {}
        made.append(Node([sys.executable, "-c", SUPERVISE, command, str(home)], folder, env))
    return made


PLANS: dict[str, Plan] = {"Command": plan_command}  # by the job's type
CHECKS: dict[str, Callable[[Json], None]] = {}
BEGIN: dict[str, Callable[[State, str], None]] = {}  # functions for types without a plan


def clusters(job: Json) -> list[dict[str, str]]:
    """Return the environment variables of each node of a job: TF_CONFIG, if requested."""
    distribution = job.get("distribution") or {}
    asked = distribution.get("workerCount") or (job.get("resources") or {}).get("instanceCount")
    ranks = range(asked or 1)
    if distribution.get("distributionType") != "TensorFlow":
        return [{} for _ in ranks]
    with contextlib.ExitStack() as stack:  # together, so that no port is given twice
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in ranks]
        named = {"worker": [f"127.0.0.1:{one.getsockname()[1]}" for one in free]}
    tasks = [{"cluster": named, "task": {"type": "worker", "index": rank}} for rank in ranks]
    return [{"TF_CONFIG": json.dumps(task)} for task in tasks]


def run(state: State, key: str) -> None:
    """Run a job, restart it if it loses a machine, and keep its logs and outputs."""
    body = state.resources[key]
    name, job = body["name"], body["properties"]
    home, place = state.folder / "jobs" / name, f"ExperimentRun/dcid.{name}"
    logs: list[Any] = []
    try:
        lost = True
        while lost:
            state.lost.discard(key)
            if set_status(state, key, "Preparing"):
                return
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            nodes = PLANS[job["jobType"]](state, job, home)
            make_tables(state, nodes)
            tails = [f"_process_{rank}" for rank in range(len(nodes))] if nodes[1:] else [""]
            logs = logs_of(state, name, tails)
            if set_status(state, key, "Running"):
                return
            ended = process(state, key, nodes, home, [log.append_block for log in logs])
            if state.closed:
                return
            lost = key in state.lost
        for outputs in sorted(home.glob("*/code/outputs")):
            state.storage.upload(outputs, f"{place}/outputs")
        for output in job.get("outputs", {}).keys() - {"default"}:
            state.storage.upload(home / "outputs" / output, job["outputs"][output]["uri"])
        set_status(state, key, "Failed" if ended else "Completed")
    except Exception as error:
        if not state.closed:
            try:
                logs = logs or logs_of(state, name, [""])
                logs[0].append_block(f"The emulator could not run it: {error}\n".encode())
            except Exception as second:  # the disk is full, or the blob store has ended
                warn(f"job {name} failed: {error}; its log was not written: {second}")
            set_status(state, key, "Failed")
    finally:
        end(state, key)
        state.processes.pop(key, None)
        shutil.rmtree(home, ignore_errors=True)


def logs_of(state: State, name: str, tails: list[str]) -> list[Any]:
    """Return a job's logs as blobs, one per node; create missing ones."""
    place = f"ExperimentRun/dcid.{name}/user_logs/std_log"
    logs = [state.storage.client.get_blob_client(f"{place}{tail}.txt") for tail in tails]
    for log in logs:
        if not log.exists():
            log.create_append_blob()
    return logs


def environment(state: State, name: str) -> dict[str, str]:
    """Return the environment variables of each process of a job."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AZURE", "DVC", "GIT_", "MLFLOW", "PYTHONUNBUFFERED"))
    }
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env |= {"AZUREML_RUN_ID": name, "MLFLOW_TRACKING_URI": f"sqlite:///{state.folder / DATABASE}"}
    env |= {"AZURE_STORAGE_CONNECTION_STRING": state.storage.connection_string}
    return env | bypassed(env)


def make_tables(state: State, nodes: list[Node]) -> None:
    """Create MLflow's tables once, if a job's code uses MLflow: concurrent jobs would race."""
    files = (file for node in nodes for file in node.folder.rglob("*.py"))
    database = state.folder / DATABASE
    with TRACKING_LOCK:
        if not database.exists() and any(b"mlflow" in one.read_bytes() for one in files):
            command = [sys.executable, "-c", TRACKING, f"sqlite:///{database}"]
            subprocess.run(command, capture_output=True)


def process(
    state: State, key: str, nodes: list[Node], home: Path, keeps: list[Callable[[bytes], object]]
) -> bool:
    """Run a job's nodes to their end, storing their output; return whether any failed."""
    body, ran = state.resources[key], state.processes.setdefault(key, [])
    ran.clear()
    job, env = body["properties"], environment(state, body["name"])
    limit = (job.get("limits") or {}).get("timeout")
    deadline = time.monotonic() + (duration(limit) if limit else math.inf)
    with contextlib.ExitStack() as stack:
        printed = []
        for rank, node in enumerate(nodes):
            log = home / f"{rank}.log"
            output = stack.enter_context(log.open("wb"))
            printed.append(stack.enter_context(log.open("rb")))
            started = subprocess.Popen(
                node.command,
                cwd=node.folder,
                env=env | node.env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            ran.append(started)
        while True:
            codes = [one.poll() for one in ran]
            late = time.monotonic() > deadline
            # A failed node of a command job ends all nodes, as the end of the job does.
            fails = job["jobType"] == "Command" and any(codes)
            if fails or late or job["status"] in ENDED or state.closed:
                end(state, key)
            for file, keep in zip(printed, keeps, strict=True):
                while new := file.read(1_000_000):
                    keep(new)
            if None not in codes:
                for one in ran:  # what it started may have outlived it
                    stop(one, 0)
                return any(codes) or late
            time.sleep(POLL_SECONDS)


def cancel(state: State, path: str, key: str, body: Json) -> Answer:
    """End a job."""
    key = key.rsplit("/", 1)[0]
    state.get(path, key, body)
    for name, found in list(state.resources.items()):
        if key in (name, found["properties"].get("sweep")):
            set_status(state, name, "Canceled")
            end(state, name)
    return 200, None, ""


def get_run_details(state: State, path: str, key: str, body: Json) -> Answer:
    """Return a run's status and its logs' addresses, as the run history service does."""
    place = key.replace("/runs/", "/jobs/").removesuffix("/details")
    _, job, _ = state.get(path, place, {})
    assert job
    prefix = f"ExperimentRun/dcid.{job['name']}/"
    may = state.storage.sign(CONTAINER, ContainerSasPermissions(read=True))
    names = state.storage.client.list_blob_names(name_starts_with=f"{prefix}user_logs/")
    files = {
        one.removeprefix(prefix): f"{state.storage.url}/{CONTAINER}/{one}?{may}" for one in names
    }
    return 200, {"runId": job["name"], "status": job["properties"]["status"], "logFiles": files}, ""


def get_run_data(state: State, path: str, key: str, body: Json) -> Answer:
    """Return a run's record; its outputs are not registered as assets here."""
    need(body, "runId")
    return 200, {"runMetadata": {"runId": body["runId"], "outputs": {}}}, ""


def put_compute(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a cluster, which is ready at once; its quota is not checked."""
    need(body, "properties.computeType", "properties.properties.vmSize")
    size_of(state, body["properties"]["properties"]["vmSize"])
    body["properties"]["provisioningState"] = "Succeeded"
    return 200, state.put(path, key, body)[1], ""
