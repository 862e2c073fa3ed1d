"""`digits review` on a small project of histories, and on damaged input: no pipeline is run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NAME, ROOT, Project, environment

from core.errors import DigitsError
from mlops import dvc
from mlops.cli import call
from mlops.review import render, report, schema
from mlops.review.gate import Rule, judge
from mlops.review.schema import Report

PARAMS = """
epochs: 3
classes: ["0", "1"]
review:
  stage_seconds: {train: 100}
  retrain: {propose: true, set: {}}
  gate:
    mnist:
      accuracy: {direction: higher, floor: 0.99, tolerance: 0.0015}
"""
LOCK = """
schema: '2.0'
stages:
  prepare:
    cmd: prepare
    outs:
    - {path: data/prepared/training.npz, md5: '1111', size: 10}
    - {path: data/prepared/test.npz, md5: '2222', size: 10}
  train:
    cmd: train
    deps:
    - {path: data/raw.csv, md5: 'aaaa1111', size: 10}
    params: {params.yaml: {epochs: 3}}
    outs:
    - {path: data/model/model.keras, md5: bbbb, size: 5}
"""
TRAINED = {
    "epochs": 3,
    "classes": ["0", "1"],
    "data": {"training.npz": "1111", "test.npz": "2222"},
}
CLASSES = "source,class,accuracy,count\nmnist,0,0.99,1000\njapanese_rendered,1,0.5,1000\n"
CURVES = "epoch,loss,validation_accuracy,validation_loss\n1,1,0.9,0.3\n2,1,0.95,0.2\n3,1,0.99,0.1\n"


def metrics(accuracy: float) -> str:
    """Return metrics.json, the interval as wide as 10,000 digits have it."""
    low, high = accuracy - 0.0015, accuracy + 0.0015
    row = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    return json.dumps({"mnist": row, "japanese_rendered": {"accuracy": 0.2}})


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A repository with what a review reads, one commit, and a branch that is checked out."""
    project = Project(tmp_path / "small")
    files = {
        "params.yaml": PARAMS,
        "dvc.lock": LOCK,
        "data/evaluation/metrics.json": metrics(0.9950),
        "data/evaluation/per_class.csv": CLASSES,
        "data/model/curves.csv": CURVES,
    }
    for name, text in files.items():
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / name).write_text(text, "utf-8")
    project.git("init", "--quiet", "--initial-branch", "main")
    commit(project, "first")
    project.git("switch", "--quiet", "--create", "ändern-数字")
    monkeypatch.chdir(project.root)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(dvc, "status", lambda cached: ([], []))
    return project


def commit(project: Project, message: str) -> None:
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", message)


def on_main(project: Project, name: str, text: str) -> None:
    """Commit a file on main, from where the branch then starts."""
    change(project, name, text)
    commit(project, name)
    project.git("branch", "--force", "main")


def reviewed(revision: str | None = None) -> tuple[Report, str]:
    found = report.review(revision, False, "https://example.org/run/1")
    assert schema.parse(schema.dump(found).encode()).gate == found.gate
    return found, render.write(found)


def change(project: Project, name: str, text: str) -> None:
    (project.root / name).write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("accuracy", "verdict", "failed"),
    [
        (0.9950, "same", ""),
        (0.9952, "noise", ""),
        (0.9990, "better", ""),
        (0.9930, "noise", "worse by 0.002"),
        (0.9800, "worse", "below its floor 0.99"),
        (float("nan"), "unknown", "is nan"),
    ],
)
def test_verdict_and_gate(small: Project, accuracy: float, verdict: str, failed: str) -> None:
    change(small, "data/evaluation/metrics.json", metrics(accuracy))
    found, text = reviewed()
    assert found.verdict == verdict
    assert failed in " ".join(found.gate.reasons)
    assert bool(failed) == bool(found.gate.reasons)
    assert ("gate failed" in text.splitlines()[0]) == bool(failed)
    assert "japanese (rendered)" in text
    intervals = "Without data/noise.json ± comes from the 95 % intervals" in text
    assert intervals != (failed == "is nan")


def test_the_noise_of_seeds_is_used(small: Project) -> None:
    figures = {"mean": 0.995, "deviation": 0.0001, "least": 0.994, "most": 0.996}
    noise = {"seeds": [1, 2, 3, 4, 5], "metrics": {"mnist": {"accuracy": figures}}}
    on_main(small, "data/noise.json", json.dumps(noise | {"trained": TRAINED}))
    change(small, "data/evaluation/metrics.json", metrics(0.9954))
    assert reviewed()[0].verdict == "better"
    change(small, "data/evaluation/metrics.json", metrics(0.9953))
    # t(0.975, 4) sqrt(2) s = 2.776 * 1.414 * 0.0001 = 0.00039
    assert reviewed()[0].verdict == "noise"


def test_production_is_compared_but_no_part_of_the_gate(small: Project) -> None:
    def produced(accuracy: float, alarms: int) -> str:
        interval = {"accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01}
        row = {"accuracy": accuracy, "estimation_error": 0.04, "alarms": alarms} | interval
        return json.dumps({"production": row})

    figures = {"mean": 0.995, "deviation": 0.0001, "least": 0.994, "most": 0.996}
    noise = {"seeds": [1, 2], "metrics": {"mnist": {"accuracy": figures}}, "trained": TRAINED}
    on_main(small, "data/noise.json", json.dumps(noise))
    (small.root / "data" / "monitoring").mkdir()
    change(small, "data/monitoring/metrics.json", produced(0.9, 1))
    _, text = reviewed()
    assert "| production accuracy | – | 0.9 | – | not known |  |  |" in text
    commit(small, "production")
    change(small, "data/monitoring/metrics.json", produced(0.8, 3))
    found, text = reviewed("HEAD")
    assert "| production accuracy | 0.9 | 0.8 | -0.1 | 🔴 worse (±0.014142) |  |  |" in text
    assert "| production alarms | 1 | 3 | +2 | not known |  |  |" in text
    assert "accuracy low" not in text
    assert "Where that file lacks a metric, ± comes from the 95 % intervals" in text
    assert (found.verdict, found.gate.reasons) == ("same", [])
    change(small, "data/monitoring/metrics.json", "{")
    found, text = reviewed("HEAD")
    assert "data/monitoring/metrics.json is damaged in the working tree" in text
    assert found.verdict == "same"


def test_what_explains_it_is_told(small: Project) -> None:
    change(small, "params.yaml", PARAMS.replace("epochs: 3", "epochs: 4"))
    change(small, "dvc.lock", LOCK.replace("epochs: 3", "epochs: 4").replace("aaaa", "cccc"))
    change(small, "data/evaluation/per_class.csv", CLASSES.replace("0.5,1000", "0.7,900"))
    change(small, "data/model/curves.csv", CURVES + "4,1,0.995,0.09\n")
    _, text = reviewed()
    assert "| epochs | 3 | 4 |" in text
    assert "| train | epochs, data/raw.csv |" in text
    assert "| data/raw.csv | aaaa1111, 10 bytes | cccc1111, 10 bytes |" in text
    assert "| japanese (rendered) | 1 | 0.5 | 0.7 | +0.2 |" in text
    assert "japanese (rendered): 1,000 of 1 classes → 900 of 1 classes" in text
    assert 'x-axis "epoch" [1, 2, 3, 4]' in text
    assert text.count("line [") == 4
    assert "https://example.org/run/1#artifacts" in text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("params.yaml", "epochs: [", "params.yaml is damaged"),
        ("data/evaluation/metrics.json", "{", "metrics.json is damaged"),
        ("data/evaluation/metrics.json", '{"mnist": 3}', "metrics.json is damaged"),
        ("data/evaluation/metrics.json", "[]", "metrics.json is damaged"),
        ("dvc.lock", "<<<<<<< ours\na: 1\n>>>>>>> theirs\n", "digits relock"),
        ("dvc.lock", "stages: {train: {deps: [{path: 3}]}}", "dvc.lock is damaged"),
        ("dvc.lock", "stages: {train: {deps: 3}}", "dvc.lock is damaged"),
        ("dvc.lock", "stages: {train: {params: 4}}", "dvc.lock is damaged"),
        ("dvc.lock", "stages: {train: {params: {params.yaml: 4}}}", "dvc.lock is damaged"),
        ("data/model/curves.csv", "epoch\n1,2,3\nx\n", "curves.csv is damaged"),
        ("data/noise.json", '{"metrics": 3}', "noise.json is damaged"),
    ],
)
def test_damage_is_told_on_either_side(small: Project, name: str, text: str, message: str) -> None:
    whole = (small.root / name).read_text("utf-8") if (small.root / name).exists() else None
    change(small, name, text)
    assert message in reviewed()[1]
    if name in ("params.yaml", "data/evaluation/metrics.json"):
        assert reviewed()[0].gate.reasons
    if name == "params.yaml":
        assert reviewed()[0].gate.reasons[0].startswith("params.yaml is damaged")
        assert reviewed()[0].problems == []  # nothing is said of what could not be read
    commit(small, "damaged")
    small.git("branch", "--force", "main")
    if whole is None:
        (small.root / name).unlink()
    else:
        change(small, name, whole)
    commit(small, "whole again")
    found, shown = reviewed()
    assert f"{name.split('/')[-1]} is damaged at" in shown
    assert not found.gate.reasons  # the base's fault fails nobody's gate


def test_a_metrics_file_that_the_base_lacks_is_told(small: Project) -> None:
    small.git("rm", "--quiet", "data/evaluation/metrics.json")
    commit(small, "without")
    small.git("branch", "--force", "main")
    change(small, "data/evaluation/metrics.json", metrics(0.9950))
    found, text = reviewed()
    assert "metrics.json is absent at" in text
    assert not found.gate.reasons
    (small.root / "data/evaluation/metrics.json").unlink()
    assert "mnist accuracy is missing" in reviewed()[0].gate.reasons


def test_only_the_metrics_are_needed(small: Project) -> None:
    small.git("rm", "--quiet", "data/evaluation/per_class.csv", "data/model/curves.csv")
    commit(small, "without tables that explain")
    found, text = reviewed("HEAD")
    assert (found.verdict, found.gate.reasons, found.problems) == ("same", [], [])
    assert "per_class" not in text and "Training curves" not in text


def test_what_renders_the_report_needs_no_package() -> None:
    """The jobs with write access install nothing: standard library, core.errors and the report."""
    names = [f"mlops.bot.{path.stem}" for path in (ROOT / "src/mlops/bot").glob("[!_]*.py")]
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
    program += f"import mlops.review.render, {', '.join(names)}\n"
    program += "print(*(name for name in sys.modules if name.split('.')[0] in ('core', 'mlops')))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    allowed = {"core", "core.errors", "mlops", "mlops.bot", "mlops.review"}
    allowed |= {"mlops.review.render", "mlops.review.schema"}
    assert set(done.stdout.split()) == {*allowed, *names}


def test_bases(small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.git("switch", "--quiet", "main")
    found, text = reviewed()
    assert found.base is None and not found.gate.reasons
    assert "the first commit has no base" in text
    change(small, "params.yaml", PARAMS + "# 1\n")
    assert reviewed()[0].against == "HEAD, since there are uncommitted changes"
    change(small, "params.yaml", PARAMS + "# 2\n")
    commit(small, "second")
    assert reviewed()[0].against == "first parent"
    small.git("switch", "--quiet", "--create", "grün")
    small.git("commit", "--quiet", "--allow-empty", "--message", "third")
    assert reviewed()[0].against == "merge base with main"
    assert "merge base with grün" in reviewed("grün")[1]
    found, _ = reviewed("nowhere")
    assert "nowhere is no commit here" in " ".join(found.gate.reasons)
    small.git("switch", "--quiet", "--orphan", "other")
    small.git("commit", "--quiet", "--allow-empty", "--message", "root")
    assert "no merge base" in reviewed("main")[1]
    small.git("switch", "--quiet", "--force", "grün")
    shallow = tmp_path / "shallow"
    small.git("clone", "--quiet", "--depth", "1", f"file://{small.root}", str(shallow))
    monkeypatch.chdir(shallow)
    found, text = reviewed("origin/main")
    assert found.gate.reasons and "git fetch --unshallow" in text.splitlines()[0]


def test_an_empty_history_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Project(tmp_path).git("init", "--quiet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "status", lambda cached: ([], []))
    assert "nothing is committed yet" in reviewed()[1]


def test_hostile_text_stays_text(small: Project) -> None:
    evil = "<img src=x> | @everyone `[a](javascript:1)` ![b](https://x.y) #1"
    rows = json.dumps({evil: {"accuracy": 0.5, evil: 1.0}, "mnist": {"accuracy": 0.9950}})
    change(small, "data/evaluation/metrics.json", rows)
    change(
        small, "params.yaml", PARAMS + f"{json.dumps(evil)}: {json.dumps(evil + chr(10) + '# x')}"
    )
    change(small, "data/evaluation/per_class.csv", CLASSES + f'"{evil}",{"x" * 9},0.1,10\n')
    _, text = reviewed()
    for part in ("<img", "@everyone", "](", "`[", "https://x", "#1", "\n# x"):
        assert part not in text.replace("`dvc", "")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (8, 4) for line in table)


def test_a_change_of_the_gate_is_told(small: Project) -> None:
    change(small, "params.yaml", PARAMS.replace("floor: 0.99", "floor: 0.5"))
    assert "section review of params.yaml changes: the base's judges this change" in reviewed()[1]


def test_a_missing_metric_fails_and_lower_can_be_better() -> None:
    from mlops.review.schema import Metric

    rule = Rule("lower", 0.005, 0.003)
    assert judge([], {"mnist": {"calibration_error": rule}}) == [
        "mnist calibration_error is missing"
    ]

    def reasons(before: float, after: float) -> str:
        row = Metric("mnist", "calibration_error", before, after, None, "unknown", None)
        return " ".join(judge([row], {"mnist": {"calibration_error": rule}}))

    assert reasons(0.001, 0.004) == ""
    assert "worse by 0.0035" in reasons(0.001, 0.0045)
    assert "above its floor" in reasons(0.0049, 0.0051)
    assert reasons(0.004, 0.001) == ""


def test_no_repository_is_told_in_one_line(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name(NAME)), "review"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "review: git rev-parse --show-prefix: fatal: not a git repository"
    )


@pytest.mark.parametrize("name", ["review", "relock"])
def test_a_folder_below_the_root_is_told(
    small: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(small.root / "data")
    with pytest.raises(DigitsError, match="this is the folder data/ of a git repository"):
        call(name)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"epochs": 4}, "epochs"),
        ({"classes": ["a", "b"]}, "classes"),
        ({"data": {"training.npz": "9999", "test.npz": "2222"}}, "training data"),
        ({"data": {"training.npz": "1111"}}, "test data"),
        ({"network": "abcd"}, "network"),
    ],
)
def test_the_seed_variance_is_not_used_for_what_it_was_not_measured_with(
    small: Project, changed: dict[str, object], name: str
) -> None:
    figures = {"mean": 0.995, "deviation": 0.1, "least": 0.994, "most": 0.996}
    trained = TRAINED | {"network": "1234"} | changed
    noise = {"seeds": [1, 2], "metrics": {"mnist": {"accuracy": figures}}, "trained": trained}
    change(small, "data/model/lineage.json", json.dumps({"network": "1234"}))
    on_main(small, "data/noise.json", json.dumps(noise))
    change(small, "data/evaluation/metrics.json", metrics(0.9990))
    found, text = reviewed()
    assert found.verdict == "better"  # the interval's, not that of a deviation of 0.1
    assert f"it was measured with another value of {name}. Measure it again: make noise" in text
    assert "Without data/noise.json ±" in text


def test_on_main_uncommitted_work_is_compared_with_head(small: Project) -> None:
    small.git("switch", "--quiet", "main")
    small.git("commit", "--quiet", "--allow-empty", "--message", "second")
    change(small, "data/evaluation/metrics.json", metrics(0.9990))
    found, _ = reviewed()
    assert found.base == small.git("rev-parse", "HEAD").strip()
    assert found.verdict == "better"
