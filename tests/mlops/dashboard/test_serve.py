"""What `digits local` does at its end: all that was collected lies in the blob store."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from azure.storage.blob import BlobServiceClient
from conftest import ROOT, environment
from light import Emulator, a_project, known_digits

from azureml_emulator.storage import CONTAINER

REQUESTS = 200
LIGHT = """


def init():
    global collection
    collection = Collection()


@rawhttp
def run(request):
    images = np.array(request.json["data"], np.uint8)
    answers = [{"digit": "3", "confidence": 0.9, "ood_score": 0.1} for image in images]
    answer = {"model_version": "5ee", "predictions": answers}
    collection.collect(g.client_request_id or g.request_id, images, answer)
    return AMLResponse(to_json(answer), 200, JSON)
"""


@pytest.mark.prove
@pytest.mark.skipif(os.name != "posix", reason="the printed command is for a shell")
def test_the_printed_command_finds_a_folder_of_ones_own(tmp_path: Path) -> None:
    own = Emulator(tmp_path / "my own", page=True)
    try:
        own.start()
        (command,) = re.findall("`(.+)`", own.said)
        assert command.startswith("DIGITS_LOCAL_FOLDER=")
        done = subprocess.run(
            command.replace("deploy apply", "deploy status"),
            shell=True,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.stdout.endswith(": absent\n"), done.stderr
    finally:
        own.stop()


@pytest.mark.prove
@pytest.mark.parametrize("ended_by", ["SIGINT", "SIGHUP"])  # Ctrl-C, or a terminal that is closed
def test_an_end_under_load_loses_nothing_that_was_answered(tmp_path: Path, ended_by: str) -> None:
    own = Emulator(tmp_path / "own", page=True)
    try:
        own.start()
        assert own.process
        serving = ROOT / "src" / "digits" / "serving"
        score = (serving / "score.py").read_text("utf-8") + LIGHT  # which needs no model
        deployable = a_project(tmp_path / "project", own, score)
        for name in ("request.py", "picture.py"):
            shutil.copyfile(serving / name, deployable.root / "serving" / name)
        deployable.set(smoke="{digits: 3, accuracy: 0.0, latency_seconds: 5.0}")
        deployable.commit("5ee")
        deployable.deploy("apply")
        place = deployable.serving(own)
        children = psutil.Process(own.process.pid).children(recursive=True)
        (azurite,) = [child for child in children if "azurite" in " ".join(child.cmdline())]
        azurite.suspend()  # so that rows wait
        connection = http.client.HTTPConnection("127.0.0.1", own.address["router_port"])
        body = json.dumps({"data": known_digits().images.tolist()})
        headers = {"Authorization": f"Bearer {place['key']}", "Content-Type": "application/json"}
        asked = {f"request-{number}" for number in range(REQUESTS)}
        for name in sorted(asked):
            one = headers | {"x-ms-client-request-id": name}
            connection.request("POST", f"/{place['name']}/score", body, one)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        connection.close()
        group = os.getpgid(own.process.pid)
        for process in [psutil.Process(own.process.pid), *children]:
            if os.getpgid(process.pid) == group:  # as a terminal does
                process.send_signal(getattr(signal, ended_by))
        psutil.wait_procs([child for child in children if child != azurite], timeout=30)
        azurite.resume()
        said, _ = own.process.communicate(timeout=60)
        faults = [line for line in said.splitlines() if "accepted, but not emulated" not in line]
        assert (own.process.returncode, faults) == (0, [])
        own.start()
        url = f"{own.address['blobs']}/devstoreaccount1"
        with BlobServiceClient(url, credential=own.address["blob_key"]) as service:
            container = service.get_container_client(CONTAINER)
            found = [
                (row["request_id"], row["position"])
                for blob in container.list_blob_names(name_starts_with="modelDataCollector/")
                for line in container.download_blob(blob).readall().splitlines()
                for row in json.loads(line)["data"]
            ]
        assert asked <= {name for name, _ in found}
        assert len(found) == len(set(found))
    finally:
        own.stop()
