"""`digits verify github` against an account on the GitHub on loopback; see account.py."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from account import TOKEN, Account
from conftest import NAME as PROGRAM
from conftest import ROOT
from hollow import hollow
from loopback import needs_bash
from records import NAME
from reports import report

from benchmarks import verified, verify_github
from core.errors import DigitsError
from mlops import git
from mlops.bot import github as client
from mlops.review import schema

PARAMS = "epochs: 1\nmistakes: 60\n"
LOCK = "stages:\n  a:\n    deps:\n    - path: params.yaml\n"
WORK = f"""#!/usr/bin/env bash
# The programs {PROGRAM}, dvc and python: a pipeline whose lock is the hash of params.yaml. The
# attempt HOLD of a run goes on until it is cancelled.
case "$(basename "$0") $1" in
  "dvc repro") git checkout --quiet dvc.lock;;
  "{PROGRAM} merge") git merge --quiet --no-edit --strategy-option ours "$2";;
  "{PROGRAM} review") if [ "$GITHUB_RUN_ATTEMPT" = "$HOLD" ]; then read -r < "$NEVER"; fi
    mkdir -p review; echo "$REPORT" > review/report.json; echo "## Better" > review/report.md
    {{ sed '$d' dvc.lock; echo "# $(sha256sum < params.yaml)"; }} > lock.new; mv lock.new dvc.lock;;
esac
"""
IGNORED = "/.venv\n/node_modules\n/.dvc/\n/review/\n/lock/\n/verified.json\n"
YES = [NAME, "--yes"]
Make = Callable[..., Account]


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A person who has the project, and an account without a repository."""
    texts = {"data/README.md": "Data.\n", ".gitignore": IGNORED, "params.yaml": PARAMS}
    texts["README.md"] = "Digits. <!-- verified --><!-- end of verified -->\n"
    texts["dvc.lock"] = f"{LOCK}# {hashlib.sha256(PARAMS.encode()).hexdigest()}  -\n"
    for name in ("ruleset.json", "ruleset-solo.json"):
        texts[f".github/{name}"] = (ROOT / ".github" / name).read_text("utf-8")
    project, installed = hollow(tmp_path, WORK, texts)
    (project.root / "data" / "image.png").write_bytes(b"\x89PNG\xff\x00")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "An image")
    os.mkfifo(tmp_path / "never")
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(verify_github, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(verify_github, "WAIT_SECONDS", 120.0)
    monkeypatch.setattr(client, "WAIT_SECONDS", 0.0)
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    for name in ("TOKEN", "GITHUB_REPOSITORY"):
        monkeypatch.setenv(name, "")  # set by the command; put back in the end
    monkeypatch.delenv("GITHUB_JOB", raising=False)
    made: list[Account] = []

    def make(**how: Any) -> Account:
        account = Account(tmp_path / f"github{len(made)}", **how)
        account.environment = {
            "PROJECT": str(installed),
            "NEVER": str(tmp_path / "never"),
            "HOLD": "3",  # path 8; the second is that of path 1
            "REPORT": schema.dump(report()).replace("\n", " "),
        }
        account.__enter__()
        made.append(account)
        monkeypatch.setenv("GITHUB_API_URL", account.url)
        return account

    try:
        yield make
    finally:
        for one in made:
            one.__exit__()


def record() -> dict[str, Any]:
    """Return what verified.json has of GitHub."""
    return json.loads(verified.OUT.read_text("utf-8"))["github"]


def results() -> dict[str, str]:
    """Return the result of each step."""
    return {name: row["result"] for name, row in record()["steps"].items()}


@needs_bash
@pytest.mark.prove(minutes=3)
@pytest.mark.parametrize("plan", ["pro", "free"])
def test_the_paths_are_played_and_the_repository_deleted(
    account: Make, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    github = account(plan=plan)
    if plan == "free":
        github.kinder, github.environment["HOLD"] = False, "2"
    verify_github.main(YES)
    steps = ["repository", "main", *verify_github.PATHS, "delete"]
    expected = dict.fromkeys(steps, "ok")
    if plan == "free":
        expected["path 7"] = "not played: private repositories of this plan have no rulesets"
    assert results() == expected
    pressed = capsys.readouterr().out.count(
        'Press "Approve workflows to run" on https://github.com'
    )
    assert pressed == (2 if plan == "free" else 0)
    assert (github.repository, len(github.deleted)) == (None, 1)
    assert github.disabled == set(verify_github.OFF)
    assert github.variables == ({"ENVIRONMENTS": "none"} if plan == "free" else {})
    assert not any(run.workflow in verify_github.OFF for run in github.runs)
    contexts = [
        check["context"]
        for row in github.rulesets.values()
        for rule in row["rules"]
        for check in rule.get("parameters", {}).get("required_status_checks", ())
    ]
    assert contexts == (["review"] if plan == "pro" else [])
    found = record()
    assert set(verify_github.NOT_PLAYED) <= set(found["not played"])
    text = verified.OUT.read_text("utf-8")
    for secret in (TOKEN, "octo", "583231", "example.org", '"secret"'):
        assert secret not in text
    assert {"PUT", "DELETE", "POST"} <= {call["method"] for call in found["calls"]}
    said = verified.README.read_text("utf-8")
    assert f"Verified on GitHub on {found['date']} at `" in said
    assert "path 2 (not played: path 4" in said.replace(", delete", "")


def failed(match: str = "GitHub does not behave as expected") -> None:
    """Verify, which fails."""
    with pytest.raises(DigitsError, match=match):
        verify_github.main(YES)


def test_what_fails_is_kept_and_the_repository_deleted(account: Make) -> None:
    github = account()
    github.refusals["POST", "/git/trees"] = 422, {"message": "tree.sha is invalid"}
    failed()
    assert list(results()) == ["repository", "delete"]
    assert "422" in results()["repository"] and results()["delete"] == "ok"
    assert (github.repository, len(github.deleted)) == (None, 1)
    text = verified.README.read_text("utf-8")
    assert "**Failed on GitHub on " in text and ": repository; passed: delete (not played" in text
    (call,) = (call for call in record()["calls"] if call["status"] == 422)
    assert call["path"].endswith("/git/trees")


@needs_bash
@pytest.mark.prove
def test_what_fails_in_the_middle_is_kept_and_the_repository_deleted(account: Make) -> None:
    github = account()
    github.refusals["POST", "/pulls"] = 500, {"message": "Server Error"}
    failed()
    assert {name: row[:6] for name, row in results().items()} == {
        "repository": "ok",
        "main": "ok",
        "path 9": "failed",
        "delete": "ok",
    }
    assert (github.repository, len(github.deleted)) == (None, 1)


def test_an_interrupted_verification_is_kept_and_its_repository_deleted(
    account: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> str:
        raise KeyboardInterrupt

    github = account()
    monkeypatch.setattr(verify_github.Verification, "upload", interrupt)
    failed()
    assert results() == {"repository": "failed: interrupted", "delete": "ok"}
    assert github.repository is None


def test_a_repository_whose_creation_was_not_answered_is_deleted_by_its_marker(
    account: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    github = account()
    make = github.make
    monkeypatch.setattr(github, "make", lambda body: (make(body), (502, {}))[1])
    failed()
    assert (github.repository, len(github.deleted)) == (None, 1)


def test_where_nothing_could_be_made_nothing_is_deleted(account: Make) -> None:
    github = account()
    github.refusals["POST", "/user/repos"] = 403, {"message": "Repository limit reached"}
    failed()
    assert "403" in results()["repository"] and results()["delete"] == "ok"
    assert not any(call.method == "DELETE" for call in github.calls)


def test_a_repository_of_another_is_not_deleted(
    account: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has made one of that name in between."""
    github, other = account(), {"description": "Made by digits verify github", "private": True}

    def make(body: Any) -> tuple[int, Any]:
        github.repository = other
        return 422, {"message": "name already exists on this account"}

    monkeypatch.setattr(github, "make", make)
    failed()
    assert github.repository is other and not github.deleted
    assert "expected a repository of this run" in results()["delete"]


def test_a_deletion_that_is_refused_is_left_to_a_person(account: Make) -> None:
    github = account()
    github.refusals["POST", "/git/trees"] = 422, {}
    github.refusals["DELETE", ""] = 403, {"message": "Must have admin rights to Repository."}
    failed()
    text = "Delete it by hand: https://github.com/octo/digits/settings"
    assert text in results()["delete"].replace("somebody", "octo")


def test_what_is_there_is_refused(account: Make) -> None:
    github = account()
    github.repository = {"description": "Mine", "private": True}
    failed("octo/digits: exists. Give a new name")
    assert github.repository["description"] == "Mine" and not verified.OUT.exists()
    assert {call.method for call in github.calls} == {"GET"}


@pytest.mark.parametrize(
    ("scopes", "missing"),
    [((), "delete_repo, repo, workflow"), (("repo", "workflow"), "delete_repo")],
)
def test_a_token_without_its_scopes_makes_nothing(
    account: Make, scopes: tuple[str, ...], missing: str
) -> None:
    github = account(scopes=scopes)
    failed(f"expected a classic token with the scopes {missing}; found")
    assert [(call.method, call.path) for call in github.calls] == [("GET", "/user")]


def test_the_plan_is_shown_and_nothing_made_without_consent(
    account: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    github = account()
    monkeypatch.setattr("builtins.input", lambda question: "another")
    with pytest.raises(DigitsError, match="Nothing was made"):
        verify_github.main([NAME])
    said = capsys.readouterr().out
    for text in ("Cost: about 150 minutes", "the scopes delete_repo, repo, workflow", "path 4 (a"):
        assert text in said
    assert {call.method for call in github.calls} == {"GET"}
    Path("README.md").write_text("changed")
    failed("README.md: not committed")
    Path("README.md").unlink()
    monkeypatch.delenv("GITHUB_TOKEN")
    monkeypatch.setattr(git, "changed", lambda _: [])
    failed("GITHUB_TOKEN is not set")
    assert not verified.OUT.exists()
