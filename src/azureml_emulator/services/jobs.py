"""Jobs, sweeps and computes: each node of a job is a process in a copy of its code.

It gets what Azure gives: its environment variables, who it is (here the blob store's connection
string), a place for log and outputs. A job whose machine is lost, or which the emulator's end cut
short, starts again from nothing.
"""

import contextlib
import copy
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from azureml_emulator.state import Answer, Json, RefusedError, State

POLL_SECONDS = 0.1
ENDED = {"Completed", "Failed", "Canceled"}
# Runs a command; when its input ends, with whoever started it, all that it runs is killed.
SUPERVISE = """
import os, signal, subprocess, sys, threading
def end():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
code = subprocess.call(sys.argv[1], shell=True)
os._exit(code % 256)
"""


def end(state: State, key: str) -> None:
    """Kill a job's processes, if it has any."""
    for ran in state.processes.get(key, ()):
        if ran.stdin:
            ran.stdin.close()


def close(state: State) -> None:
    """Kill all jobs' processes; the jobs begin anew when the emulator does."""
    state.closed = True
    for key in list(state.processes):
        end(state, key)


def put_job(state: State, path: str, key: str, body: Json) -> Answer:
    """Begin a job."""
    if key in state.resources:
        raise RefusedError(400, "UserError", f"A job named {path.split('/')[-1]} exists already.")
    compute = str(body["properties"].get("computeId") or "").lower()
    if compute and compute not in state.resources:
        raise RefusedError(400, "UserError", f"The compute {compute} does not exist.")
    stored = state.stored(path, body, None)
    stored["properties"] = {"properties": {}, "tags": {}} | stored["properties"]
    stored["properties"] |= {"status": "NotStarted"}
    state.resources[key] = stored
    state.save()
    begin(state, key)
    return 201, state.get(path, key, body)[1], ""


def begin(state: State, key: str) -> None:
    """Run a job or a sweep in the background until it has ended."""
    swept = state.resources[key]["properties"]["jobType"] == "Sweep"
    threading.Thread(target=sweep if swept else run, args=(state, key), daemon=True).start()


def restore(state: State) -> None:
    """Begin anew the jobs that had not ended when the emulator did."""
    for key, body in list(state.resources.items()):
        properties = body["properties"]
        ours = "/jobs/" in key and properties["jobType"] in ("Command", "Sweep")
        if ours and properties["status"] not in ENDED and not properties.get("sweep"):
            begin(state, key)


def sweep(state: State, key: str) -> None:
    """Run a sweep's trials, as many at once as its limits allow: jobs NAME_0, NAME_1, ..."""
    body = state.resources[key]
    asked, limits = body["properties"], body["properties"]["limits"]
    names = list(asked["searchSpace"])
    drawn = list(itertools.product(*(asked["searchSpace"][name][1][0] for name in names)))
    if asked["samplingAlgorithm"]["samplingAlgorithmType"] == "Random":
        random.Random(asked["samplingAlgorithm"].get("seed")).shuffle(drawn)
    keys = []
    for number, values in enumerate(drawn[: limits["maxTotalTrials"]]):
        trial = copy.deepcopy(asked["trial"]) | {"jobType": "Command", "sweep": key}
        for name, value in zip(names, values, strict=True):
            mark = f"${{{{search_space.{name}}}}}"
            trial["command"] = trial["command"].replace(mark, str(value))
        keys.append(f"{key}_{number}")
        child = {"properties": trial | {"status": "NotStarted"}}
        state.resources.setdefault(keys[-1], state.stored(f"{body['id']}_{number}", child, None))
    if set_status(state, key, "Running"):
        return
    with ThreadPoolExecutor(limits["maxConcurrentTrials"]) as machines:
        list(machines.map(lambda trial: run(state, trial), keys))
    if not state.closed:
        well = any(state.resources[trial]["properties"]["status"] == "Completed" for trial in keys)
        set_status(state, key, "Completed" if well else "Failed")


def set_status(state: State, key: str, status: str) -> bool:
    """Set a job's status unless it has ended; return whether it has."""
    with state.lock:
        properties = state.resources[key]["properties"]
        if properties["status"] in ENDED:
            return True
        properties["status"] = status
        state.save()
    return False


def nodes(job: Json) -> list[dict[str, str]]:
    """Return what each node of a job finds in its environment: TF_CONFIG, if it asks for it."""
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
    """Run a job, again when a machine of it was lost, and keep its logs and outputs."""
    body = state.resources[key]
    name = body["name"]
    home = state.folder / "jobs" / name
    container, place = state.storage.client, f"ExperimentRun/dcid.{name}"
    count = len(nodes(body["properties"]))
    tails = [f"_process_{rank}" for rank in range(count)] if count > 1 else [""]
    logs = [container.get_blob_client(f"{place}/user_logs/std_log{tail}.txt") for tail in tails]
    try:
        lost = True
        while lost:
            state.lost.discard(key)
            if set_status(state, key, "Preparing"):
                return
            shutil.rmtree(home, ignore_errors=True)
            code = state.asset(body["properties"]["codeId"])["properties"]["codeUri"]
            for rank, log in enumerate(logs):
                state.storage.fetch(code, home / str(rank) / "code")
                if not log.exists():
                    log.create_append_blob()
            if set_status(state, key, "Running"):
                return
            ended = process(state, key, home, [log.append_block for log in logs])
            if state.closed:
                return
            lost = key in state.lost
        for outputs in sorted(home.glob("*/code/outputs")):
            state.storage.upload(outputs, f"{place}/outputs")
        set_status(state, key, "Failed" if ended else "Completed")
    except Exception as error:
        set_status(state, key, "Failed")
        logs[0].append_block(f"The emulator could not run it: {error!r}\n".encode())
    finally:
        end(state, key)
        shutil.rmtree(home, ignore_errors=True)


def process(state: State, key: str, home: Path, keeps: list[Callable[[bytes], object]]) -> bool:
    """Run a job's command on each node to its end, keeping what it prints; return if any failed."""
    body = state.resources[key]
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AZURE", "DVC", "GIT_", "MLFLOW", "PYTHONUNBUFFERED"))
    }
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env |= {"AZUREML_RUN_ID": body["name"]}
    env |= {"AZURE_STORAGE_CONNECTION_STRING": state.storage.connection_string}
    env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{state.folder / 'mlflow.db'}"}
    env |= body["properties"].get("environmentVariables") or {}
    command = [sys.executable, "-c", SUPERVISE, body["properties"]["command"], str(home)]
    ran: list[subprocess.Popen[bytes]] = []
    state.processes[key] = ran
    with contextlib.ExitStack() as stack:
        printed = []
        for rank, own in enumerate(nodes(body["properties"])):
            folder = home / str(rank)
            output = stack.enter_context((folder / "log.txt").open("wb"))
            printed.append(stack.enter_context((folder / "log.txt").open("rb")))
            ran.append(
                subprocess.Popen(
                    command,
                    cwd=folder / "code",
                    env=env | own,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        while True:
            codes = [one.poll() for one in ran]
            if any(codes) or body["properties"]["status"] in ENDED:
                end(state, key)  # a node that fails, or a job that is canceled, takes all along
            for file, keep in zip(printed, keeps, strict=True):
                while new := file.read(1_000_000):
                    keep(new)
            if None not in codes:
                return any(codes)
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


def lose(state: State, name: str) -> None:
    """Take a running job's machine away, as Azure may with low priority."""
    for key in state.resources:
        if key.endswith(f"/jobs/{name}"):
            state.lost.add(key)
            end(state, key)


def put_compute(state: State, path: str, key: str, body: Json) -> Answer:
    """Create a cluster, which is there at once."""
    body["properties"]["provisioningState"] = "Succeeded"
    state.put(path, key, body)
    return state.get(path, key, body)
