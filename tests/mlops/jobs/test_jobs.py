"""`digits train` on the emulator, by the real SDK over the wire."""

import contextlib
import csv
import io
import json
import re
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import frozen
import pytest
import yaml
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient
from conftest import Project
from contract import unlike
from jobs_project import Trainable, a_trainable, wait_for  # noqa: F401
from light import Emulator
from packaging.requirements import Requirement

from azureml_emulator.services import jobs
from core import params
from core.errors import DigitsError
from mlops import dvc, git
from mlops.azure.settings import Params
from mlops.jobs import job, results, sweep, train
from mlops.review import gate

pytestmark = pytest.mark.slow
WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="stops a process by a signal")
SECONDS = 400
JOB = re.compile(r"digits-[0-9a-f]{8}-[0-9a-f]{8}")


def placed(project: Trainable, batch_size: int) -> None:
    """Assert that what a job made is in place, and that no stage has anything left to do."""
    assert json.loads(project.dvc("status", "--json")) == {}
    output = project.dvc("repro")
    assert project.stages_run(output) == []
    assert "is cached" not in output
    model = (project.root / "data" / "model" / "model.txt").read_text()
    assert f"'batch_size': {batch_size}," in model
    metrics = json.loads((project.root / "data/evaluation/metrics.json").read_text())
    assert metrics == {"mnist": {"accuracy": 1 - batch_size / 1000}}


def logged(emulator: Emulator, job: str) -> dict[str, Any]:
    """Return some of what MLflow has of a job, from its store."""
    with contextlib.closing(sqlite3.connect(emulator.folder / "mlflow.db")) as store:
        query = "select run_uuid from runs where name = ?"
        ((run,),) = store.execute(query, (job,)).fetchall()
        found: dict[str, Any] = {}
        for table in ("latest_metrics", "tags"):
            query = f"select key, value from {table} where run_uuid = ?"
            found |= dict(store.execute(query, (run,)).fetchall())
    return {name: found[name] for name in ("mnist.accuracy", "commit")}


def log_of(emulator: Emulator, job: str, node: int) -> str:
    """Return what one of a job's nodes printed."""
    url = f"{emulator.address['blobs']}/devstoreaccount1"
    with BlobServiceClient(url, credential=emulator.address["blob_key"]) as service:
        name = f"ExperimentRun/dcid.{job}/user_logs/std_log_process_{node}.txt"
        return service.get_blob_client("azureml", name).download_blob().readall().decode()


@contextlib.contextmanager
def under_way(project: Trainable, *arguments: str) -> Iterator[tuple[Any, str]]:
    """Begin a job that stage train holds up; yield the command's process and the job's name."""
    project.hold.touch()
    process = project.begun("train", *arguments)
    timer = threading.Timer(SECONDS, process.kill)  # so that no wait is for ever
    timer.start()
    try:
        name = JOB.findall(wait_for(process, "Submitted"))[0]
        wait_for(process, "training on ten digits")
        yield process, name
    finally:
        timer.cancel()
        project.hold.unlink(missing_ok=True)
        process.kill()
        process.communicate()


@pytest.mark.slow(minutes=0.5)
def test_what_a_job_made_is_placed_here(trainable: Trainable, emulator: Emulator) -> None:
    trainable.commit(32)
    emulator.faults()
    said = trainable.digits("train")
    assert said.index("training on ten digits") < said.index("the first step")  # it streams
    assert "2 stages with the same bytes as dvc.lock here." in said
    assert "New: train" in said
    found, compared = unlike(emulator.calls())
    assert found == [], "\n".join(found)
    assert compared > 5
    assert logged(emulator, JOB.findall(said)[0]) == {
        "mnist.accuracy": 0.968,
        "commit": trainable.git("rev-parse", "HEAD").strip(),
    }
    placed(trainable, 32)


def test_what_others_could_not_get_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("commit", "--quiet", "--allow-empty", "--message", "One")
    monkeypatch.chdir(project.root)
    not_pushed = pytest.raises(DigitsError, match=r"is not on origin.*`git push origin HEAD` first")
    with not_pushed:
        job.commit()
    project.git("init", "--quiet", "--bare", str(tmp_path / "origin"))
    project.git("remote", "add", "origin", str(tmp_path / "origin"))
    project.git("push", "--quiet", "origin", "main")
    assert job.commit() == project.git("rev-parse", "HEAD").strip()
    Path("notes.txt").write_text("mine")
    with pytest.raises(DigitsError, match=r"uncommitted changes \(notes.txt\)"):
        job.commit()
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "Two")
    with not_pushed:
        job.commit()


def test_a_stage_with_other_outs_is_new() -> None:
    out, more = ({"path": name, "md5": "1"} for name in ("model.txt", "curves.csv"))
    plain = {"cmd": "true"}

    def lock(*outs: dict[str, str]) -> str:
        stages = {"train": plain | {"outs": list(outs)}, "monitor": plain}
        return yaml.safe_dump({"stages": stages})

    said = train.compared(lock(out), lock(out, more))
    assert said[0].startswith("1 stages with the same bytes") and said[1] == "New: train."
    assert len(said) == 2
    said = train.compared(lock(out), lock(out | {"md5": "2"}))
    assert said[1:] == ["Not the same bytes as dvc.lock here: model.txt."]


def test_a_job_on_gpus_has_the_packages_of_the_lock_but_for_tensorflow() -> None:
    settings = frozen.section(Params, "azure")

    def pins(gpu: bool) -> tuple[str, dict[str, Requirement]]:
        wanted = replace(settings, job=replace(settings.job, gpu=gpu))
        found = job.environment(wanted)
        conda: Any = found.conda_file
        (packages,) = (one for one in conda["dependencies"] if isinstance(one, dict))
        installed = [Requirement(pin) for pin in packages["pip"]]
        on_azure = {"platform_machine": "x86_64", "sys_platform": "linux"}
        return str(found.version), {
            one.name: one
            for one in installed
            if one.marker is None or one.marker.evaluate(on_azure)
        }

    (version, plain), (other, cuda) = pins(False), pins(True)
    assert version != other
    assert "tensorflow" not in plain and len(plain) > 100
    assert plain.keys() - cuda.keys() == {"tensorflow-cpu"}
    assert cuda.keys() - plain.keys() == {"tensorflow"}
    assert cuda["tensorflow"].extras == {"and-cuda"}
    assert cuda["tensorflow"].specifier == plain["tensorflow-cpu"].specifier
    for name in plain.keys() & cuda.keys():
        assert plain[name] == cuda[name]


def test_what_a_sweep_tries_is_checked() -> None:
    values = frozen.values()
    npm: dict[str, Any] = {"deps": [{"path": "package-lock.json"}]}
    task = {name: values[name] for name in ("seed", "image_size", "classes")}
    read: dict[str, dict[str, Any]] = {  # what stages read, as dvc.lock has it
        "mnist": {"image_size": 28, "classes": task["classes"], "mnist": values["mnist"]},
        "foreign@japanese": task | {"foreign.japanese": values["foreign"]["japanese"]},
        "prepare": task | {"foreign": values["foreign"], "prepare": values["prepare"]},
        "train": task | {"epochs": values["epochs"], "train": values["train"]},
    }
    stages = {
        name: {"params": {"params.yaml": params}} | (npm if name < "prepare" else {})
        for name, params in read.items()
    }
    one, other = "train.batch_size=32", "train.batch_size=64,128"
    assert sweep.search_space([one, other], values, stages) == {"train.batch_size": [32, 64, 128]}
    for listed in ("[32,64]", "32,,64", "{", ""):
        with pytest.raises(DigitsError, match="Write KEY=VALUE,VALUE"):
            sweep.search_space([f"train.batch_size={listed}"], values, stages)
    good = ["epochs=1,2", "prepare.foreign_share=0.1", "train.distortion.shear=0,0.3", "seed=1"]
    assert sweep.search_space(good, values, stages)["epochs"] == [1, 2]
    for setting, said in (
        ("train.batch_size=32,many", "expected a int like 64 in params.yaml, found 'many'"),
        ("train.batch_size=32,0.5", "found 0.5"),
        ("epochs=5,0", "epochs is 0"),
        ("foreign.japanese.reader.hand.shear=a", "foreign.japanese"),
        ("azure.strategy=in_place", "no stage depends on it"),
        ("seed=1,2", r"stage foreign@\w+ depends on seed, .*`dvc exp run -S seed=VALUE`"),
        ("image_size=20,28", "stage mnist depends"),
        ("foreign.japanese.per_class.train=500,1000", "stage foreign@japanese depends"),
    ):
        with pytest.raises(DigitsError, match=said):
            sweep.search_space([setting], values, stages)
    plain = {name: stage for name, stage in stages.items() if not name.startswith("foreign@")}
    assert sweep.search_space(["seed=1,2"], values, plain) == {"seed": [1, 2]}


def test_a_sweep_improves_the_first_metric_of_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "load", frozen.values)
    assert sweep.target() == ("mnist.accuracy", "maximize")
    rule = gate.Rule("lower", 1.0, 0.0)
    found = gate.Params(gate.Retrain(False, {}), {"test": {"loss": rule}})
    monkeypatch.setattr(gate, "load", lambda: found)
    assert sweep.target() == ("test.loss", "minimize")
    monkeypatch.setattr(gate, "load", lambda: replace(found, gate={}))
    with pytest.raises(DigitsError, match=r"review\.gate: has no metric"):
        sweep.target()


def test_a_sweep_of_which_nothing_began_praises_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep.Trials, "started", lambda _: [])
    workspace: Any = None
    with pytest.raises(DigitsError, match="ended as Canceled, and no trial succeeded"):
        sweep.finish(workspace, "s", "Canceled", sweep.Trials(workspace, "s"))
    assert capsys.readouterr().out == "0 trials succeeded.\n"


def test_experiments_are_made_of_what_the_sweep_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep.Trials, "started", lambda _: [])
    monkeypatch.setattr(job, "commit_of", lambda *_: "f" * 40)
    monkeypatch.setattr(job, "remote", lambda _: {})
    workspace: Any = None
    with pytest.raises(
        DigitsError, match=r"ffffffffff is not in this clone. Run `git fetch.*--attach"
    ):
        sweep.finish(workspace, "s", "Completed", sweep.Trials(workspace, "s", {"s_0": {}}))


def test_tables_are_the_outs_that_dvc_does_not_cache() -> None:
    uncached = {"cache": False}
    pipeline = {
        "train": {"outs": ["model.txt", {"sums.csv": uncached}], "metrics": [{"m.json": uncached}]},
        "each": {"foreach": ["a"], "do": {"plots": [{"data/${item}.csv": uncached | {"x": "n"}}]}},
        "cached": {"plots": ["plot.csv", {"other.csv": {"x": "n"}}]},
    }
    names = ("model.txt", "sums.csv", "m.json", "plot.csv", "other.csv", "data/a.csv", "data/b/a")
    outs = [{"path": name} for name in (*names, "../data/a.csv", "mxjson")]
    text, lock = (yaml.safe_dump({"stages": s}) for s in (pipeline, {"all": {"outs": outs}}))
    assert results.tables(text, lock) == ["sums.csv", "m.json", "data/a.csv"]
    lock = Path("dvc.lock").read_text("utf-8")
    found = results.tables(Path("dvc.yaml").read_text("utf-8"), lock)
    kept = git.run("ls-files", "data").split()
    outs = [out for stage in dvc.stages(lock).values() for out in stage["outs"]]
    assert found == [out["path"] for out in outs if out["path"] in kept]
    assert "data/evaluation/metrics.json" in found


def test_params_are_changed_and_keep_their_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = frozen.text()
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text, "utf-8")
    results.change_params(["train.batch_size=32", "train.distortion.shear=0.5", "epochs=3"])
    changed = Path("params.yaml").read_text("utf-8")
    for line in ("epochs: 3\n", "  batch_size: 32\n", "    shear: 0.5\n"):
        assert line in changed
    comments = [re.findall("# .*", one) for one in (text, changed)]
    assert comments[0] == comments[1] and len(comments[0]) > 50
    values = yaml.safe_load(text) | {"epochs": 3}
    values["train"] |= {"batch_size": 32}
    values["train"]["distortion"]["shear"] = 0.5
    assert yaml.safe_load(changed) == values


def test_what_was_changed_since_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    monkeypatch.chdir(tmp_path)
    lock, table = Path("dvc.lock"), Path("metrics.json")
    lock.write_text("before")
    project.git("init", "--quiet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "One")
    ran = project.git("rev-parse", "HEAD").strip()
    made = {"dvc.lock": b"after", "metrics.json": b"{}"}
    train.refuse_changed(ran, made)
    table.write_text("{}")  # as the job left it
    lock.write_text("after")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "Two")
    train.refuse_changed(ran, made)
    for file, text in ((lock, "another"), (table, "[]")):
        file.write_text(text)
        with pytest.raises(
            DigitsError, match=rf"^{file}: has changed since commit {ran[:10]}.*--attach"
        ):
            train.refuse_changed(ran, made)
        file.write_bytes(made[file.name])
    lock.unlink()
    with pytest.raises(DigitsError, match=r"^dvc\.lock: has changed since commit"):
        train.refuse_changed(ran, made)


@pytest.fixture(name="chain")
def a_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of three stages without an emulator, its inputs pushed for a job."""
    project = Project(tmp_path / "project")
    (project.root / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(project.root)
    remote = f"['remote \"{results.REMOTE}\"']\n    url = {tmp_path / 'remote'}\n"
    Path(".dvc", "config").write_text(remote)
    Path(".dvc", ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    Path("package-lock.json").write_text("{}")
    digits = "pool/digits.txt"
    stages = {
        "mnist": ("package-lock.json", digits, f"mkdir -p pool && echo ten digits > {digits}"),
        "train": ("pool", "model", f"mkdir model && wc {digits} > model/one.txt"),
        "package": ("model", "size.txt", "wc model/one.txt > size.txt"),
    }
    pipeline = {
        name: {"cmd": cmd, "deps": [dep], "outs": [out]} for name, (dep, out, cmd) in stages.items()
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": pipeline}, sort_keys=False))
    project.git("init", "--quiet")
    project.dvc("repro", "--quiet")
    commit_all(project)
    results.upload_inputs({})
    return project


def commit_all(project: Project) -> None:
    """Commit the working tree."""
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "A small pipeline")


def lose(*folders: str) -> None:
    """Remove folders, and the digits from one that git keeps for its .gitignore."""
    for folder in folders:
        shutil.rmtree(folder)
    Path("pool", "digits.txt").unlink(missing_ok=True)


def test_what_a_job_needs_and_nobody_has_is_refused(chain: Project) -> None:
    lose("../remote", ".dvc/cache")
    chain.edit("dvc.yaml", "wc pool", "cat pool")
    commit_all(chain)
    with pytest.raises(
        DigitsError, match=r"^pool.digits\.txt: neither .* or `dvc repro mnist` first\.$"
    ):
        results.upload_inputs({})  # what the job is to train is not named, nor what comes of it
    chain.edit("dvc.yaml", "ten digits", "nine digits")
    commit_all(chain)
    with pytest.raises(DigitsError, match=r"dvc\.lock: stage mnist is outdated.*`dvc repro mn"):
        results.upload_inputs({})
    assert chain.git("worktree", "list").count("\n") == 1


@pytest.mark.prove
def test_what_a_job_needs_may_be_here_or_in_the_container(chain: Project) -> None:
    lose("model", ".dvc/cache")
    results.upload_inputs({})  # the container has all
    lose("../remote", ".dvc/cache")
    chain.dvc("repro", "--quiet", "mnist")
    with pytest.raises(
        DigitsError, match=r"^model: neither .*`dvc pull` or `dvc repro train package` first\.$"
    ):
        results.upload_inputs({})
    chain.edit("dvc.yaml", "wc pool", "cat pool")
    commit_all(chain)
    results.upload_inputs({})  # the job trains
    Path("letters.txt").write_text("labelled by hand")
    chain.dvc("add", "--quiet", "letters.txt")
    commit_all(chain)
    lose("../remote", ".dvc/cache")
    Path("letters.txt").unlink()
    with pytest.raises(
        DigitsError, match=r"^letters\.txt: neither in this clone.*Run `dvc pull` first\.$"
    ):
        results.upload_inputs({})


def on_nodes(nodes: int) -> Params:
    """Return the settings with another number of nodes."""
    settings = frozen.section(Params, "azure")
    return replace(settings, job=replace(settings.job, nodes=nodes))


@pytest.mark.filterwarnings("ignore")  # the SDK's own
@pytest.mark.parametrize("count", [1, 2])
def test_the_nodes_of_a_trial_are_those_of_a_job(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    bodies: list[dict[str, Any]] = []

    def submit(_: Any, one: Any) -> None:
        bodies.append(one._to_job()._to_rest_object().as_dict()["properties"])

    monkeypatch.setattr(job, "commit", lambda: "c0ffee")
    for module, name in ((results, "upload_inputs"), (job, "remote"), (job, "account")):
        monkeypatch.setattr(module, name, lambda *_: "data")
    monkeypatch.setattr(job, "write_code", lambda folder: folder)
    monkeypatch.setattr(job, "submit", submit)
    settings, workspace = on_nodes(count), MagicMock()
    sweep.start(workspace, settings, {"train.batch_size": [32, 64]}, None)
    job.submit(workspace, job.define(workspace, settings, Path()))
    trial, alone = bodies[0]["trial"], bodies[1]
    assert trial.get("distribution") == alone.get("distribution")
    assert trial["resources"] == alone["resources"]
    for found in (jobs.clusters(trial), jobs.clusters(alone)):
        configs = [json.loads(one.get("TF_CONFIG", "{}")) for one in found]
        ranks = [one.get("task", {}).get("index") for one in configs]
        assert ranks == ([None] if count == 1 else [0, 1])


def test_jobs_write_to_the_workspaces_account_if_it_has_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = MagicMock()
    own = SimpleNamespace(account_name="own", credential=None)
    monkeypatch.setattr(job, "store", lambda _: own)
    monkeypatch.setattr(job, "ContainerClient", client)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "data")
    workspace: Any = SimpleNamespace(kind="azure", blobs="https://{}.blob.core.windows.net")
    exists = client.return_value.__enter__.return_value.exists
    exists.return_value = True
    assert job.account(workspace) == "own"
    assert client.call_args[0] == ("https://own.blob.core.windows.net", "review")
    for exists.return_value, exists.side_effect in (
        (False, None),
        (None, HttpResponseError("403")),
    ):
        assert job.account(workspace) == "data"


def test_what_has_ended_is_not_canceled() -> None:
    jobs = SimpleNamespace(get=lambda _: SimpleNamespace(status="Completed"))
    workspace: Any = SimpleNamespace(client=SimpleNamespace(jobs=jobs))
    with pytest.raises(DigitsError, match=r"has already ended as Completed.*--attach"):
        job.cancel(workspace, "one")


def test_a_workspace_that_fails_starts_no_second_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((job, "connect"), (job, "commit"), (job, "load")):
        monkeypatch.setattr(module, name, lambda *_: None)
    asked: Any = SimpleNamespace(compute=None, attach=None, cancel=None, workspace="local")
    with pytest.raises(DigitsError, match="use --attach NAME"), job.session(asked):
        raise HttpResponseError("502")


@pytest.mark.prove
def test_stages_that_need_npm_are_refused(trainable: Trainable) -> None:
    trainable.edit("dvc.yaml", "ten digits", "nine digits")
    trainable.commit(32)
    said = trainable.digits("train", code=1)
    assert "stage mnist is outdated" in said
    assert "`dvc repro mnist` here" in said


@pytest.mark.prove
def test_a_job_that_fails_states_why_and_leaves_nothing(
    trainable: Trainable, emulator: Emulator
) -> None:
    trainable.commit(13)
    said = trainable.digits("train", code=1)
    assert "Traceback" not in said
    (name,) = set(JOB.findall(said))
    end = said.partition("ended as Failed")[2]
    assert "13 is no size of a batch" in end
    assert "stage train failed: see above" in end
    assert "13 is no size of a batch" in (trainable.root / ".deploy" / f"{name}.log").read_text()
    assert trainable.published(emulator) == set()
    trainable.commit(32)
    trainable.digits("train")
    placed(trainable, 32)


@pytest.mark.prove
def test_a_job_that_is_canceled_leaves_nothing(trainable: Trainable, emulator: Emulator) -> None:
    trainable.commit(32)
    with under_way(trainable) as (process, name):
        assert f"Canceled {name}" in trainable.digits("train", "--cancel", name)
        said = process.stdout.read()
        assert process.wait(60) == 1
        assert f"{name} was canceled" in said
        assert not [line for line in emulator.running() if f"{emulator.folder}/jobs/" in line]
    assert trainable.published(emulator) == set()
    said = trainable.digits("train", "--attach", name, code=1)
    assert "was canceled" in said
    assert "Correct the name" in trainable.digits("train", "--attach", "digits-none", code=1)
    assert "not found" in trainable.digits("train", "--cancel", "digits-none", code=1)


@pytest.mark.prove
def test_a_job_that_loses_its_machine_starts_from_nothing(
    trainable: Trainable, emulator: Emulator
) -> None:
    trainable.commit(32)
    with under_way(trainable) as (process, name):
        emulator.lose(name)
        wait_for(process, "training on ten digits")
        assert trainable.published(emulator) == set()
        trainable.hold.unlink()
        assert "New: train" in process.stdout.read()
        assert process.wait(60) == 0
    assert len(trainable.published(emulator)) == 1
    placed(trainable, 32)


@pytest.mark.prove
def test_of_two_nodes_the_first_publishes_and_each_may_fail(
    trainable: Trainable, emulator: Emulator
) -> None:
    trainable.edit("params.yaml", "    nodes: 1", "    nodes: 2")
    rank = "import os\nrank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    trainable.edit("stage.py", "params =", f"{rank}params =")
    trainable.edit("stage.py", '"training on"', '"node", rank, "is training on"')
    trainable.edit("stage.py", 'f"weights', 'f"node {rank}, weights')  # shows which node published
    trainable.commit(32)
    said = trainable.digits("train")
    name = JOB.findall(said)[0]
    assert f"{name}: Completed" in said
    assert "node 0 is training" in said
    for node in (0, 1):
        assert f"node {node} is training" in log_of(emulator, name, node)
    assert len(trainable.published(emulator)) == 1
    assert logged(emulator, name)["mnist.accuracy"] == 0.968
    placed(trainable, 32)
    assert (trainable.root / "data/model/model.txt").read_text().startswith("node 0")
    trainable.git("checkout", "--quiet", ".")
    again = JOB.findall(trainable.digits("train"))[0]  # nothing is restored
    for node in (0, 1):
        assert f"node {node} is training" in log_of(emulator, again, node)

    trainable.edit("stage.py", "while Path", "if rank:\n    sys.exit('node 1 is ill')\nwhile Path")
    before = trainable.published(emulator)
    trainable.commit(16)
    trainable.hold.touch()  # for the other one, which would never end
    said = trainable.digits("train", code=1)
    assert "ended as Failed" in said
    assert "node 1 is ill" in said
    assert trainable.published(emulator) == before


@WINDOWS
@pytest.mark.prove
def test_ctrl_c_stops_the_command_and_not_the_job(trainable: Trainable) -> None:
    trainable.commit(32)
    with under_way(trainable) as (process, name):
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(60) == 130
        assert f"Follow it with `--workspace local --attach {name}`" in said
    said = trainable.digits("train", "--attach", name)
    assert "New: train" in said
    placed(trainable, 32)


@pytest.mark.prove
def test_two_jobs_for_one_commit_end_well(trainable: Trainable, emulator: Emulator) -> None:
    trainable.commit(32)
    with under_way(trainable) as (first, _), under_way(trainable) as (second, _):
        trainable.hold.unlink()
        for process in (first, second):
            assert "New: train" in process.stdout.read()
            assert process.wait(60) == 0
    assert len(trainable.published(emulator)) == 1
    placed(trainable, 32)


@pytest.mark.prove
def test_a_job_begins_anew_with_the_stand_in(trainable: Trainable, tmp_path: Path) -> None:
    own = Emulator(tmp_path / "own")
    own.start()
    link = trainable.root / ".emulator"
    link.unlink()
    link.symlink_to(own.folder)
    try:
        trainable.commit(32)
        with under_way(trainable) as (process, name):
            process.send_signal(signal.SIGINT)
            process.wait(60)
            own.kill()
            own.start()
        said = trainable.digits("train", "--attach", name)
        assert "New: train" in said
        placed(trainable, 32)
    finally:
        own.stop()


@pytest.mark.prove
def test_a_cluster_must_be_there(trainable: Trainable, emulator: Emulator) -> None:
    trainable.commit(32)
    said = trainable.digits("train", "--compute", "cpus", code=1)
    assert "azure.job.compute: cpus does not exist" in said
    group = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/local"
    place = f"{group}/providers/Microsoft.MachineLearningServices/workspaces/{trainable.workspace}"
    scale = {"minNodeCount": 1, "maxNodeCount": 2}
    size = {"vmSize": "Standard_DS3_v2", "scaleSettings": scale}
    body = {"properties": {"computeType": "AmlCompute", "properties": size}}
    emulator.call("PUT", f"{place}/computes/cpus", body | {"location": "local"})
    said = trainable.digits("train", "--compute", "cpus")
    assert "New: train" in said


@pytest.mark.prove
def test_a_sweep_becomes_experiments(trainable: Trainable, emulator: Emulator) -> None:
    trainable.commit(64)
    emulator.faults()
    grid = ("-S", "train.batch_size=32,13", "-S", "train.peak_learning_rate=0.01,0.02")
    said = trainable.digits("sweep", *grid)
    found, compared = unlike(emulator.calls())
    assert found == [], "\n".join(found)
    assert compared > 5
    (name,) = set(JOB.findall(said))
    assert said.count("failed; its log is in") == 2
    table = list(csv.DictReader(io.StringIO(trainable.dvc("exp", "show", "--csv"))))
    made = {row["Experiment"]: row for row in table if row["Experiment"].startswith(name)}
    assert len(made) == 2
    values_to_try = {
        (row["train.batch_size"], row["train.peak_learning_rate"]): row["mnist.accuracy"]
        for row in made.values()
    }
    assert values_to_try == {("32", "0.01"): "0.968", ("32", "0.02"): "0.968"}
    trainable.edit("stage.py", "weights", "other weights")  # of no concern to the experiments
    again = trainable.digits("sweep", "--attach", name)
    assert again.count(": exists already") == 2
    trainable.git("checkout", "--quiet", ".")
    assert trainable.git("status", "--porcelain") == ""
    assert trainable.git("worktree", "list").count("\n") == 1
    trainable.dvc("exp", "apply", next(iter(made)))
    placed(trainable, 32)
    trainable.git("checkout", "--quiet", ".")
    trainable.dvc("checkout", "--quiet")
    assert "not a single value" in trainable.digits("sweep", "-S", "train.none=1", code=1)
    said = trainable.digits("sweep", "-S", "train.batch_size=16,24,48", "--random", "2")
    assert ": 2 trials." in said
    assert "2 trials succeeded." in said


@pytest.mark.prove
def test_the_trials_of_a_sweep_have_nodes(trainable: Trainable, emulator: Emulator) -> None:
    trainable.edit("params.yaml", "    nodes: 1", "    nodes: 2")
    rank = "rank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    trainable.edit("stage.py", "params =", f"{rank}params =")
    trainable.edit("stage.py", '"training on"', '"node", rank, "is training on"')
    trainable.commit(64)
    emulator.faults()
    said = trainable.digits("sweep", "-S", "train.batch_size=16,32")
    assert "2 trials succeeded." in said
    (name,) = set(JOB.findall(said))
    for node in (0, 1):
        assert f"node {node} is training" in log_of(emulator, f"{name}_0", node)
    sent = [call["request"] for call in emulator.calls() if call["path"].endswith(f"/jobs/{name}")]
    (body,) = filter(None, sent)
    distribution = body["properties"]["trial"]["distribution"]
    assert (distribution["distributionType"], distribution["workerCount"]) == ("TensorFlow", 2)


@pytest.mark.prove
def test_the_real_stages_give_the_same_bytes_in_a_job(
    project: Project, emulator: Emulator, tmp_path: Path
) -> None:
    """The small project: the job trains with another value, and this machine then does, too."""
    trainable = Trainable(project.root, "real")
    (trainable.root / ".emulator").symlink_to(emulator.folder)
    (trainable.root / ".git" / "info" / "exclude").write_text(".emulator\n")  # a link, no folder
    trainable.git("init", "--quiet", "--bare", str(tmp_path / "origin"))
    trainable.git("remote", "add", "origin", str(tmp_path / "origin"))
    trainable.edit("params.yaml", "label_smoothing: 0.1", "label_smoothing: 0.05")
    trainable.commit(32)
    said = trainable.digits("train")
    assert "Running stage 'train'" in said
    assert "New: train, evaluate, package, simulate, monitor." in said
    assert json.loads(trainable.dvc("status", "--json")) == {}
    output = trainable.dvc("repro")
    assert trainable.stages_run(output) == []
    assert "is cached" not in output
    trainable.git("commit", "--quiet", "--all", "--message", "What the job made")
    assert trainable.stages_run(trainable.dvc("repro", "--force", "train")) != []
    assert trainable.git("status", "--porcelain") == ""
