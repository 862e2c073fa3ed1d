"""Faults of the machine: after each, what is wrong is named with the way out, and a rerun recovers.

Those of the emulator's own processes are in azureml_emulator/test_survival.py, those of remotes in
test_storage.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Project, environment, python

SRC = str(ROOT / "src")
ALONE = "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"


def run_python(code: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with the source on its path."""
    kept = {name: value for name, value in environment().items() if name.lower() != "no_proxy"}
    return subprocess.run(
        python(code),
        cwd=folder,
        env=kept | {"PYTHONPATH": SRC} | env,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("no_proxy", ["", "example.org"])
def test_no_command_and_no_child_of_it_asks_a_proxy_for_loopback(
    tmp_path: Path, no_proxy: str
) -> None:
    code = """
import os, sys, urllib.request
from core import console
def work():
    print(bool(urllib.request.proxy_bypass("127.0.0.1")), os.environ["NO_PROXY"])
console.report_errors("test", work)
"""
    proxy = dict.fromkeys(ALONE, "http://127.0.0.1:1") | {"no_proxy": no_proxy}
    done = run_python(code, tmp_path, **proxy, NO_PROXY=no_proxy)
    assert done.stdout.split() == ["True", ",".join(filter(None, [no_proxy, "127.0.0.1"]))]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chown needs root")
def test_a_folder_of_another_owner_is_named_as_that(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    project.git("init", "--quiet")
    for path in (project.root, project.root / ".git"):
        os.chown(path, 65534, 65534)
    code = "from mlops import git; git.require_root()"
    done = run_python(code, project.root)
    assert "dubious ownership" in done.stderr
    assert "safe.directory" in done.stderr


def test_an_experiment_that_a_shallow_clone_would_lose_fails(tmp_path: Path) -> None:
    """DVC 3.67.1 ends `dvc exp run --temp` and `--queue` there with 0 and keeps nothing."""
    shallow, temporary = tmp_path / "clone", tmp_path / "clone" / ".dvc" / "tmp" / "exps" / "one"
    (shallow / ".git").mkdir(parents=True)
    temporary.mkdir(parents=True)
    for folder, marked, code in ((temporary, 0, 0), (temporary, 1, 1), (shallow, 1, 0)):
        if marked:
            (shallow / ".git" / "shallow").touch()
        work = "import sys; from core import console; sys.exit(console.run('x', 'empty', []))"
        (folder / "empty.py").write_text("def main(arguments):\n    pass\n")
        done = run_python(work, folder, DVC_ROOT=str(shallow))
        assert done.returncode == code, done.stderr
        assert ("git fetch --unshallow" in done.stderr) == bool(code)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_ends_a_command_as_ctrl_c_does(
    tmp_path: Path, ignored: bool
) -> None:
    code = f"""
import os, signal
from core import console
signal.signal(signal.SIGHUP, signal.SIG_IGN if {ignored} else signal.SIG_DFL)
def work():
    console.interrupt_on_signals()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        print("cleaned up", flush=True)
raise SystemExit(console.report_errors("test", work))
"""
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0 if ignored else 130, "cleaned up\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_a_terminal_that_is_closed_ends_digits_local_as_ctrl_c_does(tmp_path: Path) -> None:
    code = """
import os, signal
from azureml_emulator.server import stop_event
signal.signal(signal.SIGHUP, signal.SIG_DFL)
stop = stop_event()
os.kill(os.getpid(), signal.SIGHUP)
print(stop.is_set())
"""
    assert run_python(code, tmp_path).stdout == "True\n"


@pytest.mark.parametrize(
    "checked",
    [
        pytest.param("never", marks=pytest.mark.prove),
        pytest.param("before", marks=pytest.mark.slow),
        pytest.param("by a clock that is ahead", marks=pytest.mark.prove),
    ],
)
def test_a_corrupted_file_of_dvcs_cache_is_deleted_and_not_placed(
    checked: str, tmp_path: Path
) -> None:
    project = Project(tmp_path)
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    data = tmp_path / "data.csv"
    data.write_text("1,2,3\n")
    project.dvc("add", "--quiet", "data.csv")
    (stored,) = (tmp_path / ".dvc" / "cache" / "files" / "md5").glob("*/*")
    partial = stored.with_name("partial.tmp")  # another DVC writes it
    partial.write_text("1,")
    code = "from mlops import dvc; dvc.checkout(fix='fetch it again')"
    if checked != "never":
        assert run_python(code, tmp_path).stdout == ""
    if checked == "by a clock that is ahead":
        last = tmp_path / ".dvc" / "tmp" / "checked"
        os.utime(last, (last.stat().st_atime, last.stat().st_mtime + 86400))
    written = stored.stat()
    stored.chmod(0o644)
    stored.write_text("1,2,4\n")
    if sys.platform != "win32":  # which has no time of the last change beside it
        os.utime(stored, ns=(written.st_atime_ns, written.st_mtime_ns))
    stored.chmod(0o444)  # as DVC leaves it, so that it reads it no more
    data.unlink()
    done = run_python(code, tmp_path)
    assert "deleted" in done.stdout
    assert "data.csv" in done.stderr
    assert "fetch it again" in done.stderr
    assert not data.exists()
    assert not stored.exists()
    assert partial.exists()
    data.write_text("1,2,3\n")
    project.dvc("add", "--quiet", "data.csv")
    data.unlink()
    assert run_python(code, tmp_path).returncode == 0
    assert data.read_text() == "1,2,3\n"


@pytest.mark.slow
def test_a_folder_of_digits_local_is_found_by_other_commands(tmp_path: Path) -> None:
    code = "from mlops.azure.workspace import connect; connect('local')"
    done = run_python(code, tmp_path, DIGITS_LOCAL_FOLDER="mine")
    assert f"{Path('mine', 'address.json')}: not found" in done.stderr
    assert "set DIGITS_LOCAL_FOLDER to its --folder" in done.stderr
