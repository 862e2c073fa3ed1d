"""Which jobs run, as whom and with whose code, for each event: the real files, empty work."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Project
from hollow import hollow
from loopback import GitHub, needs_bash
from records import Pull, Run
from reports import report

from mlops.review import schema

pytestmark = [pytest.mark.slow, needs_bash]
WORK = """#!/usr/bin/env bash
# The programs digits, dvc and python: a review that makes a new lock, and sets what later steps of
# its job see, as an author's code can.
case "$1" in
  review) echo IDENTITY=true >> "$GITHUB_ENV"
    echo "REVIEWED $3 $4 $5 $6 $7 as $AZURE_STORAGE_CONNECTION_STRING"
    mkdir -p review; echo "$REPORT" > review/report.json; echo "## Better" > review/report.md
    echo new > dvc.lock; if [ "$GITHUB_RUN_ATTEMPT" = "$FAILS" ]; then exit 1; fi;;
esac
"""
POISON = """#!/usr/bin/env bash
echo "POISONED digits $*"
"""
SETTLED = [("pull-request.yml", "pull_request"), ("ci.yml", "pull_request")]


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    ignored = ".gitignore", "/.venv\n/node_modules\n/.dvc/\n/review/\n/lock/\n"
    project, installed = hollow(tmp_path, WORK, {"data/README.md": "", ignored[0]: ignored[1]})
    with GitHub(tmp_path / "github") as github:
        project.git("push", "--quiet", str(github.origin), "HEAD:refs/heads/main")
        (project.root / "params.yaml").write_text("epochs: 2\n")
        project.git("commit", "--quiet", "--all", "--message", "epochs")
        github.variables = {
            "AZURE_STORAGE_ACCOUNT": "account",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_READER_CLIENT_ID": "reader",
        }
        github.environment = {
            "PROJECT": str(installed),
            "IDENTITY_reader": "reader",
            "REPORT": schema.dump(report()).replace("\n", " "),
        }
        yield github


def push(github: GitHub, pull: Pull) -> Run:
    """Push, and run pull-request.yml alone."""
    github.push(github.folder.parent / "work", pull)
    event, workflow, sha, payload = github.waiting.popleft()
    github.waiting.clear()
    return github.act(workflow, event, sha, payload)


def settle(github: GitHub, pull: Pull) -> tuple[Run, Run]:
    """Push, and let everything run; return the runs of pull-request.yml and comment.yml."""
    github.push(github.folder.parent / "work", pull)
    review, checks, comment, *_ = github.settle()
    assert [(run.workflow, run.event) for run in (review, checks)] == SETTLED
    return review, comment


def test_ones_own_change_of_data_is_reviewed_as_reader_and_committed(github: GitHub) -> None:
    pull = Pull(1, "epochs")
    review, comment = settle(github, pull)
    assert review.jobs == {"review": "failure"}, review.log  # the lock is outdated
    assert "REVIEWED --restore main --gate --base origin/main as reader" in review.log
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
    assert {(call.workflow, call.job) for call in github.calls} == {
        ("pull-request.yml", "review"),
        ("comment.yml", "comment"),
        ("comment.yml", "commit"),
    }
    assert all(call.status < 400 for call in github.calls)
    assert github.git("show", "epochs:dvc.lock") == "new"
    assert "**The results of this run are committed** as " in pull.comments[0]["body"]
    assert [row["state"] for row in github.statuses] == ["success"]
    # What writes has main's code, and the review the author's.
    parent, main = github.git("rev-parse", "epochs^"), github.head("main")
    assert f"\nCHECKED_OUT review {parent}" in review.log
    for job in ("comment", "commit"):
        assert f"\nCHECKED_OUT {job} {main}" in comment.log
    # The checks of the commit wait for a person, and nothing is committed upon it.
    made = github.head("epochs")
    assert not github.waiting
    github.environment["REPORT"] = "{}"
    github.approve(pull)
    again = github.settle()
    assert again[0].jobs == {"review": "success"}, again[0].log  # the lock is what was made
    assert github.head("epochs") == made
    assert "ended with **success**" in pull.comments[0]["body"]


@pytest.mark.parametrize(
    "pull",
    [Pull(1, "epochs", "mallory/digits", "mallory"), Pull(1, "epochs", author="dependabot[bot]")],
    ids=["fork", "dependabot"],
)
def test_a_pull_request_that_may_not_has_no_identity(github: GitHub, pull: Pull) -> None:
    run = push(github, pull)
    assert run.jobs == {"review": "failure"}, run.log
    assert "REVIEWED --restore cache --gate --base origin/main as \n" in run.log
    assert {call.path for call in github.calls} == {"/actions/caches"}


@pytest.mark.prove
def test_re_running_the_failed_jobs_turns_green_after_a_failure_that_passes(github: GitHub) -> None:
    """Its artifacts have names that the first attempt has used; the comment is updated."""
    work, pull = Project(github.folder.parent / "work"), Pull(1, "epochs")
    (work.root / "dvc.lock").write_text("new\n")
    work.git("commit", "--quiet", "--all", "--message", "The lock")
    github.environment["FAILS"] = "1"
    review, _ = settle(github, pull)
    assert review.jobs == {"review": "failure"}, review.log
    assert "ended with **failure**" in pull.comments[0]["body"]
    assert not github.mergeable(pull)
    github.rerun(review)
    (comment,) = github.settle()
    assert review.jobs == {"review": "success"}, review.log
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
    (row,) = pull.comments
    assert row["body"].startswith("<!-- digits-review run=1 attempt=2 -->")
    assert "ended with **success**" in row["body"]
    assert github.mergeable(pull)


def test_without_azure_the_lock_is_committed_all_the_same(github: GitHub) -> None:
    github.variables = {}
    review, comment = settle(github, Pull(1, "epochs"))
    assert "REVIEWED --restore cache" in review.log
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
    assert github.git("show", "epochs:dvc.lock") == "new"


def test_the_checks_of_an_apps_commit_start_and_are_not_committed_upon(github: GitHub) -> None:
    github.variables["REVIEW_APP_CLIENT_ID"] = "app"
    github.push(github.folder.parent / "work", Pull(1, "epochs"))
    runs = github.settle()
    names = [run.workflow for run in runs]
    assert names == ["pull-request.yml", "ci.yml", "comment.yml"] * 2, runs[-1].log
    assert [run.actor for run in runs if run.workflow == "pull-request.yml"] == ["User", "Bot"]
    assert github.git("show", "epochs:dvc.lock") == "new"
    assert github.git("rev-parse", "epochs~2") == github.head("main")


def test_a_merge_group_is_reviewed_alone(github: GitHub) -> None:
    push(github, Pull(1, "epochs"))
    base = github.head("main")
    payload = {"merge_group": {"base_sha": base, "head_ref": "refs/heads/gh-readonly-queue/x"}}
    run = github.act("pull-request.yml", "merge_group", github.head("epochs"), payload)
    assert set(run.jobs) == {"review"}, run.log
    assert f"REVIEWED --restore main --gate --base {base} as reader" in run.log


def test_a_pull_request_to_another_branch_has_no_checks_to_carry_over(github: GitHub) -> None:
    """That branch may have a lower gate of its author's; a change of the base starts no run."""
    github.git("update-ref", "refs/heads/easy", github.head("main"))
    pull = Pull(1, "epochs", base="easy")
    github.push(github.folder.parent / "work", pull)
    assert github.settle() == []
    github.retarget(pull, "main")
    assert github.settle() == []
    assert not github.mergeable(pull)
    review, comment = settle(github, pull)  # it is pushed again, or closed and opened
    assert "--base origin/main" in review.log
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log


def poison(github: GitHub, ref: str) -> None:
    """Fill a ref's cache with an environment of one's own."""
    program = github.caches / ref / "dvc-1" / ".venv" / "bin" / "digits"
    program.parent.mkdir(parents=True)
    program.write_text(POISON)
    program.chmod(0o755)


def test_a_cache_of_main_is_restored(github: GitHub) -> None:
    content = github.caches / "refs-heads-main" / "dvc-1" / ".dvc/cache/files/md5/ab/cd"
    content.parent.mkdir(parents=True)
    content.write_text("x")
    run = push(github, Pull(1, "epochs"))
    assert "RESTORED_CACHE refs-heads-main" in run.log
    assert "REVIEWED" in run.log


def test_a_cache_of_the_pull_requests_own_ref_is_not_restored(github: GitHub) -> None:
    """An earlier commit of the pull request may have filled it, .venv included."""
    poison(github, "refs-pull-1-merge")
    run = push(github, Pull(1, "epochs"))
    assert "No cache is restored: refs/pull/1/merge has 1 of its own" in run.log
    assert "RESTORED_CACHE" not in run.log and "POISONED" not in run.log
    assert "REVIEWED" in run.log


def test_with_that_defence_switched_off_the_cache_would_run(github: GitHub) -> None:
    poison(github, "refs-pull-1-merge")
    work = github.folder.parent / "work"
    file = work / ".github" / "workflows" / "pull-request.yml"
    text = file.read_text("utf-8")
    condition = "        if: steps.caches.outputs.own == 'false'\n"
    assert condition in text
    file.write_text(text.replace(condition, ""), "utf-8")
    Project(work).git("commit", "--quiet", "--all", "--message", "Without")
    run = push(github, Pull(1, "epochs"))
    assert "POISONED digits review" in run.log


def test_each_line_of_the_table_of_trust_names_a_test() -> None:
    table = (ROOT / ".github" / "SECURITY.md").read_text("utf-8").partition("## What a review")[0]
    rows = [row for row in table.splitlines() if row.startswith("|")][2:]
    assert rows
    for row in rows:
        (path, name), *_ = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), row
