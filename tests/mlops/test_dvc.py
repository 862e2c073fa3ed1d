"""mlops.dvc: a remote that does not answer is named at once, before any transfer."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import free_port

from core.errors import DigitsError
from mlops import dvc


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of loopback that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project of DVC without any data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(dvc.VARIABLE, raising=False)
    monkeypatch.setattr(dvc, "PROBE_SECONDS", 0.2)
    for name in (
        "git init --quiet",
        "dvc init --quiet",
        "dvc remote add --quiet main azure://main",
    ):
        subprocess.run(name.split(), check=True)


def connect(port: int) -> None:
    setting = ["connection_string", f"AccountName=a;BlobEndpoint=http://127.0.0.1:{port}/a"]
    subprocess.run(["dvc", "remote", "modify", "--local", "main", *setting], check=True)


@pytest.mark.slow
def test_a_stopped_or_silent_server_is_named_before_a_transfer(listening: int) -> None:
    for port in (free_port(), listening):
        connect(port)
        for command in ("fetch", "pull", "push"):
            with pytest.raises(DigitsError, match=rf"^remote main: no answer from .*:{port}/"):
                dvc.run(command, "--remote", "main")


@pytest.mark.slow
def test_variables_name_the_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv(dvc.VARIABLE, f"AccountName=a;BlobEndpoint=http://127.0.0.1:{port}/a")
    with pytest.raises(DigitsError, match=rf"no answer from .*:{port}/"):
        dvc.probe("main")


@pytest.mark.slow
def test_a_remote_without_an_account_or_of_another_kind_is_left_to_dvc(tmp_path: Path) -> None:
    assert dvc.probe("main") is None
    subprocess.run(["dvc", "remote", "add", "folder", str(tmp_path / "folder")], check=True)
    dvc.probe("folder")
    dvc.run("push", "--remote", "folder")


@pytest.mark.prove
def test_what_a_remote_lacks_is_named_and_the_rest_is_in_place(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    subprocess.run(["dvc", "remote", "add", "--quiet", "folder", str(remote)], check=True)
    for name in ("here", "lacking"):
        Path(name).write_text(name)
        dvc.run("add", name)
    dvc.run("push", "--remote", "folder", "here.dvc")
    shutil.rmtree(".dvc/cache")
    for name in ("here", "lacking"):
        Path(name).unlink()
    assert "lacking" in dvc.restore("folder")
    assert Path("here").read_text() == "here"
    assert dvc.restore("folder", "here") == ""


@pytest.mark.slow
def test_damaged_settings_are_named_in_a_line(tmp_path: Path) -> None:
    """DVC prints a traceback with its error."""
    local = tmp_path / ".dvc" / "config.local"
    for damage in (b"[remote", b"\xff", None):
        if damage is None:
            local.unlink()
            local.mkdir()
        else:
            local.write_bytes(damage)
        with pytest.raises(DigitsError, match=r"dvc config: .*config\.local") as caught:
            dvc.probe("main")
        assert "Traceback" not in str(caught.value)
        assert local.is_dir() if damage is None else local.read_bytes() == damage
