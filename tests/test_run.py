"""run.py: the first minutes on a machine where something is missing."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib
import urllib.request
import webbrowser
import zipfile
from pathlib import Path
from typing import Any

import pytest
import run
from conftest import NAME, ROOT, Project, copy_tracked, environment, free_port, python


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
    """The project's files in a git repository without a commit."""
    copy_tracked(tmp_path / "tree")
    subprocess.run(["git", "init", "--quiet", tmp_path / "tree"], check=True)
    return tmp_path / "tree"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """run.py in a folder of its own; returned is the list of what it installs, in order."""
    done: list[str] = []
    for name in ("requirements-dev.txt", "package-lock.json", "pyproject.toml"):
        (tmp_path / name).write_text("first")
    for name in (".git", ".venv", "node_modules"):
        (tmp_path / name).mkdir()
    paths = {"ROOT": "", "VENV": ".venv", "LOCK": "requirements-dev.txt"}
    for name, path in (paths | {"NPM_LOCK": "package-lock.json"}).items():
        monkeypatch.setattr(run, name, tmp_path / path)
    monkeypatch.setattr(run, "install_locked", lambda: done.append("locked"))
    monkeypatch.setattr(run, "run", lambda *words, fix="": done.append(f"{words[0]} {words[-1]}"))
    monkeypatch.setattr(run, "BIN", Path())
    monkeypatch.setattr("shutil.which", lambda name: name)
    return done


def test_what_nothing_imports_is_removed_after_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    kept = ["tensorflow/python", "clang", "scipy/special", "pytest/tests"]
    removed = ["tensorflow/include", "clang/native", "scipy/tests", "scipy/special/tests/data"]

    def install(*words: object, fix: str = "") -> None:
        for name in [*kept, *removed] if "sync" in words else ():
            (site / name).mkdir(parents=True, exist_ok=True)

    (tmp_path / "requirements-dev.txt").write_text("uv==1\n")
    for name, path in {"VENV": ".venv", "LOCK": "requirements-dev.txt"}.items():
        monkeypatch.setattr(run, name, tmp_path / path)
    monkeypatch.setattr(run, "run", install)
    run.install_locked()
    assert all((site / name).is_dir() for name in kept)
    assert not any((site / name).exists() for name in removed)


@pytest.mark.slow
def test_the_scripts_of_npm_packages_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lock in (run.NPM_LOCK, run.ROOT / ".dvc" / "vega" / "package-lock.json"):
        assert "hasInstallScript" not in lock.read_text("utf-8")  # so that none is missed
    hostile, mark = tmp_path / "hostile", tmp_path / "mark"
    hostile.mkdir()
    scripts = {"postinstall": f"node -e \"fs.writeFileSync('{mark.as_posix()}', '')\""}
    for folder, content in (
        (hostile, {"name": "hostile", "version": "1.0.0", "scripts": scripts}),
        (tmp_path, {"name": "project", "dependencies": {"hostile": "file:hostile"}}),
    ):
        (folder / "package.json").write_text(json.dumps(content), "utf-8")
    make_lock = ["npm", "install", "--package-lock-only", "--offline", "--silent"]
    subprocess.run(make_lock, cwd=tmp_path, check=True)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "NPM_LOCK", tmp_path / "package-lock.json")
    run.install_npm()
    assert (tmp_path / "node_modules" / "hostile").exists()
    assert not mark.exists()


@pytest.mark.slow
def test_the_bill_of_materials_has_every_package_of_the_serving_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("requirements-serve.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "env", lambda: None)
    run.sbom()
    first = (tmp_path / "sbom.json").read_bytes()
    bill = json.loads(first)
    assert bill["bomFormat"] == "CycloneDX"
    locked = re.findall(
        r"^(\S+)==(\S+)", (ROOT / "requirements-serve.txt").read_text("utf-8"), re.M
    )
    assert {(one["name"], one["version"]) for one in bill["components"]} == set(locked)
    for one in bill["components"]:
        assert any(part["hashes"] for part in one["externalReferences"])
    run.sbom()
    assert (tmp_path / "sbom.json").read_bytes() == first


def wheel(folder: Path, name: str, content: str) -> str:
    """Write a package; return its line in a lock."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(file), text)  # with no date
    return f"{name}==1.0 \\\n    --hash=sha256:{run.digest(path)}\n"


@pytest.mark.prove
def test_a_package_of_another_hash_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First uv, which pip installs, then what uv installs; last the same without the change."""
    wheels, venv, start = tmp_path / "wheels", tmp_path / ".venv", run.run
    wheels.mkdir()
    lock = wheel(wheels, "other", "GOOD = 1\n") + wheel(wheels, "uv", "")
    (tmp_path / "lock.txt").write_text(lock)
    names = {
        "ROOT": tmp_path,
        "VENV": venv,
        "BIN": venv / run.BIN.name,
        "LOCK": tmp_path / "lock.txt",
    }
    for name, value in (names | {"PYTHON": venv / run.BIN.name / run.PYTHON.name}).items():
        monkeypatch.setattr(run, name, value)
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_CACHE", "1")
    installed: list[tuple[str, ...]] = []

    def with_real_uv(*command: str | Path, fix: str = "") -> None:
        if "npm" in Path(command[0]).name:  # installs at the same time
            return
        installed.append(tuple(map(str, command)))
        uv = [ROOT / ".venv" / run.BIN.name / "uv"] if command[0] == run.BIN / "uv" else command[:1]
        start(*uv, *command[1:], fix=fix)

    monkeypatch.setattr(run, "run", with_real_uv)
    for changed, step in (("uv", "pip"), ("other", "sync"), ("", "")):
        wheel(wheels, "other", "EVIL = 1\n" if changed == "other" else "GOOD = 1\n")
        wheel(wheels, "uv", "EVIL = 1\n" if changed == "uv" else "")
        with contextlib.nullcontext() if not changed else pytest.raises(run.TargetError):
            run.install_locked()
        assert step in installed[-1] or not changed
        found = {path.stem for path in venv.glob("**/site-packages/*.py")}
        assert ("uv" in found, "other" in found) == (changed != "uv", not changed)


@pytest.mark.parametrize("shallow", [True, False])
def test_a_shallow_clone_is_named_before_anything_is_installed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shallow: bool,
) -> None:
    """An experiment that is all in the run cache runs no code that could notice it."""
    (tmp_path / ".git").mkdir()
    if shallow:
        (tmp_path / ".git" / "shallow").touch()
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    for name in ("check_prerequisites", "install_python", "install_npm", "install_plots"):
        monkeypatch.setattr(run, name, lambda: None)
    run.env()
    assert ("git fetch --unshallow" in capsys.readouterr().out) == shallow


def answer_of_node(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Let `node --version` print a version."""
    answer = subprocess.CompletedProcess([], 0, stdout=f"{version}\n")
    monkeypatch.setattr("subprocess.run", lambda *words, **settings: answer)


def test_what_changed_is_reinstalled_and_nothing_else(
    installed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock or another folder reinstalls all packages, pyproject.toml the project alone."""
    answer_of_node(monkeypatch, "v20.1.0")
    project, packages = f"uv {tmp_path}", "npm --silent"
    (tmp_path / ".venv" / "installed").write_text("9" * 64)  # the stamp of an earlier version
    for name, expected in (
        ("", ["locked", project, packages]),
        ("", []),
        ("pyproject.toml", [project]),
        ("requirements-dev.txt", ["locked", project]),
        ("package-lock.json", [packages]),
        ("", []),
    ):
        if name:
            (tmp_path / name).write_text("second")
        installed.clear()
        run.env()
        assert installed == expected
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "pyproject.toml").rename(moved / "pyproject.toml")
    (tmp_path / ".venv").rename(moved / ".venv")  # with its stamp
    monkeypatch.setattr(run, "ROOT", moved)
    monkeypatch.setattr(run, "VENV", moved / ".venv")
    installed.clear()
    run.install_python()
    assert installed == ["locked", f"uv {moved}"]
    linked = tmp_path / "linked"
    linked.symlink_to(moved / ".venv")
    monkeypatch.setattr(run, "VENV", linked)  # of a checkout that shares the environment
    installed.clear()
    run.install_python()
    assert installed == []


@pytest.mark.parametrize("version", ["v18.20.4", ""])
def test_an_old_node_is_refused_before_anything_is_installed(
    installed: list[str], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    answer_of_node(monkeypatch, version)
    with pytest.raises(run.TargetError, match="is not supported; version 20 or newer") as caught:
        run.env()
    assert (version or "of an unknown version") in str(caught.value)
    assert installed == []


@pytest.mark.parametrize("missing", ["node", "npm", "git"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_a_missing_program_is_reported_before_anything_is_installed(
    installed: list[str], monkeypatch: pytest.MonkeyPatch, missing: str, system: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == missing else name)
    monkeypatch.setattr("sys.platform", system)
    with pytest.raises(run.TargetError, match=f"^{missing}: not found") as caught:
        run.env()
    assert missing == "git" or run.INSTALL_NODE[system] in str(caught.value)
    assert installed == []


def test_a_folder_without_git_is_refused_with_what_to_type(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tree / ".git")
    done = start(tree, "repro")
    assert done.returncode == 1
    commands = [line.strip() for line in done.stderr.splitlines()[1:]]
    assert [" ".join(line.split()[:2]) for line in commands] == [
        "git init",
        "git add",
        "git commit",
    ]
    assert not (tree / ".venv").exists()
    for line in commands:
        subprocess.run(line, shell=True, cwd=tree, env=environment(), check=True)
    monkeypatch.setattr(run, "ROOT", tree)
    run.check_prerequisites()


def test_an_old_python_is_refused(tree: Path) -> None:
    code = "import sys; sys.version_info = (3, 9); sys.path.insert(0, '.'); import run\n"
    code += "sys.argv = ['run.py', 'env']; sys.exit(run.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Python 3.9 is not supported; use Python 3.11, 3.12 or 3.13" in done.stderr
    # and what 3.9 would evaluate at once stays a word
    assert all(isinstance(kind, str) for kind in run.install_python.__annotations__.values())


@pytest.mark.prove
def test_the_environment_can_be_remade_by_its_own_python(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tree / ".venv"], check=True)
    own = tree / ".venv" / "bin" / "python"
    code = "import sys; sys.path.insert(0, '.'); import run\n"
    code += "run.run = lambda *words, fix='': print(*words)\n"
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
        assert re.search(rf"run\.py {target}(?: \$\(\w+\))*\n", makefile)


def test_an_unknown_target_is_reported(tree: Path) -> None:
    done = start(tree, "repo")
    assert (done.returncode, "unknown target repo" in done.stderr) == (1, True)


@pytest.mark.prove
def test_no_network_at_the_first_install_is_reported(tree: Path) -> None:
    nobody = "http://127.0.0.1:9/simple"
    for _ in range(2):  # the second time meets what the first one left
        done = start(tree, "env", PIP_INDEX_URL=nobody, PIP_RETRIES="0", PIP_CONFIG_FILE=os.devnull)
        assert done.returncode == 1
        assert "check that the network reaches the package index" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tree / ".venv" / "installed").exists()


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
    assert f"\ntensorflow-cpu=={version} " in (ROOT / "requirements-serve.txt").read_text("utf-8")


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
@pytest.mark.parametrize("ended_by", ["SIGINT", "SIGTERM"])
def test_the_page_of_runs_opens_and_ends_with_a_signal(reproduced: Project, ended_by: str) -> None:
    port, store = free_port(), reproduced.root / "data" / "mlflow.db"
    # Loopback is reached through no proxy; at this one nothing listens.
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    process = subprocess.Popen(
        python(MLFLOW.format(root=str(ROOT), port=port)),
        env=environment() | proxy | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        lines = iter(process.stdout or ())
        opened = re.compile(rf"opened http://127\.0\.0\.1:{port}/#/experiments/[1-9]\d*/runs\n")
        assert any(map(opened.fullmatch, lines))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}") as page:
            assert "MLflow" in page.read().decode()
        call = (
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name={NAME}"
        )
        with urllib.request.urlopen(call) as answer:
            assert json.load(answer)["experiment"]["name"] == NAME
        if ended_by == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.terminate()
        assert process.wait(timeout=60) == 130
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 5):
            pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_who_takes_the_port_of_mlflow_gets_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another program binds it after it was chosen, and answers as MLflow would."""
    port, start, asked = free_port(), subprocess.Popen, list[str]()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"experiments": [{"experiment_id": "1"}]}')

    def start_late(*command: Any, **options: Any) -> Any:
        server = http.server.HTTPServer(("127.0.0.1", port), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return start(*command, **options)

    servers: list[http.server.HTTPServer] = []
    monkeypatch.setattr(subprocess, "Popen", start_late)
    monkeypatch.setattr(run, "env", lambda: None)
    monkeypatch.setattr(run, "MLFLOW_PORT", port)
    monkeypatch.setattr(webbrowser, "open", asked.append)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        with pytest.raises(run.TargetError, match="mlflow ended with code"):
            run.mlflow()
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    assert servers and not asked
    assert "address already in use" in capfd.readouterr().err


def test_plots_get_a_page_of_their_own_only_if_vega_could_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ".dvc" / "vega"
    folder.mkdir(parents=True)
    (folder / "package-lock.json").write_text("first")
    done: list[tuple[str, ...]] = []

    def install(*command: str | Path, fix: str = "") -> None:
        done.append(tuple(map(str, command)))
        if "ci" in done[-1] and not works:
            raise run.TargetError("npm ended with code 1")
        for name in run.VEGA:
            file = folder / "node_modules" / name / "build" / f"{name}.min.js"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"load({name!r})")

    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "run", install)
    works = False
    run.install_plots()
    assert "from the network: npm ended with code 1" in capsys.readouterr().out
    assert not (folder / "page.html").exists() and not any("config" in words for words in done)
    works = True
    for expected in (2, 0):  # npm and `dvc config`, then nothing
        done.clear()
        run.install_plots()
        assert len(done) == expected
    page = (folder / "page.html").read_text("utf-8")
    assert "<script>load('vega')</script>\n<script>load('vega-lite')</script>" in page
    assert "{plot_divs}" in page and "{scripts}" not in page
