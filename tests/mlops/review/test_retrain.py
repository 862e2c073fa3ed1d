"""A retraining: what stops it leaves everything as it was; what it changes is what it says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import frozen
import pytest
from conftest import NAME, Project, environment, random_digits

from core.dataset import write_csv
from core.errors import DigitsError
from mlops import dvc
from mlops.cli import call
from mlops.review import retrain
from mlops.review.snapshot import mapping

TEXT = frozen.text()
LABELLED = Path("data/labelled")
PIPELINE = """\
stages:
  train: {cmd: python train.py, params: [prepare.foreign_share], outs: [data/model]}
"""
TRAIN = """\
# A training that ends a second after Ctrl-C, as one that is amid of an epoch; the first is short.
import signal
import sys
import time
from pathlib import Path


def stop(*_):
    time.sleep(1)
    sys.exit("the training has ended")


if "foreign_share: 0.0 " not in Path("params.yaml").read_text():
    signal.signal(signal.SIGINT, stop)
    print("the training has begun", flush=True)
    signal.pause()
Path("data/model").write_text("model")
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A repository with params.yaml and no labels yet; what DVC is told is written down."""
    project = Project(tmp_path / "work")
    (project.root / LABELLED).mkdir(parents=True)
    for name, text in (("params.yaml", TEXT), ("dvc.lock", "schema: '2.0'\nstages: {}\n")):
        (project.root / name).write_text(text, "utf-8")
    monkeypatch.chdir(project.root)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    (project.root / LABELLED / ".gitignore").touch()
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "main")
    return project


def ask(monkeypatch: pytest.MonkeyPatch, fail: str) -> None:
    """Let an emulator of DVC do what `dvc add` and `dvc repro` leave, or fail at one of them."""

    def run(*arguments: str) -> None:
        for path in arguments[2:]:
            Path(f"{path}.dvc").write_text("outs")
        (LABELLED / ".gitignore").write_text("/*.csv\n")
        if fail == "add":
            raise DigitsError("dvc add failed")

    def repro() -> dvc.Run:
        Path("dvc.lock").write_text("half: done\n")
        if fail == "Ctrl-C":
            raise KeyboardInterrupt
        return dvc.Run(failed="stage train" if fail == "repro" else "")

    monkeypatch.setattr(dvc, "run", run)
    monkeypatch.setattr(dvc, "repro", repro)
    monkeypatch.setattr(dvc, "checkout", lambda *options: None)


@pytest.mark.parametrize("fail", ["add", "repro", "Ctrl-C"])
def test_what_fails_leaves_everything_as_it_was(
    work: Project, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    write_csv(LABELLED / "devanagari_20261124.csv", random_digits(20))
    ask(monkeypatch, fail)
    expected = KeyboardInterrupt if fail == "Ctrl-C" else DigitsError
    with pytest.raises(expected, match=None if fail == "Ctrl-C" else f"dvc {fail} failed"):
        call("retrain")
    assert work.git("status", "--porcelain") == "?? data/labelled/devanagari_20261124.csv\n"
    assert Path("params.yaml").read_text("utf-8") == TEXT


def test_a_setting_that_params_lack_is_named(
    work: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.edit("params.yaml", "{prepare.foreign_share: 0.07}", "{prepare.nothing: 0.07}")
    work.git("commit", "--quiet", "--all", "--message", "A wrong name")
    write_csv(LABELLED / "devanagari_20261124.csv", random_digits(20))
    ask(monkeypatch, "")
    with pytest.raises(DigitsError, match=r"params\.yaml: has no line for prepare\.nothing of"):
        call("retrain")
    assert work.git("status", "--porcelain") == "?? data/labelled/devanagari_20261124.csv\n"


@pytest.mark.prove
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent to a group of processes")
def test_ctrl_c_waits_until_dvc_has_ended(work: Project) -> None:
    (work.root / "dvc.yaml").write_text(PIPELINE)
    (work.root / "train.py").write_text(TRAIN)
    work.dvc("init", "--quiet")
    work.dvc("repro", "--quiet")
    work.git("add", "--all")
    work.git("commit", "--quiet", "--message", "A pipeline")
    write_csv(LABELLED / "devanagari_20261124.csv", random_digits(20))
    with subprocess.Popen(
        [NAME, "retrain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        assert process.stdout
        said = ""
        while "the training has begun" not in said:
            said += (line := process.stdout.readline())
            assert line, said
        os.killpg(process.pid, signal.SIGINT)
        said += process.stdout.read()  # to its end, which an orphan would put off
    assert process.returncode == 130, said
    assert "the training has ended" in said
    assert "failed to reproduce 'train'" in said  # by DVC, which was not killed
    assert work.git("branch", "--show-current") == "main\n"
    assert work.git("for-each-ref", "refs/exps/exec", "refs/exps/stash") == ""
    assert work.git("status", "--porcelain") == "?? data/labelled/devanagari_20261124.csv\n"
    assert Path("data/model").read_text() == "model"
    assert "up to date" in work.dvc("status")


@pytest.mark.prove
def test_an_experiment_that_fails_leaves_the_model_too(project: Project) -> None:
    project.edit("params.yaml", "{prepare.foreign_share: 0.07}", "{train.batch_size: 100000}")
    project.git("commit", "--quiet", "--all", "--message", "A batch that is too large")
    production = project.root / "data" / "foreign" / "devanagari_production.csv"
    labels = project.root / LABELLED / "devanagari_week1.csv"
    labels.write_bytes(production.read_bytes())
    told = project.run(NAME, "retrain", code=1)
    assert "all changes were reverted" in told
    assert project.git("status", "--porcelain") == "?? data/labelled/devanagari_week1.csv\n"
    assert labels.read_bytes() == production.read_bytes()
    labels.unlink()
    assert "Data and pipelines are up to date" in project.dvc("status")


def test_without_labels_there_is_nothing_to_retrain_on(work: Project) -> None:
    with pytest.raises(DigitsError, match="has no labelled digits; `digits monitor --labelled"):
        call("retrain")


def test_labels_that_are_known_already_are_told(
    work: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(LABELLED / "mnist_20261124.csv", random_digits(20))
    ask(monkeypatch, "")
    dvc.run("add", "--quiet", "data/labelled/mnist_20261124.csv")
    work.git("add", "--all")
    work.git("commit", "--quiet", "--message", "Labels")
    with pytest.raises(DigitsError, match="has no new labelled digits"):
        call("retrain")
    assert work.git("status", "--porcelain") == ""


def test_a_script_that_params_lack_stops_it(work: Project) -> None:
    write_csv(LABELLED / "klingon_20261124.csv", random_digits(20))
    with pytest.raises(DigitsError, match=r"klingon_20261124\.csv: the script klingon is not in"):
        call("retrain")
    assert work.git("status", "--porcelain") == "?? data/labelled/klingon_20261124.csv\n"


def test_damaged_labels_stop_it(work: Project) -> None:
    path = LABELLED / "japanese_20261124.csv"
    write_csv(path, random_digits(20))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DigitsError, match=r"japanese_20261124\.csv:21: expected 785 columns"):
        call("retrain")


def test_ones_own_changes_are_not_mixed_in(work: Project) -> None:
    write_csv(LABELLED / "japanese_20261124.csv", random_digits(20))
    (work.root / "dvc.lock").write_text("mine\n")
    with pytest.raises(DigitsError, match=r"dvc\.lock: is not committed"):
        call("retrain")


def test_values_change_in_their_place() -> None:
    settings: dict[str, bool | int | float | str]
    settings = {"prepare.foreign_share": 0.125, "epochs": 3, "azure.strategy": "in_place"}
    text = retrain.rewrite(TEXT, settings)
    expected = mapping(TEXT)
    expected["prepare"]["foreign_share"] = 0.125
    expected["epochs"] = 3
    expected["azure"]["strategy"] = "in_place"
    assert mapping(text) == expected
    changed = list(zip(TEXT.splitlines(), text.splitlines(), strict=True))
    changed = [pair for pair in changed if pair[0] != pair[1]]
    assert len(changed) == 3
    assert changed[1][1].partition("#")[2] == changed[1][0].partition("#")[2]  # its comment
