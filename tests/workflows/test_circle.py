"""The issues, and the way from drift to a pull request: scripts, then the real workflow file."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hollow import hollow
from loopback import GitHub, needs_bash
from records import FULL_NAME, Pull, Run
from reports import report

from core.errors import DigitsError
from mlops.bot import github as client
from mlops.bot import issues
from mlops.review import schema

CALM: dict[str, Any] = {
    "drift": False,
    "since": None,
    "window": 500,
    "windows": 8,
    "requests": 4000,
    "accuracy": None,
    "estimated_accuracy": 0.99,
    "contributing_signals": [],
    "action": None,
    "recent_requests": 600,
}
DRIFT = CALM | {
    "drift": True,
    "since": "2026-11-20T07:00:00Z",
    "accuracy": 0.714,
    "ood_share": 0.31,
    "contributing_signals": ["ood_confidence", "<img src=x>"],
    "action": "retrain",
}
WORK = """#!/usr/bin/env bash
# The programs digits, dvc and python: production as the test says, an experiment of text.
case "$(basename "$0") $1 $2 $4" in
  "python -c "*) echo "$SAYS_PROPOSE";;
  "digits monitor --workspace --out") test "$FOUND" != "{}" || exit 1; mkdir -p monitoring
    echo "$FOUND" > monitoring/monitoring.json;;
  "digits monitor --workspace --labelled") mkdir -p data/labelled
    echo digits > data/labelled/devanagari_20261124.csv;;
  "digits retrain"*) test "$LABELS" = some || { echo "has no labelled digits"; exit 1; }
    echo /devanagari_20261124.csv > data/labelled/.gitignore
    echo outs > data/labelled/devanagari_20261124.csv.dvc
    echo "epochs: 2" > params.yaml; echo new > dvc.lock
    mkdir -p review; echo "$REPORT" > review/report.json; touch review/report.md;;
  "dvc push"*) echo "PUSHED $* as $AZURE_STORAGE_CONNECTION_STRING";;
  "digits restore"*) echo "RESTORED ${*: -1} as $AZURE_STORAGE_CONNECTION_STRING";;
esac
"""
ALL = {"look": "success", "issue": "success", "retrain": "success", "propose": "success"}
BRANCH = "refs/heads/retrain-*"


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    texts = {"data/labelled/.gitignore": "", ".gitignore": "/.venv\n/node_modules\n"}
    project, installed = hollow(tmp_path, WORK, texts)
    with GitHub(tmp_path / "github") as github:
        project.git("push", "--quiet", str(github.origin), "HEAD:refs/heads/main")
        github.variables = {
            "AZURE_STORAGE_ACCOUNT": "account",
            "AZURE_ML_WORKSPACE": "workspace",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_MAIN_CLIENT_ID": "main",
        }
        github.environment = {
            "PROJECT": str(installed),
            "IDENTITY_main": "main",
            "SAYS_PROPOSE": "True",
            "LABELS": "some",
            "REPORT": json.dumps(json.loads(schema.dump(report(link="")))),
        }
        yield github


def monitor(github: GitHub, found: dict[str, Any], event: str = "schedule") -> Run:
    """Let monitor.yml run on main."""
    github.environment["FOUND"] = json.dumps(found)
    payload = {"ref": "refs/heads/main"}
    return github.act("monitor.yml", event, github.head("main"), payload)


# The scripts


@pytest.fixture
def setting(github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitHub:
    """What the workflow sets for both scripts."""
    for name, value in {
        "GITHUB_API_URL": github.url,
        "GITHUB_REPOSITORY": FULL_NAME,
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "TOKEN": "the-token-of-a-job",
        "LINK": "https://github.com/octo/digits/actions/runs/1",
        "PROPOSE": "true",
        "COMMIT_TOKEN": "the-token-of-a-job",
        "MONITORING": str(github.folder / "monitoring.json"),
        "BASE": "main",
        "HEAD": github.head("main"),
        "ISSUE": "101",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GITHUB_JOB", raising=False)
    monkeypatch.setattr(client, "WAIT_SECONDS", 0.0)
    return github


def tell(github: GitHub, found: dict[str, Any]) -> tuple[str, str]:
    """Return what the alarm says, and what it tells later jobs."""
    path, output = github.folder / "monitoring.json", github.folder.parent / "output"
    path.write_text(json.dumps(found))
    output.write_text("")
    return issues.main(["drift"]), output.read_text()


def test_one_issue_is_opened_updated_and_closed(setting: GitHub) -> None:
    assert tell(setting, CALM) == ("No drift; no issue is open.", "")
    assert tell(setting, DRIFT) == ("#101: opened.", "issue=101\nretrain=true\n")
    (issue,) = setting.issues
    assert "| since | 2026-11-20T07:00:00Z |" in issue["body"]
    assert tell(setting, DRIFT | {"requests": 5000, "onset_censored": True})[0] == "#101: updated."
    assert "| at least since | 2026-11-20T07:00:00Z |" in issue["body"]
    assert "| judged | 5,000 requests in 8 windows |" in issue["body"]
    assert "| accuracy by the labels that have come | 71.4% |" in issue["body"]
    assert "| out of distribution, of the last 600 | 31.0% |" in issue["body"]
    assert "<img" not in issue["body"]
    few = CALM | {"windows": 1, "requests": 125}  # of a new deployment's smoke test
    assert tell(setting, few)[0].startswith("#101: left as it is")
    assert tell(setting, CALM) == ("#101: closed.", "")
    assert (issue["state"], len(issue["remarks"])) == ("closed", 1)
    assert "The alarm has ended" in issue["remarks"][0]["body"]
    assert tell(setting, DRIFT)[0] == "#102: opened."


def test_params_that_say_no_propose_nothing(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROPOSE", "false")
    assert tell(setting, DRIFT) == ("#101: opened.", "issue=101\nretrain=false\n")


@pytest.mark.parametrize("action", ["fix_input", "label", None])
def test_what_is_no_unknown_script_proposes_nothing(setting: GitHub, action: str | None) -> None:
    found = DRIFT | {"contributing_signals": ["brightness", "ood_confidence"], "action": action}
    assert tell(setting, found) == ("#101: opened.", "issue=101\nretrain=false\n")
    body = setting.issues[0]["body"]
    assert ("The images are bad: fix what takes them" in body) == (action == "fix_input")
    assert ("merge the pull request" in body) == (action != "fix_input")


@pytest.mark.parametrize(
    ("pull", "again"),
    [
        (Pull(5, "retrain-2026-11-24"), False),
        (Pull(5, "retrain-2026-11-24", state="closed"), True),  # of an alarm before this one
        (Pull(5, "retrain-2026-11-24", state="closed", created_at="2026-01-03T00:00:00Z"), False),
        (Pull(5, "retrain-2026-11-24", source="mallory/digits"), True),
        (Pull(5, "other"), True),
    ],
    ids=["open", "older", "closed", "fork", "other"],
)
def test_an_alarm_has_one_retraining(setting: GitHub, pull: Pull, again: bool) -> None:
    setting.git("update-ref", setting.ref(pull), "main")
    setting.pulls[5] = pull
    told, output = tell(setting, DRIFT)
    assert output == f"issue=101\nretrain={str(again).lower()}\n"
    assert ("Its retraining is #5" in told) != again


@pytest.mark.parametrize("text", ["", "[]", "{", '{"drift": true}'])
def test_what_is_no_monitoring_touches_no_issue(setting: GitHub, text: str) -> None:
    path = setting.folder / "monitoring.json"
    path.write_text(text)
    with pytest.raises(DigitsError, match=r"monitoring\.json: is no monitoring\.json"):
        issues.main(["drift"])
    assert setting.calls == []


def handed(github: GitHub, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let a run have the artifact of a retraining."""
    place = github.artifacts / "1" / "retraining.zip"
    place.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(place, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"files/{name}", text)
        notes = ["closes #1 <script>"]
        archive.writestr("report.json", schema.dump(report(notes=notes, link="")))
    monkeypatch.setenv("RUN", "1")


def test_a_setting_that_lacks_is_named_and_no_branch_is_left(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.may_open = False
    handed(setting, monkeypatch, **{"params.yaml": "epochs: 2\n"})
    with pytest.raises(DigitsError, match=r"Allow GitHub Actions to create and approve"):
        issues.main(["retrain"])
    assert setting.git("for-each-ref", BRANCH) == ""
    assert not setting.waiting


def test_the_checks_of_a_retraining_wait_for_approval(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed(setting, monkeypatch, **{"params.yaml": "epochs: 2\n"})
    assert issues.main(["retrain"]).startswith("#1: opened from retrain-20")
    assert list(setting.unapproved) == [1] and not setting.waiting
    assert "<script>" not in setting.pulls[1].body and "closes #1" not in setting.pulls[1].body
    assert "closes #\u200b1 ‹script›" in setting.pulls[1].body


def test_a_branch_that_is_there_is_left_as_it_is(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed(setting, monkeypatch, **{"params.yaml": "epochs: 2\n"})
    issues.main(["retrain"])
    before = setting.git("for-each-ref", BRANCH)
    with pytest.raises(DigitsError, match="is there already, delete it first"):
        issues.main(["retrain"])
    assert setting.git("for-each-ref", BRANCH) == before
    assert len(setting.pulls) == 1


@pytest.mark.parametrize(
    "name",
    ["src/digits/model/network.py", ".github/workflows/ci.yml", "data/labelled/a.csv", "dvc.yaml"],
)
def test_no_other_path_is_proposed(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    handed(setting, monkeypatch, **{name: "x"})
    with pytest.raises(DigitsError, match=f"{name}: "):
        issues.main(["retrain"])
    assert all(call.method == "GET" for call in setting.calls)


# The weekly run


def test_the_issue_of_the_weekly_run_is_opened_updated_and_closed(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANGES", "-numpy==2.0\n+numpy==2.1\n```@octo")
    done = []
    for result in ("success", "failure", "failure", "success"):
        monkeypatch.setenv("RESULT", result)
        done.append(issues.main(["weekly"]))
    assert done == [
        "The run succeeded; no issue is open.",
        "#101: opened.",
        "#101: updated.",
        "#101: closed.",
    ]
    assert len(setting.issues) == 1
    body = setting.issues[0]["body"]
    assert "+numpy==2.1\n" in body and "```@octo" not in body


# The workflow


@needs_bash
@pytest.mark.slow
def test_drift_opens_an_issue_and_a_pull_request_whose_checks_run(github: GitHub) -> None:
    main = github.head("main")
    run = monitor(github, DRIFT)
    assert run.jobs == ALL, run.log
    assert all(call.status < 400 for call in github.calls)
    assert "RESTORED monitor as main" in run.log
    assert "PUSHED push --quiet --remote main as main" in run.log
    (issue,), (pull,) = github.issues, github.pulls.values()
    assert "2026-11-20T07:00:00Z" in issue["body"]
    assert pull.branch.startswith("retrain-20")
    assert "Production drifts: #101" in pull.body
    assert "## Better" in pull.body
    assert github.git("rev-parse", f"{pull.branch}^") == main
    changed = github.git("diff", "--name-only", main, pull.branch).splitlines()
    labelled = ["data/labelled/.gitignore", "data/labelled/devanagari_20261124.csv.dvc"]
    assert changed == [*labelled, "dvc.lock", "params.yaml"]
    assert list(github.unapproved) == [pull.number] and not github.waiting

    run = monitor(github, DRIFT, "workflow_dispatch")
    assert run.jobs == {"look": "success", "issue": "success"}, run.log
    assert (len(github.issues), len(github.pulls)) == (1, 1)
    run = monitor(github, CALM)
    assert run.jobs == {"look": "success", "issue": "success"}, run.log
    assert issue["state"] == "closed"


@needs_bash
@pytest.mark.slow
def test_without_labels_nothing_is_half_done(github: GitHub) -> None:
    github.environment["LABELS"] = "none"
    run = monitor(github, DRIFT)
    assert run.jobs == {"look": "success", "issue": "success", "retrain": "failure"}, run.log
    assert len(github.issues) == 1
    assert (github.pulls, github.git("for-each-ref", BRANCH)) == ({}, "")
    assert "PUSHED" not in run.log


@needs_bash
@pytest.mark.slow
def test_a_look_that_fails_is_red_itself(github: GitHub) -> None:
    run = monitor(github, {})
    assert run.jobs == {"look": "failure"}, run.log
    assert github.calls == []


@needs_bash
@pytest.mark.slow
def test_the_checks_of_an_apps_pull_request_start(github: GitHub) -> None:
    github.variables["REVIEW_APP_CLIENT_ID"] = "app"
    run = monitor(github, DRIFT)
    assert run.jobs == ALL, run.log
    assert len(github.pulls) == 1
    assert [waiting[1] for waiting in github.waiting] == ["pull-request.yml", "ci.yml"]


@needs_bash
@pytest.mark.slow
def test_without_azure_or_on_another_branch_nothing_is_looked_at(github: GitHub) -> None:
    sha = github.head("main")
    other = {"ref": "refs/heads/other", "inputs": {}}
    assert github.act("monitor.yml", "workflow_dispatch", sha, other).jobs == {}
    github.variables = {}
    run = monitor(github, DRIFT)
    assert run.jobs == {"unconfigured": "success"}, run.log
    assert "Nothing is monitored" in run.log
    assert github.calls == []
