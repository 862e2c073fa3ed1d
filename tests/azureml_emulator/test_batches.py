"""`digits score --workspace local`: a batch endpoint on the emulator, with the real SDK."""

import json
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import click
import pyarrow as pa
import pytest
from azure.storage.blob import ContainerClient
from conftest import environment
from light import DIGITS, Deployable, Emulator, known_digits
from pyarrow import parquet

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from contract import unlike

    from mlops.azure import batch as endpoint_batch
    from mlops.azure.endpoint import COST
from azureml_emulator.storage import CONTAINER
from core.errors import DigitsError
from mlops.cli import call
from mlops.deploy.release import folder_hash

pytestmark = pytest.mark.slow

# It answers with the model's name; a file that says so fails the first time, or each time.
LIGHT_BATCH = """
import json
import os
from pathlib import Path


def init():
    global version
    (path,) = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("answers.json")
    version = json.loads(path.read_text())["version"]


def run(mini_batch):
    assert len(mini_batch) == 1
    path = Path(mini_batch[0])
    folder = Path(os.environ["AZUREML_BI_OUTPUT_PATH"], path.name)
    folder.mkdir(exist_ok=True)
    if path.name.startswith("_"):
        return [path.name]
    if path.name.startswith("bad") or path.name.startswith("odd") and not any(folder.iterdir()):
        (folder / "_ERROR").write_text(path.name + ": cannot be scored")
        raise ValueError(path.name)
    told = [version, os.environ["DIGITS_SCRIPT"], path.stat().st_size]
    (folder / "part-000000.parquet").write_text(json.dumps(told))
    (folder / "_SUCCESS").touch()
    return [path.name]
"""


@pytest.fixture(name="scoring")
def a_scoring(deployable: Deployable) -> Iterator[Deployable]:
    """A project whose batch.py needs no TensorFlow, and a model folder that says what it is of."""
    (deployable.root / "serving" / "batch.py").write_text(LIGHT_BATCH)
    images = pa.array([image.tobytes() for image in known_digits().images], pa.binary())
    for name in ("one.parquet", "odd.parquet", "bad.parquet"):
        parquet.write_table(pa.table({"image": images}), deployable.root.parent / name)
    yield deployable


def commit(project: Deployable, model: str) -> str:
    """Commit a model with as much of a manifest as is asked for; return its version."""
    version = project.commit(model)
    path = project.root / "data/package/data/model/manifest.json"
    path.write_text(path.read_text()[:-1] + ', "scripts": ["mnist"], "params": {"image_size": 28}}')
    project.git("add", "--all")
    lock = project.root / "dvc.lock"
    (old,) = [line.split()[-1] for line in lock.read_text().splitlines() if "md5:" in line]
    lock.write_text(lock.read_text().replace(old, folder_hash(project.root / "data/package")))
    project.git("commit", "--quiet", "--all", "--message", "Model")
    return version


def run(project: Deployable, *words: str) -> None:
    """Run `digits score` in this process."""
    old = signal.getsignal(signal.SIGTERM)
    with (
        patch.dict(os.environ, project.settings()),
        chdir(project.root),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the SDK's own
        try:
            call("score", *words, "--workspace", "local")
        finally:
            signal.signal(signal.SIGTERM, old)


def wait_until(true: Callable[[], bool]) -> None:
    """Return once it is true; fail after a minute."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow(minutes=0.6)
def test_files_are_scored_by_a_batch_endpoint(
    scoring: Deployable, emulator: Emulator, tmp_path: Path
) -> None:
    emulator.faults()
    version = commit(scoring, "one")
    files = [str(scoring.root.parent / f"{name}.parquet") for name in ("one", "odd")]
    out = tmp_path / "out"
    run(scoring, *files, "--out", str(out), "--script", "mnist")
    for file in files:
        folder = out / Path(file).name
        names = {path.name for path in folder.iterdir()}
        assert names == {"_SUCCESS", "part-000000.parquet"}
        told = (folder / "part-000000.parquet").read_text()
        assert told == f'["{version}", "mnist", {Path(file).stat().st_size}]'
    calls = emulator.calls()
    puts = [call["path"].split("/")[-2] for call in calls if call["method"] == "PUT"]
    assert puts.count("deployments") == 1
    (made,) = [c for c in calls if c["method"] == "PUT" and "/digits-batch/versions" in c["path"]]
    assert "azureml-dataset-runtime" in made["request"]["properties"]["condaFile"]
    emulator.faults()
    run(scoring, *files, "--out", str(out), "--script", "mnist")  # it is done: nothing is
    assert {call["method"] for call in emulator.calls()} <= {"GET", "POST"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "job.json").write_text('{"set": []}')  # as of `digits train`
    with pytest.raises(DigitsError, match="choose another --out"):
        run(scoring, *files, "--out", str(tmp_path / "other"))
    assert not [call for call in emulator.calls() if call["path"].endswith("/jobs")]
    version = commit(scoring, "two")
    with pytest.raises(DigitsError, match="choose another --out"):
        run(scoring, *files, "--out", str(out))
    run(scoring, files[0], "--out", str(tmp_path / "two"))
    assert version in (tmp_path / "two" / "one.parquet" / "part-000000.parquet").read_text()
    with pytest.raises(DigitsError, match=r"bad.parquet: cannot be scored; fix this and run"):
        run(scoring, str(scoring.root.parent / "bad.parquet"), "--out", str(tmp_path / "bad"))
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["job.json"]
    calls += emulator.calls()
    found, compared = unlike(calls)
    assert found == [], "\n".join(found)
    assert compared > 40
    place = scoring.endpoint.replace("online", "batch")
    (one,) = emulator.call("GET", place)["value"]
    made = emulator.call("GET", f"{place}/{one['name']}/deployments")["value"]
    assert len(made) == 2  # of two models: a job of the other may still run
    for resource in (one, *made):
        assert COST.items() <= resource["tags"].items()
    default = one["properties"]["defaults"]["deploymentName"]
    assert default in [deployment["name"] for deployment in made]
    refused = emulator.call("DELETE", f"{place}/{one['name']}/deployments/{default}")
    assert "default" in refused["error"]["message"]
    container = ContainerClient(
        f"{emulator.address['blobs']}/devstoreaccount1",
        CONTAINER,
        credential=emulator.address["blob_key"],
    )
    assert list(container.list_blob_names(name_starts_with=f"scoring/{one['name']}/"))
    scoring.deploy("destroy")
    assert not emulator.call("GET", place)["value"]
    assert not list(container.list_blob_names(name_starts_with=f"scoring/{one['name']}/"))
    workspace = scoring.endpoint.removesuffix("/onlineEndpoints")
    for asset in ("models/digits", "environments/digits-batch"):
        assert not emulator.call("GET", f"{workspace}/{asset}/versions").get("value"), asset


@pytest.mark.prove
def test_a_stored_folder_is_scored_where_it_lies(
    scoring: Deployable, emulator: Emulator, tmp_path: Path
) -> None:
    version = commit(scoring, "one")
    content = (scoring.root.parent / "one.parquet").read_bytes()
    container = ContainerClient(
        f"{emulator.address['blobs']}/devstoreaccount1",
        CONTAINER,
        credential=emulator.address["blob_key"],
    )
    folder = f"incoming-{scoring.workspace}"
    container.upload_blob(f"{folder}/day/one.parquet", content)
    container.upload_blob(f"{folder}/day/_SUCCESS", b"")
    address = f"azureml://datastores/workspaceblobstore/paths/{folder}"
    run(scoring, address, "--out", str(tmp_path / "out"))
    told = (tmp_path / "out" / "one.parquet" / "part-000000.parquet").read_text()
    assert told == f'["{version}", "", {len(content)}]'
    container.upload_blob(f"{folder}/day/new.parquet", content)
    with pytest.raises(DigitsError, match="choose another --out"):
        run(scoring, address, "--out", str(tmp_path / "out"))
    run(scoring, address, "--out", str(tmp_path / "new"))
    assert len(list((tmp_path / "new").glob("*.parquet"))) == 2
    container.upload_blob(f"{folder}/night/one.parquet", content)
    with pytest.raises(DigitsError, match=r"one\.parquet occurs twice"):
        run(scoring, address, "--out", str(tmp_path / "bad"))
    container.delete_blob(f"{folder}/night/one.parquet")
    place = scoring.endpoint.replace("online", "batch")
    (endpoint,) = emulator.call("GET", place)["value"]
    (deployment,) = emulator.call("GET", f"{place}/{endpoint['name']}/deployments")["value"]
    for path, like in (("another", endpoint), ("another/deployments/same", deployment)):
        properties = {
            key: like["properties"][key] for key in like["properties"] if key != "defaults"
        }
        emulator.call("PUT", f"{place}/{path}", {"location": "local", "properties": properties})
    scoring.deploy("apply")
    scoring.deploy("destroy")  # which leaves the model that another endpoint uses
    assert [one["name"] for one in emulator.call("GET", place)["value"]] == ["another"]
    workspace = scoring.endpoint.removesuffix("/onlineEndpoints")
    assert len(emulator.call("GET", f"{workspace}/models/digits/versions")["value"]) == 1
    run(scoring, address, "--out", str(tmp_path / "again"))
    for bad, said in (
        (f"{address}-nowhere", "contains no files"),
        (f"azureml://{folder}", "Expected azureml://datastores/NAME/paths/FOLDER"),
    ):
        with pytest.raises(DigitsError, match=said):
            run(scoring, bad, "--out", str(tmp_path / "bad"))
    with pytest.raises(click.UsageError, match="give it alone"):
        run(scoring, address, "one.parquet", "--out", str(tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_a_second_job_scores_only_what_the_first_left(
    scoring: Deployable, emulator: Emulator, tmp_path: Path
) -> None:
    """Each writes to a place of its own; the answers of both lie in one folder in the end."""
    gate = tmp_path / "gate"
    refuse = f'if path.name.startswith("bad") and not Path({str(gate)!r}).exists():'
    head, rest = LIGHT_BATCH.split('    if path.name.startswith("bad")')
    code = f"{head}    {refuse}{rest.partition(':')[2]}"
    (scoring.root / "serving" / "batch.py").write_text(code)
    commit(scoring, "one")
    files = [str(scoring.root.parent / f"{name}.parquet") for name in ("one", "bad")]
    out = tmp_path / "out"
    with pytest.raises(DigitsError, match="cannot be scored"):
        run(scoring, *files, "--out", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["job.json", "one.parquet"]
    part = out / "one.parquet" / "part-000000.parquet"
    part.write_text("of the first")
    gate.touch()
    run(scoring, *files, "--out", str(out))
    assert (out / "bad.parquet" / "_SUCCESS").exists() and part.read_text() == "of the first"
    with emulator.blobs() as container:
        names = [
            name.split("/")[2:] for name in container.list_blob_names(name_starts_with="scoring/")
        ]
    attempts = {name[0] for name in names}
    assert len(attempts) == 2
    inputs = sorted(len([n for n in names if n[:2] == [one, "input"]]) for one in attempts)
    assert inputs == [1, 2]
    scoring.deploy("destroy")


@pytest.mark.prove
def test_the_model_is_ones_own_though_another_comes_in_between(
    scoring: Deployable, emulator: Emulator, tmp_path: Path
) -> None:
    file = str(scoring.root.parent / "one.parquet")
    commit(scoring, "one")
    run(scoring, file, "--out", str(tmp_path / "one"))
    place = scoring.endpoint.replace("online", "batch")
    (endpoint,) = emulator.call("GET", place)["value"]
    prepare = endpoint_batch.Batch.prepare

    def and_the_other_after(batch: endpoint_batch.Batch) -> None:
        prepare(batch)
        emulator.call("PUT", f"{place}/{endpoint['name']}", endpoint)  # with its default

    version = commit(scoring, "two")
    with patch.object(endpoint_batch.Batch, "prepare", and_the_other_after):
        run(scoring, file, "--out", str(tmp_path / "two"))
    (now,) = emulator.call("GET", place)["value"]
    assert now["properties"]["defaults"] == endpoint["properties"]["defaults"]
    assert version in (tmp_path / "two" / "one.parquet" / "part-000000.parquet").read_text()
    scoring.deploy("destroy")


@pytest.mark.prove
def test_a_job_whose_machine_is_lost_is_done_again(scoring: Deployable, tmp_path: Path) -> None:
    emulator = Emulator(tmp_path / "emulator")
    (scoring.root / ".emulator").unlink()
    (scoring.root / ".emulator").symlink_to(emulator.folder)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    waiting = (
        f"    import time\n    Path({str(begun)!r}).touch()\n"
        f"    while not Path({str(gate)!r}).exists():\n        time.sleep(0.05)\n"
    )
    code = LIGHT_BATCH.replace("    assert len", f"{waiting}    assert len")
    (scoring.root / "serving" / "batch.py").write_text(code)
    version = commit(scoring, "one")
    command = [*DIGITS, "score", str(scoring.root.parent / "one.parquet"), "--out"]
    command += [str(tmp_path / "out"), "--workspace", "local"]
    emulator.start()
    try:
        env = environment() | scoring.settings()
        client = subprocess.Popen(command, cwd=scoring.root, env=env)
        try:
            wait_until(begun.exists)
            emulator.kill()
            assert client.wait(120) == 1
        finally:
            client.kill()
            client.wait()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["job.json"]
        gate.touch()
        emulator.start()
        subprocess.run(command, cwd=scoring.root, env=env, check=True, timeout=120)
        told = (tmp_path / "out" / "one.parquet" / "part-000000.parquet").read_text()
        assert version in told
        known = json.loads((emulator.folder / "state.json").read_text())["resources"]
        (job,) = (key.rpartition("/")[2] for key in known if "/jobs/batchjob-" in key)
        assert job in (tmp_path / "out" / "job.json").read_text()  # the same one was done again
        assert list((emulator.folder / "jobs").iterdir()) == []
    finally:
        emulator.stop()
        (scoring.root / ".emulator").unlink()
        (scoring.root / ".emulator").symlink_to(scoring.folder)
