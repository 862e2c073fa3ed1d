"""DVC's remote on a real Azurite: what it restores, and what each fault says and leaves intact."""

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import configobj
import psutil
import pytest
import run
import yaml
from azure.storage.blob import BlobClient
from conftest import ROOT, Azurite, Project, environment, python
from emulated import wait_until

from core.dataset import read_split

pytestmark = pytest.mark.slow


def connect(project: Project, connection_string: str) -> None:
    """Write what `dvc remote modify --local main connection_string` does, without its start."""
    local = project.root / ".dvc" / "config.local"
    local.write_text(f"['remote \"main\"']\n    connection_string = {connection_string}\n")


def blob(project: Project, azurite: Azurite, path: str) -> BlobClient:
    stages = yaml.safe_load((project.root / "dvc.lock").read_text("utf-8"))["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    name = f"files/md5/{outs[path][:2]}/{outs[path][2:]}"
    return BlobClient.from_connection_string(azurite.connection_string, "main", name)


def pool_sizes(project: Project) -> int:
    folder = project.root / "data" / "prepared"
    pools = [read_split(folder / f"{name}.npz", 10, 28) for name in ("training", "validation")]
    return sum(len(part) for pool in pools for part in pool)


def assert_whole(project: Project) -> None:
    assert project.stages_run(project.dvc("repro")) == []
    assert project.dvc("data", "status", "--json").strip() == "{}"
    assert project.git("status", "--porcelain") == ""


@pytest.fixture
def pushed(project: Project, azurite: Azurite) -> Project:
    """A project whose remote holds all its data."""
    connect(project, azurite.connection_string)
    project.dvc("push", "--run-cache")
    return project


@pytest.fixture
def clone(pushed: Project, azurite: Azurite, tmp_path: Path) -> Project:
    """A clone of it that has pulled nothing yet."""
    clone = pushed.clone(tmp_path / "clone")
    connect(clone, azurite.connection_string)
    return clone


@pytest.fixture(scope="module")
def shared(
    reproduced: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Project, Azurite]]:
    """A project whose remote holds all its data, and the remote, for tests that change neither."""
    folder = tmp_path_factory.mktemp("shared")
    project = reproduced.copy(folder / "project")
    azurite = Azurite(folder / "azurite")
    azurite.start()
    try:
        connect(project, azurite.connection_string)
        project.dvc("push", "--run-cache")
        yield project, azurite
    finally:
        azurite.stop()


@pytest.fixture
def fresh(shared: tuple[Project, Azurite], tmp_path: Path) -> Project:
    """A clone that has pulled nothing yet, of what several tests share."""
    project, azurite = shared
    clone = project.clone(tmp_path / "fresh")
    connect(clone, azurite.connection_string)
    return clone


@pytest.mark.slow(minutes=0.4)
def test_after_clone_and_pull_nothing_runs_and_npm_is_not_needed(fresh: Project) -> None:
    fresh.dvc("pull")
    assert not (fresh.root / "node_modules").exists()
    assert_whole(fresh)


def test_without_outputs_and_cache_nothing_runs(fresh: Project) -> None:
    fresh.dvc("pull", "foreign")  # git keeps the folder: DVC takes it for emptied, not for missing
    output = fresh.dvc("repro", "--pull", "--allow-missing")
    assert fresh.stages_run(output) == []
    assert fresh.git("status", "--porcelain") == ""
    assert not (fresh.root / "data" / "model" / "model.keras").exists()


@pytest.mark.prove
def test_run_cache_restores_what_the_lock_does_not_name(fresh: Project) -> None:
    (fresh.root / "dvc.lock").unlink()
    fresh.dvc("fetch", "--run-cache")
    output = fresh.dvc("repro", "--pull", "prepare")
    assert fresh.stages_run(output) == []
    assert "Stage 'prepare' is cached" in output


@pytest.mark.prove
def test_labelled_production_digits_train_and_travel(
    pushed: Project, azurite: Azurite, tmp_path: Path
) -> None:
    before = pool_sizes(pushed)
    lines = (pushed.root / "data" / "mnist" / "test.csv").read_text("utf-8").splitlines(True)[:201]
    labelled = pushed.root / "data" / "labelled" / "mnist_week1.csv"
    labelled.write_text("".join(lines), "utf-8", newline="\n")
    pushed.dvc("add", "data/labelled/mnist_week1.csv")
    assert pushed.stages_run(pushed.dvc("repro", "prepare")) == ["prepare"]
    assert pool_sizes(pushed) == before + 200
    assert pushed.stages_run(pushed.dvc("repro", "--dry")) == [
        "train",
        "package",
        "simulate",
        "monitor",
    ]

    pushed.git("add", "--all")
    pushed.git("commit", "--quiet", "--message", "A week of labels")
    pushed.dvc("push")
    clone = pushed.clone(tmp_path / "clone")
    connect(clone, azurite.connection_string)
    clone.dvc("pull", "data/labelled/mnist_week1.csv", "prepare")
    copy = clone.root / "data" / "labelled" / "mnist_week1.csv"
    assert copy.read_bytes() == labelled.read_bytes()
    assert pool_sizes(clone) == before + 200


@pytest.mark.prove
def test_a_corrupted_blob_is_named_and_kept_out(
    pushed: Project, clone: Project, azurite: Azurite
) -> None:
    with blob(pushed, azurite, "data/model/model.keras") as model:
        whole = model.download_blob().readall()
        model.upload_blob(b"x" * len(whole), overwrite=True)
        output = clone.dvc("pull", code=1)
        assert "data/model/model.keras" in output
        assert "Traceback" not in output
        assert not (clone.root / "data" / "model" / "model.keras").exists()
        assert clone.git("status", "--porcelain") == ""
        model.upload_blob(whole, overwrite=True)
    clone.dvc("pull")
    assert_whole(clone)
    assert_whole(pushed)


@pytest.mark.prove
def test_a_missing_blob_is_named_and_pushed_again(
    pushed: Project, clone: Project, azurite: Azurite
) -> None:
    with blob(pushed, azurite, "data/prepared/training.npz") as training:
        training.delete_blob()
        name = "".join(training.blob_name.split("/")[-2:])
        output = clone.dvc("pull", code=1)
        assert (
            f"do not exist neither locally nor on remote. Missing cache files:\nmd5: {name}"
            in output
        )
        assert "Checkout failed for following targets:\ndata/prepared/training.npz\n" in output
        assert "Traceback" not in output
        assert clone.git("status", "--porcelain") == ""
        missing = pushed.dvc("data", "status", "--not-in-remote")
        assert "data/prepared/training.npz" in missing
        assert "1 file pushed" in pushed.dvc("push")
    clone.dvc("pull")
    assert_whole(clone)


@pytest.mark.prove
def test_a_wrong_key_is_reported_and_loses_nothing(
    pushed: Project, clone: Project, azurite: Azurite
) -> None:
    wrong = azurite.connection_string.replace(azurite.key, "A" * 86 + "==")
    for project, command, code in ((clone, "pull", 1), (pushed, "push", 255)):
        connect(project, wrong)
        output = project.dvc(command, code=code)
        assert "Server failed to authenticate the request" in output
        assert "Traceback" not in output
        assert project.git("status", "--porcelain") == ""
        connect(project, azurite.connection_string)
        project.dvc(command)
        assert_whole(project)


STORAGE = "import run; run.env = lambda: None; raise SystemExit(run.main())"
MINE = b"# my own\n['remote \"main\"']\n    connection_string = mine\n    account_name = me\n"


@pytest.fixture
def folder(tmp_path: Path) -> Project:
    """A project without data that has a remote `main`, and what `make storage` needs."""
    project = Project(tmp_path / "folder")
    (project.root / ".dvc").mkdir(parents=True)
    project.git("init", "--quiet")
    for name in ("run.py", ".dvc/config"):
        shutil.copyfile(ROOT / name, project.root / name)
    for name in (".venv", "node_modules"):
        (project.root / name).symlink_to(ROOT / name)
    (project.root / "data.csv").write_text("1,2,3\n")
    project.dvc("add", "--quiet", "data.csv")
    return project


@contextlib.contextmanager
def make_storage(project: Project, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run `make storage`; kill it if the test has not ended it."""
    with subprocess.Popen(
        python(STORAGE, "storage"),
        cwd=project.root,
        env=environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert "use it until Ctrl-C" in server.stdout.readline()
        try:
            yield server
        finally:
            server.kill()


@pytest.mark.parametrize(("before", "ended_by"), [(None, "SIGINT"), (MINE, "SIGHUP")])
def test_make_storage_leaves_the_settings_as_they_were(
    folder: Project, before: bytes | None, ended_by: str
) -> None:
    local = folder.root / ".dvc" / "config.local"
    if before is not None:
        local.write_bytes(before)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the port of an editor's own Azurite; it may have one
            stack.enter_context(socket.create_server(("127.0.0.1", 10000)))
        server = stack.enter_context(make_storage(folder))
        assert b"connection_string" in local.read_bytes()
        assert local.stat().st_mode & 0o777 == 0o600
        assert "pushed" in folder.dvc("push")
        server.send_signal(getattr(signal, ended_by))
        server.wait(60)
    assert local.exists() == (before is not None)
    assert not local.exists() or local.read_bytes() == before


@pytest.mark.prove
def test_make_storage_goes_on_after_it_was_killed(folder: Project) -> None:
    """It has taken back neither its settings nor its lock; a second one at a time is refused."""
    local = folder.root / ".dvc" / "config.local"
    local.write_bytes(MINE)
    with make_storage(folder) as server:
        assert "1 file pushed" in folder.dvc("push")
        first = local.read_text("utf-8")
        command = python(STORAGE, "storage")
        second = subprocess.run(
            command, cwd=folder.root, env=environment(), capture_output=True, text=True
        )
        assert "running already" in second.stderr
        assert local.read_text("utf-8") == first
    assert "AccountKey" in local.read_text("utf-8")
    proxies = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    wait_until(lambda: not running_below(folder.root))
    with make_storage(folder, **proxies, NO_PROXY="", no_proxy="") as server:
        assert server.stdout is not None
        assert "set NO_PROXY=127.0.0.1" in server.stdout.readline()
        assert local.read_text("utf-8") != first
        shutil.rmtree(folder.root / ".dvc" / "cache")
        bypassed = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        output = folder.run("dvc", "fetch", code=0, **proxies, **bypassed)
        assert "1 file fetched" in output
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    assert local.read_bytes().startswith(MINE)
    assert "AccountKey" not in local.read_text("utf-8")


def test_the_end_of_azurite_ends_make_storage_and_its_settings(folder: Project) -> None:
    local = folder.root / ".dvc" / "config.local"
    local.write_bytes(MINE)
    with make_storage(folder) as server:
        assert server.stderr
        (azurite,) = [
            one for one in psutil.Process(server.pid).children(True) if one.name() == "node"
        ]
        azurite.kill()
        said = server.stderr.read()
        assert server.wait(60) == 1
    assert "Azurite has ended. Run `make storage` again" in said
    assert local.read_bytes() == MINE


@pytest.mark.parametrize("damage", [b"a = 1\n", b"[remote", b"\xff", None])
def test_damaged_settings_are_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    local = tmp_path / ".dvc" / "config.local"
    local.mkdir(parents=True)
    if damage is not None:
        local.rmdir()
        local.write_bytes(damage)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "env", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(run.TargetError, match=r"config\.local: .*Correct or delete"):
        run.storage()
    assert local.is_dir() if damage is None else local.read_bytes() == damage


@pytest.mark.parametrize("end", ["", "\n", "\n# the end"])
def test_settings_with_storage_are_those_of_dvc(tmp_path: Path, end: str) -> None:
    text = "[core]\n    remote = main\n['remote \"review\"']\n    connection_string = mine" + end
    (tmp_path / ".dvc").mkdir()
    local = tmp_path / ".dvc" / "config.local"
    during = run.with_storage(text, "AccountName=devstoreaccount1;x")
    local.write_text(during, "utf-8")
    config = configobj.ConfigObj(during.splitlines())
    for remote in run.REMOTES:
        found = config[f'remote "{remote}"']
        assert found == {"connection_string": "AccountName=devstoreaccount1;x"}
    assert run.read_settings(local).startswith(text)


def running_below(root: Path) -> list[str]:
    """Return the processes that have a folder on their command line."""
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if str(root) in line]


@pytest.mark.prove
def test_a_stopped_server_is_reported_and_loses_nothing(
    pushed: Project, clone: Project, azurite: Azurite
) -> None:
    azurite.stop()
    with ThreadPoolExecutor() as both:  # Azure's SDK tries again for 80 s, several times a folder
        pull = both.submit(clone.dvc, "pull", "data/model/model.keras", code=1)
        push = both.submit(pushed.dvc, "push", code=255)
    for output in (pull.result(), push.result()):
        assert f"Cannot connect to host 127.0.0.1:{azurite.port}" in output
        assert "Traceback" not in output
    assert clone.git("status", "--porcelain") == ""
    azurite.start()
    for project in (clone, pushed):
        connect(project, azurite.connection_string)
    clone.dvc("pull")
    pushed.dvc("push")
    assert_whole(clone)
    assert_whole(pushed)
