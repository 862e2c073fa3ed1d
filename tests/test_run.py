"""run.py: the first minutes on a machine where something is missing."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import run
from conftest import ROOT, Project, copy_tracked, environment, free_port, python


def start(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run run.py with this Python, in a folder that holds the project's files."""
    return subprocess.run(
        [sys.executable, str(folder / "run.py"), *arguments],
        env=environment() | env,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    copy_tracked(tmp_path / "tree")
    return tmp_path / "tree"


def test_an_old_python_is_told(tree: Path) -> None:
    code = "import sys; sys.version_info = (3, 9); sys.path.insert(0, '.'); import run\n"
    code += "sys.argv = ['run.py', 'env']; sys.exit(run.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Python 3.9 will not do; run this with Python 3.11, 3.12 or 3.13" in done.stderr
    # and what 3.9 would evaluate at once stays a word
    assert all(isinstance(kind, str) for kind in run.install_python.__annotations__.values())


@pytest.mark.slow
def test_the_environments_own_python_makes_it_anew(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tree / ".venv"], check=True)
    own = tree / ".venv" / "bin" / "python"
    code = "import sys; sys.path.insert(0, '.'); import run\n"
    code += "run.run = lambda *words, mend='': print(*words)\n"
    code += "sys.argv = ['run.py', 'env']; run.main()"
    done = subprocess.run([own, "-c", code], cwd=tree, capture_output=True, text=True)
    maker = done.stdout.split("\n")[1].split()[0]
    assert Path(maker).exists()
    assert not Path(maker).is_relative_to(tree)


def test_help_lists_the_targets_of_the_makefile(tree: Path) -> None:
    done = start(tree, "help")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in run.TARGETS:
        assert f"make {target} " in done.stdout
        assert f"run.py {target}\n" in makefile


def test_an_unknown_target_is_told(tree: Path) -> None:
    done = start(tree, "repo")
    assert (done.returncode, "no target repo" in done.stderr) == (1, True)


@pytest.mark.prove
def test_no_network_at_the_first_install_is_told(tree: Path) -> None:
    nobody = "http://127.0.0.1:9/simple"
    for _ in range(2):  # the second time meets what the first one left
        done = start(tree, "env", PIP_INDEX_URL=nobody, PIP_RETRIES="0", PIP_CONFIG_FILE=os.devnull)
        assert done.returncode == 1
        assert "is there a network" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tree / ".venv" / "installed").exists()


def test_no_npm_is_told(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".venv" / "bin", tree / ".venv" / "bin", symlinks=True)
    code = "import sys; sys.path.insert(0, '.'); import run; run.install_python = lambda: None\n"
    code += "sys.argv = ['run.py', 'env']; sys.exit(run.main())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "npm: not found; install Node.js 20 or newer" in done.stderr


def test_metrics_are_shown_with_the_word_rendered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "evaluation"
    folder.mkdir(parents=True)
    row = '{"accuracy": 0.25, "accuracy_low": 0.2, "accuracy_high": 0.3, "calibration_error": 0.5}'
    (folder / "metrics.json").write_text(f'{{"japanese_rendered": {row}}}')
    monkeypatch.setattr(run, "ROOT", tmp_path)
    run.show_metrics()
    assert "japanese_rendered" in (shown := capsys.readouterr().out)
    assert "0.2000 - 0.3000" in shown


def test_the_build_for_a_gpu_is_the_locked_version() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    version = groups["gpu"][0].partition("==")[2]
    assert f"\ntensorflow-cpu=={version} " in (ROOT / "requirements.txt").read_text("utf-8")


MLFLOW = """
import sys
sys.path.insert(0, {root!r})
import run
run.MLFLOW_PORT = {port}
run.webbrowser.open = lambda address: print("opened", address, flush=True)
sys.argv = ["run.py", "mlflow"]
sys.exit(run.main())
"""


@pytest.mark.prove
def test_the_page_of_runs_opens_and_ends_with_an_interrupt(reproduced: Project) -> None:
    port = free_port()
    process = subprocess.Popen(
        python(MLFLOW.format(root=str(ROOT), port=port)),
        env=environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{reproduced.root}/data/mlflow.db"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        lines = iter(process.stdout or ())
        assert f"opened http://127.0.0.1:{port}\n" in lines
        with urllib.request.urlopen(f"http://127.0.0.1:{port}") as page:
            assert "MLflow" in page.read().decode()
        call = (
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits"
        )
        with urllib.request.urlopen(call) as answer:
            assert json.load(answer)["experiment"]["name"] == "digits"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 5):
            pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
