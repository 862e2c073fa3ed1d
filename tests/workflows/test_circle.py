"""The issues, and the way from drift to a pull request: scripts, then the real workflow file."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hollow import hollow
from loopback import BOT, GitHub, needs_bash
from records import FULL_NAME, Run
from reports import report

from core.errors import DigitsError
from mlops.bot import github as client
from mlops.bot import issues
from mlops.review import schema

pytestmark = pytest.mark.slow

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
  "python run.py lock "*) echo "numpy==2.1" > requirements-dev.txt; echo new > requirements.txt;;
  "python run.py repro "*) if grep -q 2.1 requirements-dev.txt; then echo new > dvc.lock; fi;;
  "dvc push"*) echo "PUSHED $* as $AZURE_STORAGE_CONNECTION_STRING";;
  "digits restore"*) echo "RESTORED ${*: -1} as $AZURE_STORAGE_CONNECTION_STRING";;
esac
"""
ALL = {"look": "success", "issue": "success", "retrain": "success", "propose": "success"}
BRANCH = "refs/heads/retrain-*"


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    texts = {"data/labelled/.gitignore": "", ".gitignore": "/.venv\n/node_modules\n"}
    texts |= {"requirements-dev.txt": "numpy==2.0\n", "requirements.txt": "old\n"}
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
            "REPORT": json.dumps(json.loads(schema.dump(report()))),
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
        "RUN": "1",
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
    assert "| analysed | 5,000 requests in 8 windows |" in issue["body"]
    assert "| accuracy by the labels so far | 71.4% |" in issue["body"]
    assert "| out of distribution, of the last 600 | 31.0% |" in issue["body"]
    assert "<img" not in issue["body"]
    few = CALM | {"windows": 1, "requests": 125}  # of a new deployment's smoke test
    assert tell(setting, few)[0].startswith("#101: not changed")
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
    assert ("The images are bad: fix their source" in body) == (action == "fix_input")
    assert ("merge the retraining" in body) == (action != "fix_input")


def test_an_alarm_has_one_retraining(setting: GitHub) -> None:
    tell(setting, DRIFT)
    remark = {"user": {"login": "student"}, "body": f"{issues.READY} #5"}
    setting.issues[0]["remarks"].append(remark)
    assert tell(setting, DRIFT)[1] == "issue=101\nretrain=true\n"
    setting.issues[0]["remarks"].append(remark | {"user": BOT})
    assert tell(setting, DRIFT) == (
        "#101: updated. Its retraining is proposed already.",
        "issue=101\nretrain=false\n",
    )


def handed(github: GitHub, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let a run have the artifact of a retraining."""
    place = github.artifacts / "1" / "retraining.zip"
    place.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(place, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"files/{name}", text)
        notes = ["closes #1 <script>"]
        archive.writestr("report.json", schema.dump(report(notes=notes)))
    monkeypatch.setenv("RUN", "1")


def test_a_retraining_is_a_branch_and_a_link(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting that lets Actions open pull requests stays off."""
    setting.may_open = False
    tell(setting, DRIFT)
    handed(setting, monkeypatch, **{"params.yaml": "epochs: 2\n"})
    assert issues.main(["retrain"]).startswith("[Open the pull request](https://github.com/octo/")
    branch = setting.git("for-each-ref", "--format=%(refname:lstrip=2)", BRANCH)
    assert setting.git("show", f"{branch}:params.yaml") == "epochs: 2"
    assert not setting.pulls and not setting.waiting
    (remark,) = setting.issues[0]["remarks"]
    link = f"https://github.com/octo/digits/compare/main...{branch}?quick_pull=1&title=Retrain"
    assert link in remark["body"] and "## Better" in remark["body"]
    assert "<script>" not in remark["body"] and "closes #1" not in remark["body"]
    assert "closes #\u200b1 ‹script›" in remark["body"]


def test_an_app_opens_the_pull_request_or_no_branch_is_left(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(setting, DRIFT)
    monkeypatch.setenv("APP", "app")
    monkeypatch.setenv("COMMIT_TOKEN", "the-token-of-an-app")
    handed(setting, monkeypatch, **{"params.yaml": "epochs: 2\n"})
    setting.may_open = False  # as where it has no such permission
    with pytest.raises(DigitsError, match="403"):
        issues.main(["retrain"])
    assert setting.git("for-each-ref", BRANCH) == ""
    setting.may_open = True
    assert issues.main(["retrain"]) == "#1"
    assert [waiting[1] for waiting in setting.waiting] == ["pull-request.yml", "ci.yml"]


def test_a_branch_that_is_there_is_left_as_it_is(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(setting, DRIFT)
    handed(setting, monkeypatch, **{"params.yaml": "epochs: 2\n"})
    issues.main(["retrain"])
    before = setting.git("for-each-ref", BRANCH)
    with pytest.raises(DigitsError, match="exists already, delete it first"):
        issues.main(["retrain"])
    assert setting.git("for-each-ref", BRANCH) == before


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
    done = []
    for result in ("success", "failure", "failure", "success"):
        changes = "-numpy==2.0\n+numpy==2.1\n```@octo" if result == "failure" else ""
        monkeypatch.setenv("CHANGES", changes)
        monkeypatch.setenv("RESULT", result)
        done.append(issues.main(["weekly"]))
        if result == "failure":
            body = setting.issues[0]["body"]
            assert "+numpy==2.1\n" in body and "```@octo" not in body
    assert done == [
        "The run succeeded; no issue is open.",
        "#101: opened.",
        "#101: updated.",
        "#101: closed.",
    ]
    assert len(setting.issues) == 1


def test_newer_versions_that_pass_are_one_branch(
    setting: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = setting.artifacts / "1" / "newest.zip"
    place.parent.mkdir()
    with zipfile.ZipFile(place, "w") as archive:
        for name in ("requirements-dev.txt", "requirements.txt", "dvc.lock"):
            archive.writestr(name, "new\n")
    monkeypatch.setenv("RESULT", "success")
    monkeypatch.setenv("CHANGES", "-numpy==2.0\n+numpy==2.1")
    assert issues.main(["weekly"]) == "#101: opened."
    branch = setting.git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/newest-*")
    assert setting.git("show", f"{branch}:requirements.txt") == "new"
    assert f"/compare/main...{branch}?quick_pull=1" in setting.issues[0]["body"]
    assert issues.main(["weekly"]) == "#101: updated."  # a week later nobody has opened it
    assert f"The branch `{branch}` exists already" in setting.issues[0]["body"]


# The workflow


@needs_bash
def test_drift_opens_an_issue_and_makes_a_branch(github: GitHub) -> None:
    main = github.head("main")
    run = monitor(github, DRIFT)
    assert run.jobs == ALL, run.log
    assert all(call.status < 400 for call in github.calls)
    assert "RESTORED monitor as main" in run.log
    assert "PUSHED push --quiet --remote main as main" in run.log
    (issue,) = github.issues
    assert "2026-11-20T07:00:00Z" in issue["body"]
    branch = github.git("for-each-ref", "--format=%(refname:lstrip=2)", BRANCH)
    assert f"/compare/main...{branch}?quick_pull=1" in issue["remarks"][0]["body"]
    assert github.git("rev-parse", f"{branch}^") == main
    changed = github.git("diff", "--name-only", main, branch).splitlines()
    labelled = ["data/labelled/.gitignore", "data/labelled/devanagari_20261124.csv.dvc"]
    assert changed == [*labelled, "dvc.lock", "params.yaml"]
    assert not github.pulls and not github.waiting

    run = monitor(github, DRIFT, "workflow_dispatch")
    assert run.jobs == {"look": "success", "issue": "success"}, run.log
    assert (len(github.issues), len(github.pulls)) == (1, 0)
    run = monitor(github, CALM)
    assert run.jobs == {"look": "success", "issue": "success"}, run.log
    assert issue["state"] == "closed"


@needs_bash
def test_without_labels_nothing_is_half_done(github: GitHub) -> None:
    github.environment["LABELS"] = "none"
    run = monitor(github, DRIFT)
    assert run.jobs == {"look": "success", "issue": "success", "retrain": "failure"}, run.log
    assert len(github.issues) == 1
    assert (github.pulls, github.git("for-each-ref", BRANCH)) == ({}, "")
    assert "PUSHED" not in run.log


@needs_bash
def test_a_look_that_fails_is_red_itself(github: GitHub) -> None:
    run = monitor(github, {})
    assert run.jobs == {"look": "failure"}, run.log
    assert github.calls == []


@needs_bash
def test_the_checks_of_an_apps_pull_request_start(github: GitHub) -> None:
    github.variables["REVIEW_APP_CLIENT_ID"] = "app"
    run = monitor(github, DRIFT)
    assert run.jobs == ALL, run.log
    assert len(github.pulls) == 1
    assert [waiting[1] for waiting in github.waiting] == ["pull-request.yml", "ci.yml"]


@needs_bash
def test_without_azure_or_on_another_branch_nothing_is_looked_at(github: GitHub) -> None:
    sha = github.head("main")
    other = {"ref": "refs/heads/other", "inputs": {}}
    assert github.act("monitor.yml", "workflow_dispatch", sha, other).jobs == {}
    github.variables = {}
    run = monitor(github, DRIFT)
    assert run.jobs == {"unconfigured": "success"}, run.log
    assert "Nothing is monitored" in run.log
    assert github.calls == []


@needs_bash
@pytest.mark.prove
def test_the_weekly_run_offers_one_branch_that_is_locked_and_reproduced(github: GitHub) -> None:
    """The resolver is the test's; the bot opens no pull request."""
    github.may_open = False
    main = github.head("main")
    for _ in range(2):  # a week later nobody has opened it
        run = github.act("weekly.yml", "schedule", main, {"ref": "refs/heads/main"})
        assert run.jobs == {"newest": "success", "issue": "success"}, run.log
    assert all(call.status < 400 for call in github.calls)
    branch = github.git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/newest-*")
    changed = github.git("diff", "--name-only", main, branch).splitlines()
    assert changed == ["dvc.lock", "requirements-dev.txt", "requirements.txt"]
    (issue,) = github.issues
    assert f"The branch `{branch}` exists already" in issue["body"]
    assert "+numpy==2.1\n" in issue["body"]
    assert not github.pulls and not github.waiting
