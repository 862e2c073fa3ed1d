"""The stand-in's jobs, sweeps and computes: each node of a job is a process in a copy of its code.

It gets what Azure gives: its environment variables, who it is (here the blob store's connection
string), a place for log and outputs. A job whose machine is lost, or which the stand-in's end cut
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

from azureml_emulator.standin import Answered, Json, RefusedError, StandIn

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


def end(standin: StandIn, key: str) -> None:
    """Kill a job's processes, if it has any."""
    for ran in standin.processes.get(key, ()):
        if ran.stdin:
            ran.stdin.close()


def close(standin: StandIn) -> None:
    """Kill all jobs' processes; the jobs begin anew when the stand-in does."""
    standin.closed = True
    for key in list(standin.processes):
        end(standin, key)


def put_job(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Begin a job."""
    if key in standin.resources:
        raise RefusedError(400, "UserError", f"A job named {path.split('/')[-1]} exists already.")
    compute = str(body["properties"].get("computeId") or "").lower()
    if compute and compute not in standin.resources:
        raise RefusedError(400, "UserError", f"The compute {compute} does not exist.")
    stored = standin.stored(path, body, None)
    stored["properties"] = {"properties": {}, "tags": {}} | stored["properties"]
    stored["properties"] |= {"status": "NotStarted"}
    standin.resources[key] = stored
    standin.save()
    begin(standin, key)
    return 201, standin.get(path, key, body)[1], ""


def begin(standin: StandIn, key: str) -> None:
    """Run a job or a sweep in the background until it has ended."""
    swept = standin.resources[key]["properties"]["jobType"] == "Sweep"
    threading.Thread(target=sweep if swept else run, args=(standin, key), daemon=True).start()


def restore(standin: StandIn) -> None:
    """Begin anew the jobs that had not ended when the stand-in did."""
    for key, body in list(standin.resources.items()):
        properties = body["properties"]
        ours = "/jobs/" in key and properties["jobType"] in ("Command", "Sweep")
        if ours and properties["status"] not in ENDED and not properties.get("sweep"):
            begin(standin, key)


def sweep(standin: StandIn, key: str) -> None:
    """Run a sweep's trials, as many at a time as it says: jobs NAME_0, NAME_1 and so on."""
    body = standin.resources[key]
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
        standin.resources.setdefault(
            keys[-1], standin.stored(f"{body['id']}_{number}", child, None)
        )
    if say(standin, key, "Running"):
        return
    with ThreadPoolExecutor(limits["maxConcurrentTrials"]) as machines:
        list(machines.map(lambda trial: run(standin, trial), keys))
    if not standin.closed:
        well = any(
            standin.resources[trial]["properties"]["status"] == "Completed" for trial in keys
        )
        say(standin, key, "Completed" if well else "Failed")


def say(standin: StandIn, key: str, status: str) -> bool:
    """Set a job's status unless it has ended; return whether it has."""
    with standin.lock:
        properties = standin.resources[key]["properties"]
        if properties["status"] in ENDED:
            return True
        properties["status"] = status
        standin.save()
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


def run(standin: StandIn, key: str) -> None:
    """Run a job, again when a machine of it was lost, and keep its logs and outputs."""
    body = standin.resources[key]
    name = body["name"]
    home = standin.folder / "jobs" / name
    container, place = standin.storage["client"], f"ExperimentRun/dcid.{name}"
    count = len(nodes(body["properties"]))
    tails = [f"_process_{rank}" for rank in range(count)] if count > 1 else [""]
    logs = [container.get_blob_client(f"{place}/user_logs/std_log{tail}.txt") for tail in tails]
    try:
        lost = True
        while lost:
            standin.lost.discard(key)
            if say(standin, key, "Preparing"):
                return
            shutil.rmtree(home, ignore_errors=True)
            code = standin.asset(body["properties"]["codeId"])["properties"]["codeUri"]
            for rank, log in enumerate(logs):
                standin.storage["fetch"](code, home / str(rank) / "code")
                if not log.exists():
                    log.create_append_blob()
            if say(standin, key, "Running"):
                return
            ended = process(standin, key, home, [log.append_block for log in logs])
            if standin.closed:
                return
            lost = key in standin.lost
        for outputs in sorted(home.glob("*/code/outputs")):
            for file in sorted(path for path in outputs.rglob("*") if path.is_file()):
                target = f"{place}/outputs/{file.relative_to(outputs).as_posix()}"
                container.upload_blob(target, file.read_bytes(), overwrite=True)
        say(standin, key, "Failed" if ended else "Completed")
    except Exception as error:
        say(standin, key, "Failed")
        logs[0].append_block(f"The stand-in could not run it: {error!r}\n".encode())
    finally:
        end(standin, key)
        shutil.rmtree(home, ignore_errors=True)


def process(standin: StandIn, key: str, home: Path, keeps: list[Callable[[bytes], object]]) -> bool:
    """Run a job's command on each node to its end, keeping what it prints; return if any failed."""
    body = standin.resources[key]
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AZURE", "DVC", "GIT_", "MLFLOW", "PYTHONUNBUFFERED"))
    }
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env |= {"AZUREML_RUN_ID": body["name"]}
    env |= {"AZURE_STORAGE_CONNECTION_STRING": standin.storage["connection_string"]}
    env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{standin.folder / 'mlflow.db'}"}
    env |= body["properties"].get("environmentVariables") or {}
    command = [sys.executable, "-c", SUPERVISE, body["properties"]["command"], str(home)]
    ran: list[subprocess.Popen[bytes]] = []
    standin.processes[key] = ran
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
                end(standin, key)  # a node that fails, or a job that is canceled, takes all along
            for file, keep in zip(printed, keeps, strict=True):
                while new := file.read(1_000_000):
                    keep(new)
            if None not in codes:
                return any(codes)
            time.sleep(POLL_SECONDS)


def cancel(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """End a job."""
    key = key.rsplit("/", 1)[0]
    standin.get(path, key, body)
    for name, found in list(standin.resources.items()):
        if key in (name, found["properties"].get("sweep")):
            say(standin, name, "Canceled")
            end(standin, name)
    return 200, None, ""


def lose(standin: StandIn, name: str) -> None:
    """Take a running job's machine away, for a test."""
    for key in standin.resources:
        if key.endswith(f"/jobs/{name}"):
            standin.lost.add(key)
            end(standin, key)


def put_compute(standin: StandIn, path: str, key: str, body: Json) -> Answered:
    """Create a cluster, which the stand-in has at once."""
    stored = standin.stored(path, body, standin.resources.get(key))
    stored["properties"]["provisioningState"] = "Succeeded"
    standin.resources[key] = stored
    standin.save()
    return 200, stored, ""
