"""The targets of this project: `python run.py TARGET` or `make TARGET`, on Linux and Windows.

Input: the lock files. Output: the environment, and what a target prints. Python packages are
installed from requirements-dev.txt, with hashes, into .venv; npm packages from package-lock.json
into node_modules. They are reinstalled only if their lock has changed; .venv also if the folder was
moved. If only pyproject.toml has changed, only this project is reinstalled. Standard library only,
because it creates the environment of everything else.
"""

from __future__ import annotations  # so that an older Python can parse this file and print an error

import configparser
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
LOCK, NPM_LOCK = ROOT / "requirements-dev.txt", ROOT / "package-lock.json"
OLDEST, NEWEST = (3, 11), (3, 13)
OLDEST_NODE = 20
INSTALL_NODE = {  # command by sys.platform
    "win32": "winget install OpenJS.NodeJS.LTS",
    "darwin": "brew install node",
    "linux": "curl -fsSL https://raw.githubusercontent.com/nvm-sh/nvm/v0.40.3/install.sh | bash "
    "&& . ~/.nvm/nvm.sh && nvm install --lts",
}
NO_GIT = (
    "this folder is not a git repository (a downloaded ZIP file is not). Run in this folder:\n"
    '  git init -b main\n  git add --all\n  git commit -m "First commit"'
)

MLFLOW_PORT = 5000  # its default
# Places where the project's name, {}, occurs without a command. `{} review` is found anywhere.
NAMED = {
    "pyproject.toml": (r'^name = "{}"', r'^{} = "mlops\.cli:main"'),
    "params.yaml": (r"^  endpoint: {}$", r"^  endpoint: {}(?= )"),
    "src/digits/tracking/runs.py": (r'^EXPERIMENT = "{}"',),
    "src/mlops/azure/revisions.py": (r'^MODEL = ENVIRONMENT = "{}"',),
    "src/mlops/cli.py": (r'^    "{}",$', r'make_context\("{}"'),
    "src/mlops/jobs/job.py": (r'^EXPERIMENT = "{}"',),
    "src/mlops/jobs/worker.py": (r'^EXPERIMENT = "{}"',),
}
# Folders of packages that nothing here imports: TensorFlow's C++ headers, 290 MB, and libclang are
# for building custom operations; the others are the packages' own tests.
TESTED = ("numpy", "pandas", "pyarrow", "scipy", "skimage", "sklearn")
UNUSED = ["tensorflow/include", "clang/native", *(f"{name}/**/tests" for name in TESTED)]
REMOTES = ("main", "review")  # DVC's remotes; also the names of their containers
DISABLED = "# disabled by make storage: "  # before a line of .dvc/config.local
# Two processes share the tests; tests/support/balance.py determines their order.
PARALLEL = ("--numprocesses", "2", "--dist", "worksteal")
# Validates DVC's cache and the top level of params.yaml, then runs `dvc repro`. One process for
# all saves 0.8 s.
REPRODUCE = """
import contextlib, io, sys
from core import console, params, wings
def check():
    if wings.installed("mlops.dvc"):
        from dvc.cli import main
        from mlops import dvc
        with contextlib.redirect_stdout(io.StringIO()) as folder:
            main(["cache", "dir"])
        dvc.check_cache(cache=folder.getvalue().strip())
    values = params.load()
    params.task(values)
    params.foreign_scripts(values)
code = console.report_errors("params", check)
if code == 0:
    from dvc.cli import main
    code = main(["repro"])
sys.exit(code)
"""
VEGA = ("vega", "vega-lite", "vega-embed")  # each needs those before it
# Like PAGE_HTML in dvc_render/html.py; DVC fills in the names in braces.
PLOTS_PAGE = """
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Plots</title>
<style>
  body { font-family: system-ui, sans-serif }
  img { max-width: 45vw; height: auto }
</style>
{refresh_tag}
{scripts}</head>
<body>
{plot_divs}
</body>
</html>
"""
# Runs Azurite with a new key until standard input or Azurite ends; prints the connection string.
STORAGE = """
import pathlib, sys, threading
from azureml_emulator import storage, web
from filelock import FileLock, Timeout
folder = pathlib.Path(sys.argv[1])
folder.mkdir(mode=0o700, exist_ok=True)
try:
    with (
        FileLock(folder / "lock", timeout=0),
        storage.run_azurite(folder, 0, None, tuple(sys.argv[2:])) as store,
    ):
        print(store.connection_string, flush=True)
        ended = []
        def end():
            ended.append(sys.stdin.read())
            store.process.terminate()
        threading.Thread(target=end, daemon=True).start()
        store.process.wait()
        if not ended:
            sys.exit("storage: Azurite has ended. Run `make storage` again.")
except Timeout:
    sys.exit(f"storage: {folder}: in use. Is `make storage` running already?")
except web.EmulatorError as error:
    sys.exit(f"storage: {error}")
"""


class TargetError(Exception):
    """A target failed; the message states the reason and the fix."""


def environment() -> dict[str, str]:
    """Return the environment of child processes: .venv first in PATH, bytecode enabled."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(BIN), env.get("PATH", "")])
    env["VIRTUAL_ENV"] = str(VENV)
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # TensorFlow loads in 5 s with bytecode, 12 without
    env.pop("PYTHONPATH", None)
    for name in ("NO_PROXY", "no_proxy"):  # the lower-case one has priority
        env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1"]))
    certificates = env.get("PIP_CERT") or env.get("REQUESTS_CA_BUNDLE")
    if certificates:
        env.setdefault("SSL_CERT_FILE", certificates)  # for uv
    return env


def run(*command: str | Path, fix: str = "") -> None:
    """Run a command; raise TargetError with a fix when it fails."""
    try:
        code = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment()
        ).returncode
    except FileNotFoundError:
        raise TargetError(f"{command[0]}: not found; {fix or 'install it'}") from None
    if code:
        raise TargetError(f"{Path(command[0]).name} ended with code {code}{fix and '; ' + fix}")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes(stamp: Path, facts: dict[str, str]) -> list[str]:
    """Return the names of facts that differ from those of the last installation, in `stamp`."""
    try:
        recorded = dict(json.loads(stamp.read_text("utf-8")))
    except (OSError, TypeError, ValueError):  # missing, or of an earlier version of this file
        recorded = {}
    return [name for name, fact in facts.items() if recorded.get(name) != fact]


def check_prerequisites() -> None:
    """Raise TargetError unless Python, git and Node.js are installed in supported versions."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise TargetError(
            f"Python {sys.version_info[0]}.{sys.version_info[1]} is not supported; "
            "use Python 3.11, 3.12 or 3.13"
        )
    if shutil.which("git") is None:
        raise TargetError("git: not found; install it (https://git-scm.com)")
    if not any((folder / ".git").exists() for folder in (ROOT, *ROOT.parents)):
        raise TargetError(NO_GIT)
    install = f"Install it:\n  {INSTALL_NODE.get(sys.platform, 'https://nodejs.org')}"
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        name = "npm" if node else "node"
        raise TargetError(f"{name}: not found; Node.js {OLDEST_NODE} or newer is needed. {install}")
    shown = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    major = re.match(r"v(\d+)\.", shown)
    if not major or int(major[1]) < OLDEST_NODE:
        raise TargetError(
            f"Node.js {shown or 'of an unknown version'} ({node}) is not supported; "
            f"version {OLDEST_NODE} or newer is needed. {install}"
        )


def install_python() -> None:
    """Create .venv from the lock: install uv with pip, then everything else with uv."""
    stamp = VENV / "installed"
    facts = {
        "python": sys.version,
        "folder": str(VENV.resolve().parent),  # .venv's scripts contain it; .venv may be a link
        "lock": digest(LOCK),
        "project": digest(ROOT / "pyproject.toml"),
    }
    changed = changes(stamp, facts)
    if changed != ["project"] and changed:
        why = f" ({' and '.join(changed)} changed)" if VENV.exists() else ""
        print(f"Installing the locked Python packages into .venv{why} ...", flush=True)
        install_locked()
    if changed:
        # Installs the project's command, which runs src of this folder. The build backend is uv.
        own: list[str | Path] = ["--quiet", "--offline", "--no-deps", "--reinstall"]
        run(BIN / "uv", "pip", "install", *own, "--python", PYTHON, "--editable", ROOT)
        stamp.write_text(json.dumps(facts), "utf-8")


def install_locked() -> None:
    """Create a new .venv with the locked packages, and node_modules at the same time."""
    offline = "check that the network reaches the package index"
    shutil.rmtree(VENV, ignore_errors=True)
    # Not the Python of .venv, which may be running this file if .venv is activated.
    base = getattr(sys, "_base_executable", sys.executable)
    run(base, "-m", "venv", VENV, fix="install Python's venv module")
    uv_lock = re.search(r"^uv==.*?(?=^\S|\Z)", LOCK.read_text("utf-8"), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "uv.txt")
        first.write_text(uv_lock[0] if uv_lock else "", "utf-8")
        pip: list[str | Path] = [
            PYTHON,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
        ]
        run(*pip, "--require-hashes", "--no-deps", "-r", first, fix=offline)
    uv: list[str | Path] = [
        BIN / "uv",
        "pip",
        "sync",
        "--quiet",
        "--require-hashes",
        "--compile-bytecode",
    ]
    with ThreadPoolExecutor(1) as pool:  # npm waits for the network, uv for the processor
        npm = pool.submit(install_npm)
        run(*uv, "--python", PYTHON, LOCK, fix=offline)
        npm.result()
    for pattern in UNUSED:
        for unused in list(VENV.glob(f"**/site-packages/{pattern}")):
            shutil.rmtree(unused, ignore_errors=True)  # one folder may be inside another


def install_npm() -> None:
    """Create node_modules from the lock: data packages, fonts, the blob emulator."""
    stamp = ROOT / "node_modules" / "installed"
    facts = {"lock": digest(NPM_LOCK)}
    if not changes(stamp, facts):
        return
    print("Installing the locked npm packages into node_modules ...", flush=True)
    npm = shutil.which("npm") or "npm"
    # Install scripts are not run: no locked package needs them.
    ci = ("ci", "--ignore-scripts", "--silent")
    run(npm, *ci, fix="check that the network reaches npm's registry")
    stamp.write_text(json.dumps(facts), "utf-8")


def install_plots() -> None:
    """Let `dvc plots` write pages that contain their scripts and need no network.

    The scripts have a separate lock file, so that updating them reruns no stage. If they cannot be
    installed, nothing is configured and DVC's default page loads them from the network.
    """
    folder = ROOT / ".dvc" / "vega"
    lock, page = folder / "package-lock.json", folder / "page.html"
    if not lock.exists():
        return  # a project that uses DVC's own page
    stamp = f"<!-- {hashlib.sha256(lock.read_bytes() + PLOTS_PAGE.encode()).hexdigest()} -->"
    if page.exists() and page.read_text("utf-8").startswith(stamp):
        return
    npm = shutil.which("npm") or "npm"
    try:
        options = ("--ignore-scripts", "--silent", "--no-audit")
        run(npm, "ci", *options, "--prefix", folder, fix="run `make env` again")
    except TargetError as failure:
        print(f"The pages of `dvc plots` will load their scripts from the network: {failure}")
        return
    files = [folder / "node_modules" / name / "build" / f"{name}.min.js" for name in VEGA]
    scripts = "".join(f"<script>{file.read_text('utf-8')}</script>\n" for file in files)
    page.write_text(stamp + PLOTS_PAGE.replace("{scripts}", scripts), "utf-8")
    shutil.rmtree(folder / "node_modules")  # 47 MB
    # DVC resolves the path relative to its folder .dvc.
    run(BIN / "dvc", "config", "--local", "--quiet", "plots.html_template", "vega/page.html")


def check_history() -> None:
    """Print how to complete the history of a shallow clone: DVC would lose experiments there.

    `dvc exp run` with `--temp` or `--queue` ends with code 0, but the result is lost (DVC 3.67.1).
    Stages refuse to run there, but a stage restored from the run cache runs no code.
    """
    if (ROOT / ".git" / "shallow").exists() and "CI" not in os.environ:
        print("This clone is shallow: DVC loses experiments of --temp and --queue here. Run:")
        print("  git fetch --unshallow", flush=True)


def env() -> None:
    """Install the locked Python and npm packages."""
    check_prerequisites()
    check_history()
    install_python()
    install_npm()
    install_plots()


def repro() -> None:
    """Reproduce the pipeline and show the metrics."""
    env()
    run(PYTHON, "-c", REPRODUCE)
    show_metrics()


def show_metrics(root: Path | None = None) -> None:
    """Print the summary metrics, one row per source."""
    path = (root or ROOT) / "data" / "evaluation" / "metrics.json"
    figures = json.loads(path.read_text("utf-8"))
    print(f"\n{'test digits':22}{'accuracy':>10}{'95 % interval':>20}{'calibration error':>20}")
    for source, row in figures.items():
        interval = f"{row['accuracy_low']:.4f} - {row['accuracy_high']:.4f}"
        print(f"{source:22}{row['accuracy']:>10.4f}{interval:>20}{row['calibration_error']:>20.4f}")
    if any(source.endswith("_rendered") for source in figures):
        print("(rendered: drawn from fonts by this project, not by hand; see data/README.md)")


def measure(name: str) -> None:
    """Run a module of tests/benchmarks with the remaining arguments."""
    run(PYTHON, Path("tests", "benchmarks"), name, *sys.argv[2:])


def bench() -> None:
    """Time our training and the convnet of the Keras documentation: forty minutes."""
    repro()
    measure("bench")


def bench_serve() -> None:
    """Time the endpoint, a constant answer, and MLflow's server: five minutes."""
    repro()
    measure("bench_serve")


def bench_monitor() -> None:
    """Time stage monitor on a million requests: a minute."""
    env()
    measure("bench_monitor")


def bench_workers() -> None:
    """Time a training step on one and on two machines over loopback: a minute."""
    env()
    measure("bench_workers")


def bench_review() -> None:
    """Time a review from the push to its report, with act: ten minutes."""
    repro()
    measure("bench_review")


def bench_photos() -> None:
    """Measure the accuracy on generated photographs: ten minutes."""
    repro()
    measure("photos")


def drift_power() -> None:
    """Measure the power and the false alarm rate of the drift test: a minute."""
    repro()
    measure("power")


def rendering_realism() -> None:
    """Score real handwriting with a model trained on rendered digits: SCRIPT HANDWRITING.npz."""
    env()
    measure("realism")


def noise() -> None:
    """Train with five seeds and store the variance of the metrics in data/noise.json."""
    env()
    run(BIN / "dvc", "repro", "prepare")
    measure("seed_variance")


def mlflow() -> None:
    """Open MLflow's page of all runs, including experiments, until Ctrl-C."""
    env()
    end_by_signals()
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'data' / 'mlflow.db'}"
    if store.startswith("http"):
        print(f"Runs are logged to {store}. Open its own page instead.")
        return
    port = MLFLOW_PORT
    with socket.socket() as probe:  # Flask and macOS's AirPlay listen on 5000, too
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    place = ["--host", "127.0.0.1", "--port", str(port)]
    command = [BIN / "mlflow", "server", "--backend-store-uri", store, "--workers", "1", *place]
    env_ = environment() | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=env_, stderr=subprocess.PIPE, text=True
    )
    listening = threading.Event()

    def show() -> None:
        """Print MLflow's output; set `listening` once it has the port, which may be taken."""
        assert process.stderr
        with process.stderr:
            for line in process.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                if f"running on {address} " in line:
                    listening.set()

    showing = threading.Thread(target=show, daemon=True)
    showing.start()
    search = json.dumps({"max_results": 1, "order_by": ["last_update_time DESC"]}).encode()
    query = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        search,
        {"Content-Type": "application/json"},
    )
    try:
        while process.poll() is None and not listening.wait(0.2):
            pass
        while process.poll() is None:
            # Without a proxy.
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with (
                contextlib.suppress(OSError, ValueError, KeyError),
                direct.open(query, timeout=5) as answer,
            ):
                (newest,) = json.load(answer)["experiments"]
                webbrowser.open(f"{address}/#/experiments/{newest['experiment_id']}/runs")
                break
            time.sleep(0.2)
        if process.wait() or not listening.is_set():  # it exits with 0 if the port is taken
            raise TargetError(f"mlflow ended with code {process.returncode}; see above")
    finally:
        process.terminate()
        process.wait()
        showing.join()


def notebooks() -> None:
    """Write src/notebooks as .ipynb beside the scripts, for Jupyter and Azure ML."""
    env()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    options = ["--to", "ipynb", "--update-metadata", json.dumps({"kernelspec": kernel})]
    scripts = sorted((ROOT / "src" / "notebooks").glob("*.py"))
    run(BIN / "jupytext", "--quiet", *options, *scripts)
    for script in scripts:
        print(script.with_suffix(".ipynb").relative_to(ROOT))


def lint() -> None:
    """Run the linters, the type checker, and the checks of dependencies and sizes."""
    env()
    checks: list[tuple[str | Path, ...]] = [
        (BIN / "mypy",),
        (BIN / "ruff", "check", "."),
        (BIN / "ruff", "format", "--check", "."),
        (BIN / "lint-imports", "--no-cache"),
        (BIN / "deptry", "src"),
        (PYTHON, Path("tests", "budget.py")),
    ]
    with ThreadPoolExecutor(2) as pool:  # mypy takes about as long as the others together
        list(pool.map(lambda command: run(*command), checks))


def check() -> None:
    """Run `lint` and the fast tests."""
    lint()
    run(BIN / "pytest", *PARALLEL, "-m", "not slow and not prove")


def test() -> None:
    """Run `lint` and all tests except the longest."""
    lint()
    run(BIN / "pytest", *PARALLEL, "-m", "not prove")


def prove() -> None:
    """Run all tests, with the production model and sampled faults: about two hours."""
    lint()
    repro()
    run(BIN / "pytest", *PARALLEL, *sys.argv[2:])  # for instance --all-cases, for hours


def demo() -> None:
    """Demonstrate the life cycle, from training to retraining after drift."""
    env()
    run(PYTHON, Path("tests", "workflows", "demo.py"), *sys.argv[2:])


def read_settings(local: Path) -> str:
    """Return DVC's settings of this clone, without the additions of a killed `make storage`."""
    try:
        text = local.read_bytes().decode() if local.exists() else ""
        configparser.RawConfigParser(strict=False).read_string(text)
    except (OSError, ValueError, configparser.Error) as error:
        reason = " ".join(str(error).split())
        raise TargetError(f"{local}: {reason}. Correct or delete this file") from None
    return re.sub(r".*AccountName=devstoreaccount1;.*\n", "", text).replace(DISABLED, "")


def with_storage(text: str, connection: str) -> str:
    """Return DVC's settings with a connection string for each remote; disable existing ones."""
    line, section, lines, missing = f"    connection_string = {connection}\n", "", [], set(REMOTES)
    for known in text.splitlines(keepends=True):
        if known.lstrip().startswith("["):
            found = re.match(r"""\s*\[\s*['"]?remote "(.+?)"['"]?\s*\]""", known)
            section = found[1] if found else ""
        own = section in REMOTES and re.match(r"\s*connection_string\s*=", known)
        lines.append(DISABLED + known if own else known)
        if section in missing:
            missing.remove(section)
            lines.append(line)
    lines += ["\n"] if text and not text.endswith("\n") else []
    for remote in REMOTES:
        lines += [f"['remote \"{remote}\"']\n", line] if remote in missing else []
    return "".join(lines)


def write_settings(local: Path, text: str) -> None:
    """Write DVC's settings of this clone, readable by the owner only; delete an empty file."""
    partial = local.with_name(f"{local.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_bytes(text.encode())
    partial.replace(local)
    if not text:
        local.unlink()


def screenshots() -> None:
    """Make the pictures of the documentation in .github/images: five minutes."""
    repro()
    run(PYTHON, Path("tests", "support", "screenshots.py"))


def end_by_signals() -> None:
    """Let SIGTERM and SIGHUP end a server as Ctrl-C does, unless ignored, as by `nohup`."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, signal.SIGTERM)
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def storage() -> None:
    """Start the blob emulator as DVC's remotes, until Ctrl-C."""
    env()
    end_by_signals()
    local = ROOT / ".dvc" / "config.local"
    before = read_settings(local)
    with subprocess.Popen(
        [PYTHON, "-c", STORAGE, ROOT / ".azurite", *REMOTES],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C ends it by closing its input
    ) as process:
        assert process.stdin
        assert process.stdout
        connection = process.stdout.readline().strip()
        if not connection:
            raise TargetError("the blob emulator did not start; see above")
        during = with_storage(before, connection)
        try:
            write_settings(local, during)
            print("dvc push and dvc pull use it until Ctrl-C (.dvc/config.local).", flush=True)
            if urllib.request.getproxies() and not urllib.request.proxy_bypass("127.0.0.1"):
                print("First set NO_PROXY=127.0.0.1 there: proxies cannot reach it.", flush=True)
            if process.wait():
                raise TargetError("the blob emulator ended; see above")
        finally:
            try:
                as_written = local.exists() and local.read_bytes() == during.encode()
                write_settings(local, before if as_written else read_settings(local))
            finally:
                process.stdin.close()
                process.wait()


def rename() -> None:
    """Rename the project, its command and the assets that it registers: NAME=letters."""
    old = re.search(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    new = sys.argv[2] if len(sys.argv) > 2 else ""
    if not old or not re.fullmatch(r"[a-z][a-z0-9-]{2,11}", new):
        raise TargetError(
            "expected a name of 3 to 12 characters, a-z, 0-9 and -, that begins with a letter; "
            f"found {new!r}. Type:\n"
            "  make rename NAME=letters   (or: python run.py rename letters)"
        )
    tables = [path.read_text("utf-8") for path in ROOT.glob("src/*/commands.py")]
    commands = {"COMMAND", *re.findall(r'Command\(\s*"(\w+)"', "".join(tables))}
    beside = rf"(?<![\w-]){{}}(?= (?:{'|'.join(sorted(commands))}|{{cmd_name}})(?![\w-]))"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    changed: dict[Path, str] = {}
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = before = (ROOT / name).read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue  # deleted, or not text
        for pattern in (beside, *NAMED.get(name, ())):
            found = re.compile(pattern.replace("{}", re.escape(old[1]), 1), re.M)
            text = found.sub(lambda match: match[0].replace(old[1], new, 1), text)
        if name == "pyproject.toml":  # a longer name makes some lines longer
            longest = 100 + max(0, len(new) - len("digits"))
            text = re.sub(r"(?<=max-line-length = )\d+", str(longest), text)
        if name == "README.md":
            text = re.sub(rf"^# {old[1].title()}\b", f"# {new.title()}", text)
        if text != before:
            changed[ROOT / name] = text
    for path, text in changed.items():
        path.write_bytes(text.encode())
    print(
        f"Renamed {old[1]} to {new} in {len(changed)} files. Packages below src keep their names.\n"
        "Next: make env, which installs the command; ruff format .; dvc repro (the same model)."
    )


def lock() -> None:
    """Resolve pyproject.toml and package.json, and write the lock files."""
    env()
    resolve: list[str | Path] = [BIN / "uv", "pip", "compile", "--quiet", "--universal"]
    # The same version of a package for all versions of Python, if possible.
    resolve += ["--fork-strategy", "fewest"]
    resolve += ["--generate-hashes", "--no-header", "--no-annotate", "pyproject.toml"]
    resolve += sys.argv[2:]  # for instance --upgrade, or --upgrade-package NAME
    stages: list[str | Path] = ["--extra", "stages"]
    run(*resolve, *stages, "--extra", "mlops", "--group", "dev", "--output-file", LOCK.name)
    for name, extra in (("requirements.txt", stages), ("requirements-serve.txt", [])):
        run(*resolve, *extra, "--constraint", LOCK.name, "--output-file", name)
    action = ROOT / ".github" / "actions" / "review"
    small = [argument for argument in resolve if argument != "pyproject.toml"]
    small += [action / "requirements.in", "--constraint", LOCK.name]
    run(*small, "--output-file", action / "requirements.txt")
    npm: list[str | Path] = [shutil.which("npm") or "npm", "install", "--package-lock-only"]
    npm += ["--silent", "--omit-lockfile-registry-resolved"]
    run(*npm)
    run(*npm, "--prefix", ROOT / ".dvc" / "vega")


def sbom() -> None:
    """Write sbom.json, the bill of materials (CycloneDX) of the endpoint."""
    env()
    # Lists the lock's packages, versions and hashes. The hidden warning: it lists no dependencies.
    python: list[str | Path] = [PYTHON, "-W", "ignore", "-m", "cyclonedx_py", "requirements"]
    options = ["--pyproject", "pyproject.toml", "--output-reproducible"]
    run(*python, "requirements-serve.txt", *options, "--output-file", "sbom.json")
    print("sbom.json")


def help_() -> None:
    """List the targets."""
    for name, target in TARGETS.items():
        print(f"make {name:18} {(target.__doc__ or '').splitlines()[0]}")


TARGETS = {
    "repro": repro,
    "test": test,
    "check": check,
    "prove": prove,
    "demo": demo,
    "lint": lint,
    "bench": bench,
    "bench-serve": bench_serve,
    "bench-monitor": bench_monitor,
    "bench-workers": bench_workers,
    "bench-review": bench_review,
    "bench-photos": bench_photos,
    "drift-power": drift_power,
    "rendering-realism": rendering_realism,
    "noise": noise,
    "mlflow": mlflow,
    "notebooks": notebooks,
    "screenshots": screenshots,
    "storage": storage,
    "env": env,
    "lock": lock,
    "sbom": sbom,
    "rename": rename,
    "help": help_,
}


def main() -> int:
    """Run the target named on the command line; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Escape characters that the console cannot show.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    name = sys.argv[1] if len(sys.argv) > 1 else "help"
    if name not in TARGETS:
        print(f"run.py: unknown target {name}. Targets: {', '.join(TARGETS)}", file=sys.stderr)
        return 1
    try:
        TARGETS[name]()
    except TargetError as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return 1
    except OSError as failure:
        print(f"{name}: {failure}. Correct this and run again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
