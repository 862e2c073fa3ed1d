"""The same commit gives the same bytes: on one core or two, in a clone, after a kill.

Sampled: what imitates other machines is set several at a time, so that three trainings have all of
it, and one core has one thread; --all-cases takes each alone.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import frozen
import pytest
import yaml
from conftest import ROOT, Project, copy_tracked, environment

pytestmark = pytest.mark.slow
ONE_CORE = ("taskset", "--cpu-list", "0")
needs_taskset = pytest.mark.skipif(not shutil.which("taskset"), reason="needs Linux's taskset")
FORCED = ("dvc", "repro", "--force", "--no-run-cache")
FOLDERS = {
    "mnist": "data/mnist",
    "prepare": "data/prepared",
    "train": "data/model",
    "evaluate": "data/evaluation",
    "package": "data/package",
    "simulate": "data/production",
}
SCRIPTS = dict(frozen.values()["foreign"])
STAGES = [*FOLDERS, *(f"foreign@{script}" for script in SCRIPTS)]
DEADLINE = 120  # seconds
ALL_CASES = [pytest.mark.prove, pytest.mark.all_cases]


def assert_same(project: Project, expected: bytes) -> None:
    assert (project.root / "dvc.lock").read_bytes() == expected
    assert project.git("status", "--porcelain") == ""
    assert project.dvc("data", "status", "--json").strip() == "{}"


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        pytest.param(
            ONE_CORE,
            "1",
            marks=[needs_taskset, pytest.mark.prove(minutes=2)],
            id="one core and one thread",
        ),
        pytest.param(ONE_CORE, "2", marks=[needs_taskset, *ALL_CASES], id="one core"),
        pytest.param((), "1", marks=ALL_CASES, id="one thread"),
        pytest.param((), "2", marks=ALL_CASES, id="two threads"),
    ],
)
def test_lock_is_the_same_on_one_core_or_two(
    project: Project, launcher: tuple[str, ...], threads: str
) -> None:
    lock = project.root / "dvc.lock"
    expected = lock.read_bytes()
    lock.unlink()
    output = project.run(*launcher, *FORCED, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads)
    stages = {"mnist", "prepare", "train", "evaluate", "package", "simulate", "monitor"}
    assert stages <= set(project.stages_run(output))
    assert_same(project, expected)


MACHINES = {
    "newer processor": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"},
    "without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "old C library": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX512F,-FMA,-FMA4,-ERMS"},
    "1 thread": {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "2"},
    "4 threads": {"OMP_NUM_THREADS": "4", "TF_NUM_INTRAOP_THREADS": "4"},
    "4 operations at once": {"TF_NUM_INTEROP_THREADS": "4"},
    "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "NumPy with AVX512": {"NPY_DISABLE_CPU_FEATURES": ""},
    "NumPy without AVX2": {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX"},
    "other hashes": {"PYTHONHASHSEED": "7"},
}
SAMPLE = ("newer processor",)
TOGETHER = {
    "many threads": ("4 threads", "4 operations at once", "SkylakeX", "NumPy with AVX512"),
    "one thread": ("1 thread", "without oneDNN", "Prescott", "NumPy without AVX2", "other hashes"),
    "old C library": ("old C library", "2 threads"),
}


@pytest.mark.parametrize(
    "machine", [pytest.param(m, marks=() if m in SAMPLE else ALL_CASES) for m in MACHINES]
)
def test_training_is_the_same_on_imitated_machines(project: Project, machine: str) -> None:
    assert_training_is_the_same(project, MACHINES[machine])


@pytest.mark.prove
@pytest.mark.parametrize("name", TOGETHER)
def test_training_is_the_same_on_several_at_a_time(project: Project, name: str) -> None:
    settings = [MACHINES[machine] for machine in TOGETHER[name]]
    together = {key: value for one in settings for key, value in one.items()}
    assert len(together) == sum(map(len, settings))  # none takes the place of another
    assert_training_is_the_same(project, together)


def test_every_imitated_machine_is_in_the_sample() -> None:
    assert {*SAMPLE, *(name for some in TOGETHER.values() for name in some)} == set(MACHINES)


def assert_training_is_the_same(project: Project, settings: dict[str, Any]) -> None:
    expected = (project.root / "dvc.lock").read_bytes()
    project.run(*FORCED, "--single-item", "train", **settings)
    assert_same(project, expected)


@pytest.mark.prove
def test_a_clone_with_autocrlf_has_the_same_data(project: Project, tmp_path: Path) -> None:
    clone = project.clone(tmp_path / "clone", "--config", "core.autocrlf=true")
    cache = f"[cache]\n    dir = {project.root}/.dvc/cache\n"
    (clone.root / ".dvc" / "config.local").write_text(cache)
    clone.dvc("checkout")
    assert clone.dvc("status", "--json").strip() == "{}"
    assert_same(clone, (project.root / "dvc.lock").read_bytes())


def kill_while_it_writes(project: Project, stage: str) -> str:
    """Start `dvc repro`; kill it and all it started once the stage's first file appears.

    Returns what it has printed before that stage began.
    """
    folder = project.root / FOLDERS.get(stage, "data/foreign")
    pattern = f"{stage.partition('@')[2]}*"
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=project.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        # DVC has deleted the stage's outputs before it says this.
        said = ""
        for line in process.stdout or ():
            if line.startswith(f"Running stage '{stage}'"):
                break
            said += line
        else:
            raise AssertionError(f"it ended without stage {stage}:\n{said}")
        end = time.monotonic() + DEADLINE
        while not any(path.is_file() for path in folder.rglob(pattern) if path.name[0] != "."):
            assert process.poll() is None, "it ended before the stage wrote anything"
            assert time.monotonic() < end, "the stage wrote nothing"
        return said
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.prove(minutes=4)
def test_after_a_kill_in_each_stage_repro_completes_with_the_same_lock(
    project: Project, tmp_path: Path
) -> None:
    """Each `dvc repro` runs the stage in which the last one was killed, and is killed in the next.

    What a killed stage left behind would be in the files of the end.
    """
    expected = (project.root / "dvc.lock").read_bytes()
    clone = project.clone(tmp_path / "clone")
    shutil.copytree(project.root / "data" / "small", clone.root / "data" / "small")
    (clone.root / "node_modules").symlink_to(ROOT / "node_modules")
    (clone.root / "dvc.lock").unlink()
    planned = project.stages_run(project.dvc("repro", "--dry", "--force"))
    order = [stage for stage in planned if stage in STAGES]
    assert set(order) == set(STAGES)
    killed: list[str] = []
    for stage in order:
        assert clone.stages_run(kill_while_it_writes(clone, stage)) == killed
        killed = [stage]
    assert clone.stages_run(clone.dvc("repro"))[:1] == killed
    assert_same(clone, expected)
    assert not list(clone.root.rglob("*.partial"))


def texts(path: Path) -> Iterator[str]:
    """Yield the text of a file, or of each member of a zip (.keras); nothing where it is none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    else:
        contents = [path.read_bytes()]
    for content in contents:
        with suppress(UnicodeDecodeError):
            yield content.decode("utf-8")


def test_no_output_names_the_machine_or_the_day(reproduced: Project) -> None:
    names = [str(reproduced.root), str(ROOT), socket.gethostname(), date.today().isoformat()]
    words = r"(?<!\w)(" + "|".join(map(re.escape, names)) + r")(?!\w)"
    listing = yaml.safe_load((reproduced.root / "dvc.lock").read_text("utf-8"))["stages"]
    outs = [reproduced.root / out["path"] for stage in listing.values() for out in stage["outs"]]
    files = [path for out in outs for path in ([out] if out.is_file() else out.rglob("*"))]
    assert {"MLmodel", "conda.yaml", "metrics.json", "model.keras"} <= {f.name for f in files}
    for path in filter(Path.is_file, files):
        for text in texts(path):
            assert not re.search(words, text), path


@pytest.mark.prove(minutes=8)
@needs_taskset
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="exact for Python 3.11 only")
def test_production_lock_is_reproduced(tmp_path: Path) -> None:
    copy_tracked(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")  # dvc.lock has its values
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    project = Project(tmp_path)
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "The production configuration")
    expected = (tmp_path / "dvc.lock").read_bytes()
    project.run(*ONE_CORE, *FORCED)
    assert_same(project, expected)
