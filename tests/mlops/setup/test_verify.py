"""`digits verify SERVICE NAME` runs the program of tests/benchmarks with that name."""

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.__main__ import NAMES
from conftest import ROOT, environment, python

from mlops.cli import exit_code

PROGRAM = """
import sys
print(*sys.argv[1:])
sys.exit(3)
"""
INTERRUPTED = """
import os, signal, sys
try:
    os.kill(os.getpid(), signal.{name})
    signal.pause()
finally:
    print("deleted", flush=True)
"""


def place(folder: Path, text: str) -> None:
    program = folder / "tests" / "benchmarks" / "__main__.py"
    program.parent.mkdir(parents=True)
    program.write_text(text)


@pytest.mark.parametrize("service", ["azure", "github"])
def test_it_runs_the_program_and_ends_as_it_does(
    service: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place(tmp_path, PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    name = f"verify_{service}"
    for words in ([], ["--yes"]):
        with pytest.raises(SystemExit) as end:
            exit_code(["verify", service, "mine", *words])
        assert end.value.code == 3
        assert capsys.readouterr().out.split() == [name, "mine", *words]
    assert name in NAMES


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_program_that_is_interrupted_cleans_up(name: str, tmp_path: Path) -> None:
    place(tmp_path, INTERRUPTED.format(name=name))
    done = subprocess.run(
        python("import sys; from mlops.cli import main; sys.exit(main())", "verify", "azure", "a"),
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("deleted\n", 130), done.stderr


def test_an_unknown_service_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["verify", "gitlab", "mine"]) == 2
    assert "'gitlab' is not one of 'azure', 'github'" in capsys.readouterr().err
