"""Which jobs run, and with which identity, for each event: the real workflow file, empty work."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hollow import hollow
from loopback import GitHub, needs_bash
from records import Pull, Run

pytestmark = [pytest.mark.slow, needs_bash]
WORK = """#!/usr/bin/env bash
# Stands in for digits, dvc and python: a review that makes a new lock and something for the cache,
# and sets what later steps of its job see, as an author's code can.
case "$1" in
  review) echo TRUSTED=true >> "$GITHUB_ENV"
    mkdir -p review .dvc/cache/files; echo "## better" > review/report.md
    echo new > dvc.lock; echo x > .dvc/cache/files/x; touch -d '+1 hour' .dvc/cache/files/x;;
  fetch) echo "FETCHED $5 as $AZURE_STORAGE_CONNECTION_STRING";;
  -m) echo "PUBLISHED as $AZURE_STORAGE_CONNECTION_STRING";;
esac
"""


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    texts = {"data/README.md": "", ".gitignore": "/.venv\n/node_modules\n/.dvc/\n"}
    project, installed = hollow(tmp_path, WORK, texts)
    with GitHub(tmp_path / "github") as github:
        project.git("push", "--quiet", str(github.origin), "HEAD:refs/heads/main")
        (project.root / "params.yaml").write_text("epochs: 2\n")
        project.git("commit", "--quiet", "--all", "--message", "epochs")
        github.variables = {
            "AZURE_STORAGE_ACCOUNT": "account",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_READER_CLIENT_ID": "reader",
            "AZURE_REVIEWER_CLIENT_ID": "reviewer",
        }
        github.environment = {
            "PROJECT": str(installed),
            "IDENTITY_reader": "reader",
            "IDENTITY_reviewer": "reviewer",
        }
        yield github


def push(github: GitHub, pull: Pull) -> Run:
    github.push(github.folder.parent / "work", pull)
    event, workflow, sha, payload = github.waiting.popleft()
    return github.act(workflow, event, sha, payload)


def dispatch(github: GitHub, branch: str, relock: str) -> Run:
    github.dispatch("pull-request.yml", branch, {"relock": relock})
    event, workflow, sha, payload = github.waiting.pop()
    return github.act(workflow, event, sha, payload)


def test_ones_own_pull_request_reads_as_reader_and_publishes_as_reviewer(github: GitHub) -> None:
    run = push(github, Pull(1, "epochs"))
    assert run.jobs == {"review": "failure", "publish": "success", "commit": "success"}, run.log
    assert "FETCHED main as reader" in run.log
    assert "FETCHED review as reader" in run.log
    assert "PUBLISHED as reviewer" in run.log
    assert {call.job for call in github.calls} == {"commit"}
    assert all(call.status < 300 for call in github.calls)
    assert [waiting[1] for waiting in github.waiting] == ["ci.yml", "pull-request.yml"]


def test_what_writes_has_mains_code_and_the_review_the_authors(github: GitHub) -> None:
    run = push(github, Pull(1, "epochs"))
    parent = github.git("rev-parse", "epochs^")  # the author's: the lock came on top
    main = github.head("main")
    for job, commit in (("review", parent), ("publish", main), ("commit", main)):
        assert f"\nCHECKED_OUT {job} {commit}" in run.log


@pytest.mark.parametrize(
    "pull",
    [Pull(1, "epochs", "mallory/digits", "mallory"), Pull(1, "epochs", author="dependabot[bot]")],
    ids=["fork", "dependabot"],
)
def test_a_pull_request_that_may_not_reads_nothing(github: GitHub, pull: Pull) -> None:
    run = push(github, pull)
    assert run.jobs == {"review": "failure"}, run.log
    assert "FETCHED" not in run.log
    assert github.calls == []


def test_without_azure_the_lock_is_committed_all_the_same(github: GitHub) -> None:
    github.variables = {}
    run = push(github, Pull(1, "epochs"))
    assert run.jobs == {"review": "failure", "commit": "success"}, run.log
    assert "FETCHED" not in run.log
    assert github.git("show", "epochs:dvc.lock") == "new"


def test_a_run_that_a_job_started_commits_nothing(github: GitHub) -> None:
    push(github, Pull(1, "epochs"))
    before = github.head("epochs")
    assert "commit" not in dispatch(github, "epochs", "false").jobs
    assert github.head("epochs") == before


def test_main_is_never_committed_to(github: GitHub) -> None:
    before = github.head("main")
    assert "commit" not in dispatch(github, "main", "true").jobs
    assert github.head("main") == before
    run = push(github, Pull(1, "main"))  # from main into another branch
    assert run.jobs == {"review": "failure", "publish": "success"}, run.log


def test_the_push_of_an_app_is_not_committed_upon(github: GitHub) -> None:
    """A pipeline that gives other bytes each time would go round for ever."""
    work = github.folder.parent / "work"
    github.push(work, Pull(1, "epochs"))
    event, workflow, sha, payload = github.waiting.popleft()
    run = github.act(workflow, event, sha, payload | {"sender": {"type": "Bot"}})
    assert run.jobs == {"review": "failure", "publish": "success"}, run.log


def test_an_app_commits_without_starting_anything(github: GitHub) -> None:
    github.variables["REVIEW_APP_CLIENT_ID"] = "app"
    run = push(github, Pull(1, "epochs"))
    assert run.jobs["commit"] == "success", run.log
    assert github.git("show", "epochs:dvc.lock") == "new"
    assert not github.waiting  # the push of an app starts them on GitHub itself


def test_a_merge_group_is_reviewed_alone(github: GitHub) -> None:
    push(github, Pull(1, "epochs"))
    base = github.head("main")
    payload = {"merge_group": {"base_sha": base, "head_ref": "refs/heads/gh-readonly-queue/x"}}
    run = github.act("pull-request.yml", "merge_group", github.head("epochs"), payload)
    assert set(run.jobs) == {"review"}, run.log
    assert "FETCHED main as reader" in run.log
