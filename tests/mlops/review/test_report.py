"""`digits review` on a small project of histories, and on damaged input: no pipeline is run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import NAME, ROOT, Project, environment

from core.errors import DigitsError
from mlops import dvc
from mlops.cli import call
from mlops.deploy import release
from mlops.review import compare, gate, merge, render, report, schema
from mlops.review.gate import Rule, judge
from mlops.review.schema import Metric, Report

pytestmark = pytest.mark.slow

PARAMS = """
epochs: 3
classes: ["0", "1"]
review:
  retrain: {propose: true, set: {}}
  gate:
    mnist:
      accuracy: {direction: higher, limit: 0.99, tolerance: 0.0015}
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
    found = report.review(revision, False)
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
        (0.9800, "worse", "below its limit 0.99"),
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
    assert "or else between test sets (Newcombe's method 10)" in text


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
    names = [f"data/{folder}/metrics.json" for folder in ("evaluation", "monitoring")]
    stages = {f"stage{name}": {"metrics": [{name: {"cache": False}}]} for name in names}
    on_main(small, "dvc.yaml", json.dumps({"stages": stages}))
    (small.root / "data" / "monitoring").mkdir()
    change(small, "data/monitoring/metrics.json", produced(0.9, 1))
    _, text = reviewed()
    assert "| production accuracy | – | 0.9 | – | nothing to compare with |  |  |" in text
    commit(small, "production")
    change(small, "data/monitoring/metrics.json", produced(0.8, 3))
    found, text = reviewed("HEAD")
    assert "| production accuracy | 0.9 | 0.8 | -0.1 | worse (±0.014142) |  |  |" in text
    assert "| production alarms | 1 | 3 | +2 | not known |  |  |" in text
    assert "accuracy low" not in text
    assert (found.verdict, found.gate.reasons) == ("same", [])
    change(small, "data/monitoring/metrics.json", "{")
    found, text = reviewed("HEAD")
    assert "data/monitoring/metrics.json cannot be read in the working tree" in text
    assert found.verdict == "same"


def test_what_explains_it_is_told(small: Project) -> None:
    change(small, "params.yaml", PARAMS.replace("epochs: 3", "epochs: 4"))
    change(small, "dvc.lock", LOCK.replace("epochs: 3", "epochs: 4").replace("aaaa", "cccc"))
    change(small, "data/evaluation/per_class.csv", CLASSES.replace("0.5,1000", "0.7,900"))
    change(small, "data/model/curves.csv", CURVES + "4,1,0.995,0.09\n")
    _, text = reviewed()
    assert "| epochs | 3 | 4 |" in text
    assert "| train | not run | epochs, data/raw.csv | 0 |" in text
    assert "- japanese_rendered 1: 0.5 → 0.7" in text
    assert 'x-axis "epoch" [1, 2, 3, 4]' in text
    assert text.count("line [") == 4
    # One epoch is a point, through which Mermaid draws no line.
    assert "    line [0.30000, 0.20000]\n    bar [0.25000]\n" in render.chart(
        "Validation loss", [0.3, 0.2], [0.25]
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("params.yaml", "epochs: [", "params.yaml cannot be read"),
        ("data/evaluation/metrics.json", "{", "metrics.json cannot be read"),
        ("data/evaluation/metrics.json", '{"mnist": "3"}', "metrics.json cannot be read"),
        ("data/evaluation/metrics.json", "[]", "metrics.json cannot be read"),
        ("dvc.lock", "<<<<<<< ours\na: 1\n>>>>>>> theirs\n", "digits merge"),
        ("dvc.lock", "stages: {train: {deps: [{path: 3}]}}", "dvc.lock cannot be read"),
        ("dvc.lock", "stages: {train: {deps: 3}}", "dvc.lock cannot be read"),
        ("dvc.lock", "stages: {train: {params: 4}}", "dvc.lock cannot be read"),
        ("dvc.lock", "stages: {train: {params: {params.yaml: 4}}}", "dvc.lock cannot be read"),
        ("data/model/curves.csv", "epoch\n1,2,3\nx\n", "curves.csv cannot be read"),
        ("data/noise.json", '{"metrics": 3}', "noise.json cannot be read"),
    ],
)
def test_damage_is_told_on_either_side(small: Project, name: str, text: str, message: str) -> None:
    whole = (small.root / name).read_text("utf-8") if (small.root / name).exists() else None
    change(small, name, text)
    assert message in reviewed()[1]
    if name in ("params.yaml", "data/evaluation/metrics.json"):
        assert reviewed()[0].gate.reasons
    if name == "params.yaml":
        assert reviewed()[0].gate.reasons[0].startswith("params.yaml cannot be read")
        assert reviewed()[0].problems == []  # nothing is said of what could not be read
    commit(small, "damaged")
    small.git("branch", "--force", "main")
    if whole is None:
        (small.root / name).unlink()
    else:
        change(small, name, whole)
    commit(small, "whole again")
    found, shown = reviewed()
    assert f"{name.split('/')[-1]} cannot be read at" in shown
    assert not found.gate.reasons  # the base's fault fails nobody's gate


def test_a_metrics_file_that_the_base_lacks_is_told(small: Project) -> None:
    small.git("rm", "--quiet", "data/evaluation/metrics.json")
    commit(small, "without")
    small.git("branch", "--force", "main")
    change(small, "data/evaluation/metrics.json", metrics(0.9950))
    found, text = reviewed()
    assert "metrics.json is missing at" in text
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
    assert "nowhere is not a commit here" in " ".join(found.gate.reasons)
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
    assert all(line.count("|") in (8, 5, 4) for line in table)


def test_a_change_of_the_gate_is_told(small: Project) -> None:
    change(small, "params.yaml", PARAMS.replace("limit: 0.99", "limit: 0.5"))
    assert "section review of params.yaml is changed; the base's is used instead" in reviewed()[1]


def test_a_missing_metric_fails_and_lower_can_be_better() -> None:
    rule = Rule("lower", 0.005, 0.003)
    assert judge([], {"mnist": {"calibration_error": rule}}) == [
        "mnist calibration_error is missing"
    ]

    def reasons(before: float, after: float) -> str:
        row = Metric("mnist", "calibration_error", before, after, None, None)
        return " ".join(judge([row], {"mnist": {"calibration_error": rule}}))

    assert reasons(0.001, 0.004) == ""
    assert "worse by 0.0035" in reasons(0.001, 0.0045)
    assert "above its limit" in reasons(0.0049, 0.0051)
    assert reasons(0.004, 0.001) == ""


def test_what_fails_the_gate_is_annotated_on_its_line_of_params_yaml(
    small: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(small, "data/evaluation/metrics.json", metrics(0.5))
    for job, expected in (("", 0), ("true", 2)):
        monkeypatch.setenv("GITHUB_ACTIONS", job)
        with pytest.raises(DigitsError, match="the gate failed: "):
            call("review", "--gate", "--base", "main")
        lines = [row for row in capsys.readouterr().out.splitlines() if row.startswith("::")]
        assert len(lines) == expected
    number = 1 + PARAMS.splitlines().index(
        "      accuracy: {direction: higher, limit: 0.99, tolerance: 0.0015}"
    )
    start = f"::error file=params.yaml,line={number}::mnist accuracy "
    assert lines[0] == f"{start}0.5 is below its limit 0.99"
    assert lines[1].startswith(f"{start}is worse by ")
    (small.root / "params.yaml").write_text("[")
    assert gate.annotations(["mnist accuracy is missing"]) == []


def test_no_repository_is_told_in_one_line(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name(NAME)), "review"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "review: git rev-parse --show-prefix: fatal: not a git repository"
    )


@pytest.mark.parametrize("name", ["review", "merge"])
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
    assert "between test sets (Newcombe" in text


def test_on_main_uncommitted_work_is_compared_with_head(small: Project) -> None:
    small.git("switch", "--quiet", "main")
    small.git("commit", "--quiet", "--allow-empty", "--message", "second")
    change(small, "data/evaluation/metrics.json", metrics(0.9990))
    found, _ = reviewed()
    assert found.base == small.git("rev-parse", "HEAD").strip()
    assert found.verdict == "better"


def row(source: str, before: float, after: float, gated: bool = False) -> Metric:
    bounds = schema.Bounds("higher", 0.9, 0.003) if gated else None
    return Metric(source, "accuracy", before, after, 0.001, bounds)


def told(rows: list[Metric], **more: Any) -> list[str]:
    found = Report(verdict=compare.verdict(rows), gate=schema.Gate(True, []), metrics=rows, **more)
    return render.write(found).splitlines()


def test_a_script_learnt_is_not_headed_worse() -> None:
    """The gate has MNIST alone, which loses a little; the retraining gains much elsewhere."""
    rows = [row("mnist", 0.997, 0.995, gated=True), row("devanagari_rendered", 0.31, 0.852)]
    assert told(rows)[0] == (
        "## Mixed: devanagari (rendered) accuracy +54.20 points, mnist accuracy −0.20 points "
        "· ✅ gate passed"
    )


def test_the_first_screen_has_inputs_then_metrics_in_points() -> None:
    rows = [row("mnist", 0.997, 0.9968, gated=True), row("a_rendered", 0.31, 0.852)]
    rows += [row(f"script{number}", 0.5, 0.5 + number / 100) for number in range(9)]
    params = [schema.ParamChange(f"key{number}", "1", "2") for number in range(5)]
    lines = told(rows, params=params, problems=["first", "second", "third", "fourth"])
    first = lines[: lines.index("<details><summary>Everything that was found</summary>")]
    shown = [line for line in first if line.startswith("| ")][2:]
    assert shown == [
        "| key0 | 1 | 2 |  |",
        "| key1 | 1 | 2 |  |",
        "| key2 | 1 | 2 |  |",
        "| **mnist accuracy** | 99.70 % | 99.68 % | −0.02 points, not significant |",
        "| a (rendered) accuracy | 31.00 % | 85.20 % | +54.20 points 🟢 |",
        "| script8 accuracy | 50.00 % | 58.00 % | +8.00 points 🟢 |",
        "| script7 accuracy | 50.00 % | 57.00 % | +7.00 points 🟢 |",
    ]
    assert [line for line in first if "⚠️" in line] == ["- ⚠️ first", "- ⚠️ second", "- ⚠️ third"]
    assert "- ⚠️ fourth" in lines


def test_notices_of_ones_own_come_first_and_three_are_shown() -> None:
    found = Report("same", schema.Gate(True, []), problems=["one", "two"])
    text = render.write(found, (["code"], ["press", "production"]), production={("a", "b"): 1.0})
    first = text.partition("<details>")[0]
    assert first.index("- code") < first.index("- press") < first.index("- production")
    assert "- ⚠️ one" not in first and "- ⚠️ one" in text


def test_what_production_serves_is_a_third_column() -> None:
    found = Report("same", schema.Gate(True, []), metrics=[row("mnist", 0.5, 0.6, gated=True)])
    text = render.write(found, production={("mnist", "accuracy"): 0.4321})
    assert "| **mnist accuracy** | 50.00 % | 60.00 % | +10.00 points 🟢 | 43.21 % |" in text


def test_one_epoch_is_a_sentence_and_colours_have_names() -> None:
    text = render.chart("Validation loss", [0.5], [0.25])
    assert text == "Validation loss after one epoch: before 0.50000, after 0.25000"
    text = render.chart("Validation loss", [0.5, 0.25], [0.5, 0.25])
    assert 'title "Validation loss (darkorange: before and after)"' in text
    text = render.chart("Validation loss", [0.5], [0.5, 0.25])
    assert 'title "Validation loss (darkorange: before, royalblue: after)"' in text
    assert "'plotColorPalette': 'darkorange, royalblue'" in text


# Merging main

SIDES = "epochs: {} # all data, once\nseed: 1\ntrain:\n  rate: {}\n  batch: {}\n"


@pytest.mark.parametrize(("prefer", "epochs"), [("this branch", 7), ("main", 9)])
def test_params_are_merged_by_keys(prefer: merge.Side, epochs: int) -> None:
    texts = [SIDES.format(5, 0.1, 64), SIDES.format(7, 0.2, 64), SIDES.format(9, 0.1, 32)]
    assert merge.merged(texts, prefer) == SIDES.format(epochs, 0.2, 32)


@pytest.mark.parametrize("more", ["new: 1\n", "list:\n- 1\n"])
def test_other_changes_of_params_are_left_to_a_person(more: str) -> None:
    texts = [SIDES.format(5, 0.1, 64), SIDES.format(7, 0.2, 64) + more, SIDES.format(9, 0.1, 32)]
    with pytest.raises(DigitsError, match=r"params\.yaml: the sides change more than values"):
        merge.merged(texts, "this branch")


def conflict(small: Project, name: str, text: str) -> None:
    """Let main and the branch change dvc.lock and a file."""
    for key, value in (("name", "A person"), ("email", "person@example.org")):
        small.git("config", f"user.{key}", value)  # which the merge below takes
    for branch, md5 in (("main", "cccc"), ("ändern-数字", "dddd")):
        small.git("switch", "--quiet", branch)
        change(small, "dvc.lock", LOCK.replace("bbbb", md5))
        change(small, name, text + md5 + "\n")
        commit(small, branch)


def test_main_is_merged_where_lock_and_tables_conflict(small: Project) -> None:
    conflict(small, "data/evaluation/metrics.json", "")
    call("merge", "main")
    assert small.git("log", "-1", "--format=%P").split() == [
        small.git("rev-parse", revision).strip() for revision in ("HEAD^1", "main")
    ]
    assert "cccc" in (small.root / "dvc.lock").read_text("utf-8")
    assert small.git("status", "--porcelain") == ""


def test_a_merge_in_progress_is_left_alone(small: Project) -> None:
    conflict(small, "stage.py", "")
    small.run("git", "merge", "main", code=1)
    before = small.git("diff")
    with pytest.raises(DigitsError, match="a merge is unfinished"):
        call("merge", "main")
    assert small.git("diff") == before


def test_another_conflict_leaves_everything_as_it_was(small: Project) -> None:
    conflict(small, "stage.py", "")
    before = small.git("rev-parse", "HEAD")
    with pytest.raises(DigitsError, match=r"stage\.py: git cannot merge these.*--ours dvc\.lock"):
        call("merge", "main")
    assert small.git("rev-parse", "HEAD") == before
    assert small.git("status", "--porcelain") == ""


def test_an_older_approval_does_not_deploy_over_a_newer_commit(small: Project) -> None:
    """Its run of deploy.yml waited, while a later merge was approved."""
    older = small.git("rev-parse", "HEAD").strip()
    change(small, "data/evaluation/metrics.json", metrics(0.9951))
    commit(small, "newer")
    newer = small.git("rev-parse", "HEAD").strip()
    assert release.gate_reasons(older) == []
    small.git("checkout", "--quiet", older)
    (reason,) = release.gate_reasons(newer)
    assert reason.startswith(f"{newer[:10]} is live and newer; `digits deploy rollback`")
