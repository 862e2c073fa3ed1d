"""What the privileged jobs run, against GitHub's API on loopback and hostile input."""

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import steps
from conftest import ROOT, Project, environment
from loopback import GitHub, needs_bash
from records import FULL_NAME, Pull, Run
from reports import report

from core.errors import DigitsError
from mlops.bot import change, comment, commit, issues
from mlops.bot import github as client
from mlops.review import schema

pytestmark = pytest.mark.slow

MUCH = 50_000_000


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    """A repository with main and the branch of pull request 7."""
    project = Project(tmp_path / "work")
    project.root.mkdir()
    with GitHub(tmp_path / "github") as github:
        project.git("init", "--quiet", "--initial-branch", "main")
        for branch, text in (("main", "epochs: 1\n"), ("mehr-übung", "epochs: 2\n")):
            (project.root / "params.yaml").write_text(text)
            project.git("add", "--all")
            project.git("commit", "--quiet", "--message", branch)
            project.git("push", "--quiet", str(github.origin), f"HEAD:refs/heads/{branch}")
        github.pulls[7] = Pull(7, "mehr-übung")
        for name, value in {
            "GITHUB_API_URL": github.url,
            "GITHUB_REPOSITORY": FULL_NAME,
            "TOKEN": "the-token-of-a-job",
            "COMMIT_TOKEN": "the-token-of-a-job",
            "DEFAULT_BRANCH": "main",
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            "LINK": "https://github.com/octo/digits/actions/runs/1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("GITHUB_JOB", raising=False)
        monkeypatch.setattr(client, "WAIT_SECONDS", 0.0)
        yield github


def archive(**files: str | bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as members:
        for name, content in files.items():
            members.writestr(name, content)
    return packed.getvalue()


def ran(github: GitHub, number: int = 1, sha: str = "", **artifacts: bytes) -> Run:
    """Add a run of pull-request.yml with artifacts."""
    sha = sha or github.head("refs/heads/mehr-übung")
    run = Run(len(github.runs) + 1, "pull-request.yml", "pull_request", "mehr-übung", sha)
    run.number = number
    github.runs.append(run)
    for name, content in artifacts.items():
        place = github.artifacts / str(run.id) / f"{name}.zip"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
    return run


def reported(github: GitHub, number: int = 1, verdict: str = "better", sha: str = "") -> Run:
    """Add a run with a valid report."""
    content = archive(**{"report.json": schema.dump(report(verdict=verdict))})
    return ran(github, number, sha, report=content)


def show(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RUN", str(run.id))
    return comment.main([])


def committed_and_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the jobs `commit` and `comment` run, one after the other; return what the first did."""
    output = Path(os.environ["GITHUB_OUTPUT"])
    output.write_text("")
    try:
        done = commit.main([])
    except DigitsError as error:
        done = str(error)
    for line in output.read_text().splitlines():
        key, _, value = line.partition("=")
        monkeypatch.setenv(key.upper(), value)
    show(run, monkeypatch)
    return done


def texts(github: GitHub) -> list[str]:
    return [row["body"] for row in github.pulls[7].comments]


def push(github: GitHub, folder: Path, files: dict[str, str], branch: str = "mehr-übung") -> str:
    """Push a commit on top of main to a branch; return its id."""
    work = Project(folder / "more")
    if not work.root.exists():
        command = ["git", "clone", "--quiet", str(github.origin), str(work.root)]
        subprocess.run(command, check=True, env=environment())
    work.git("checkout", "--quiet", "-B", "more", "origin/main")
    for name, text in files.items():
        (work.root / name).parent.mkdir(parents=True, exist_ok=True)
        (work.root / name).write_text(text)
    work.git("add", "--all", "--force")
    work.git("commit", "--quiet", "--message", "More")
    work.git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}")
    return work.git("rev-parse", "HEAD").strip()


# The comment


def test_a_second_push_updates_the_comment(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(150):  # more than a page of others' comments
        body = {"id": 7000 + number, "user": {"login": "student"}, "body": "Hm."}
        github.pulls[7].comments.append(body)
    show(reported(github, 1, "better"), monkeypatch)
    show(reported(github, 2, "worse"), monkeypatch)
    assert len(texts(github)) == 151
    assert "Worse" in texts(github)[-1]
    assert "Better" not in texts(github)[-1]
    assert texts(github)[-1].splitlines()[1].startswith("## Worse")  # the verdict comes first
    assert github.leaks == []  # the token stayed with GitHub


def test_an_older_report_never_overwrites_a_newer_one(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = reported(github, 1, "better"), reported(github, 2, "worse")
    show(newer, monkeypatch)
    assert "to the newer run 2" in show(older, monkeypatch)
    assert "## Worse" in texts(github)[0]
    again = reported(github, 2, "mixed")
    again.attempt = 2
    show(again, monkeypatch)
    assert "## Mixed" in texts(github)[0]


def test_a_report_of_another_commit_belongs_nowhere(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number the artifact claims: the run's commit decides."""
    lie = archive(**{"report.json": '{"pull_request": 7}', "number": "7"})
    run = ran(github, sha=github.head("main"), report=lie)
    assert "nothing to comment" in show(run, monkeypatch)
    assert texts(github) == []


def test_a_fork_with_the_same_branch_and_commit_is_another(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reported(github)
    run.source = "mallory/digits"
    assert "nothing to comment" in show(run, monkeypatch)
    run.source = ""  # and one that has been deleted
    assert "nothing to comment" in show(run, monkeypatch)


def test_a_run_of_another_workflow_is_refused(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reported(github)
    run.workflow = "mine.yml"
    with pytest.raises(DigitsError, match=r"not of .*pull-request\.yml"):
        show(run, monkeypatch)
    monkeypatch.setenv("RUN", "1/../../x")
    with pytest.raises(DigitsError, match="not a run's id"):
        comment.main([])


def test_a_run_that_waits_for_approval_has_no_comment(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ran(github)
    run.jobs = {"review": "action_required"}
    assert "waits for approval" in show(run, monkeypatch)
    assert texts(github) == []


def test_a_persons_comment_with_the_marker_is_left_alone(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = "<!-- digits-review run=99999 attempt=1 -->"
    github.pulls[7].comments.append({"id": 7000, "user": {"login": "mallory"}, "body": marker})
    show(reported(github), monkeypatch)
    assert texts(github)[0] == marker
    assert texts(github)[1].count("<!--") == 1
    show(reported(github, 2, "worse"), monkeypatch)
    assert "## Worse" in texts(github)[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read: File is not a zip file"),
        (b"PK no zip", "cannot be read: File is not a zip file"),
        (archive(other="x"), "the run ended before it wrote a report"),
        (archive(**{"report.json": b""}), "Expecting value"),
        (archive(**{"report.json": schema.dump(report())[:999]}), "Expecting|Unterminated|delim"),
        (archive(**{"report.json": b"[" * MUCH}), "more than 4000000 bytes"),
        (archive(**{"report.json": b"@octo <b>"}), "Expecting value"),
        (archive(**{"report.json": '{"@octo": 1}'}), "expected the keys"),
        (bytes(client.ARTIFACT_BYTES + 1), "more than 20000000 bytes"),
    ],
)
def test_a_damaged_report_is_named_and_the_comment_is_true(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    show(ran(github, report=content), monkeypatch)
    (body,) = texts(github)
    marker, title, *_ = body.splitlines()
    assert marker.startswith("<!-- digits-review run=1 ")
    assert title.startswith("## No report: ")
    assert any(part in title for part in reason.split("|")), title
    assert "ended with **success**" in body
    assert "@octo" not in body


def test_a_run_without_a_report_is_named(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    show(ran(github), monkeypatch)
    assert "No report: the run ended before it wrote a report" in texts(github)[0]


def test_no_member_of_an_archive_reaches_the_disk(
    github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    run = ran(github, report=archive(**{"../../evil": "x", "/evil": "x", "report.json": "ok"}))
    files = client.artifact(run.id, "report", 100)
    assert files and files["report.json"] == b"ok"
    assert list(folder.iterdir()) == [] and not (tmp_path / "evil").exists()


def test_a_report_that_is_too_long_is_said_to_be(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [schema.Stage("@" * 200, "ran", 1.0, ["@" * 99] * 9)] * 99
    params = [schema.ParamChange("@" * 200, "@" * 200, "@" * 200)] * 99
    long = schema.dump(report(stages=stages, params=params, last_lines=["@" * 200] * 99))
    show(ran(github, report=archive(**{"report.json": long})), monkeypatch)
    assert len(texts(github)[0]) < 65_536
    assert "ended with **success**" in texts(github)[0]


# What is data and what is code


@pytest.mark.parametrize(
    "name",
    [
        "params.yaml",
        "dvc.lock",
        "data/noise.json",
        "data/evaluation/metrics.json",
        "data/model/curves.csv",
        "data/labelled/devanagari_20261124.csv.dvc",
        "data/labelled/.gitignore",
        "data/labelled/console (1) – é.csv",
        "data/raw/digits/1.png",
        "README.md",
        ".github/COURSE.md",
    ],
)
def test_data(github: GitHub, tmp_path: Path, name: str) -> None:
    head = push(github, tmp_path, {name: "new\n"})
    assert change.code("main", head) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dvc.yaml", "stages: {train: {frozen: true}}\n"),
        (".dvc/config", "[cache]\n    dir = ../../elsewhere\n"),
        ("data/dvc.yaml", "stages: {}\n"),
        ("data/.dvc/config", ""),
        ("data/.dvc/x.json", ""),
        ("data/x.py", ""),
        ("data/.gitattributes", ""),
        (".gitattributes", ""),
        (".dvcignore", ""),
        (".github/workflows/ci.yml", ""),
        (".github/actions/setup/action.yml", ""),
        ("requirements.txt", ""),
        ("src/digits/model/network.py", ""),
        ("src/params.yaml", ""),
        ("params.yaml\n.py", ""),
        ("data/a\\b.csv", ""),  # names that Windows cannot have
        ("data/a:b.csv", ""),
        ("data/a\nb.csv", ""),
        ("data/CON.csv", ""),
        ("data/lpt1/a.csv", ""),
        ("Params.yaml", ""),
    ],
)
def test_code_is_named(
    github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    head = push(github, tmp_path, {name: text, "README.md": "And a word.\n"})
    assert change.code("main", head) == [name]
    show(reported(github, sha=head), monkeypatch)
    (body,) = texts(github)
    assert "**This changes code**: " in body
    assert body.index("This changes code") < body.index("| **mnist accuracy** |")


def test_a_link_and_a_program_are_code(github: GitHub, tmp_path: Path) -> None:
    push(github, tmp_path, {"README.md": ""})
    work = Project(tmp_path / "more")
    (work.root / "data").symlink_to("src")
    (work.root / "x.md").symlink_to("/etc/passwd")
    (work.root / "run.md").write_text("")
    (work.root / "run.md").chmod(0o755)
    work.git("add", "--all")
    work.git("commit", "--quiet", "--message", "Links")
    work.git("push", "--quiet", "origin", "HEAD:refs/heads/mehr-übung")
    found = change.code("main", github.head("refs/heads/mehr-übung"))
    assert found == ["data", "run.md (not a plain file)", "x.md (not a plain file)"]


def test_a_rename_of_code_and_300_files_are_code(github: GitHub, tmp_path: Path) -> None:
    push(github, tmp_path, {"src/x.py": "print()\n" * 9}, "main")
    Project(tmp_path / "more").git("fetch", "--quiet")
    push(github, tmp_path, {"README.md": ""})
    work = Project(tmp_path / "more")
    work.git("mv", "src/x.py", "x.md")
    work.git("commit", "--quiet", "--message", "Away")
    work.git("push", "--quiet", "origin", "HEAD:refs/heads/mehr-übung")
    assert change.code("main", github.head("refs/heads/mehr-übung")) == ["src/x.py"]
    head = push(github, tmp_path, {f"data/{number}.csv": "" for number in range(300)})
    assert change.code("main", head) == ["300 files or more"]


# The commit

LOCK = {"dvc.lock": "schema: '2.0'\n", "data/evaluation/metrics.json": "{}"}


def committed(github: GitHub, monkeypatch: pytest.MonkeyPatch, sha: str = "", **more: str) -> Run:
    """Add a run with a report and the artifact `lock`, and let it be committed."""
    content = archive(**{"report.json": schema.dump(report())})
    run = ran(github, sha=sha, report=content, lock=archive(**{**LOCK, **more}))
    monkeypatch.setenv("RUN", str(run.id))
    return run


def test_a_lock_is_committed_and_its_checks_wait_for_approval(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = github.head("refs/heads/mehr-übung")
    run = committed(github, monkeypatch)
    assert "is now at" in committed_and_shown(run, monkeypatch)
    made = github.head("refs/heads/mehr-übung")
    (text,) = texts(github)  # the head has moved, and the comment is not lost
    assert f"are committed** as {made[:10]}. Its checks wait" in text
    assert 'presses "Approve workflows to run" below, or "Re-run all jobs"' in text
    assert text.index("Its checks wait") < text.index("| **mnist accuracy** |")
    assert github.git("rev-parse", "mehr-übung^") == before
    changed = github.git("diff", "--name-only", before, "mehr-übung").split()
    assert changed == ["data/evaluation/metrics.json", "dvc.lock"]
    # `workflow_run` fires for a run that waits for approval.
    assert [waiting[1] for waiting in github.waiting] == ["comment.yml"]
    monkeypatch.delenv("MADE")
    assert "waits for approval" in show(github.runs[-1], monkeypatch)
    github.waiting.clear()
    github.approve(github.pulls[7])
    assert [waiting[1] for waiting in github.waiting] == ["pull-request.yml", "ci.yml"]


def test_the_checks_of_an_apps_commit_start(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = committed(github, monkeypatch)
    monkeypatch.setenv("COMMIT_TOKEN", "the-token-of-an-app")
    monkeypatch.setenv("APP", "app")
    committed_and_shown(run, monkeypatch)
    assert "Its checks run." in texts(github)[0] and "presses" not in texts(github)[0]
    assert [waiting[1] for waiting in github.waiting] == ["pull-request.yml", "ci.yml"]


def test_a_run_whose_lock_is_up_to_date_commits_nothing(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reported(github)
    show(run, monkeypatch)
    assert "dvc.lock or a table" not in texts(github)[0]
    assert "up to date" in commit.main([])


def left(github: GitHub, run: Run, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Check that a run's lock is left to the author, and that the comment has the commands."""
    before = github.head("refs/heads/mehr-übung")
    assert f"Left to the author: {why}" in committed_and_shown(run, monkeypatch)
    assert github.head("refs/heads/mehr-übung") == before
    if texts(github):
        assert why in texts(github)[0]
        command = f"gh run download {run.id} --repo {FULL_NAME} --name lock"
        assert command in texts(github)[0]


def test_a_change_of_code_is_left_to_its_author(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head = push(github, tmp_path, {"train.py": ""})
    left(github, committed(github, monkeypatch, head), monkeypatch, "it changes code (train.py)")


def test_the_commit_of_a_bot_is_not_committed_upon(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that gives other bytes each time would go round for ever."""
    run = committed(github, monkeypatch)
    run.actor = "Bot"
    left(github, run, monkeypatch, "the last commit is by a bot")


def test_a_push_to_anothers_branch_is_left_to_who_pushed(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = committed(github, monkeypatch)
    run.login = "helper"
    left(github, run, monkeypatch, "helper pushed to the branch of student")


def test_a_branch_that_moved_on_is_left_alone(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = committed(github, monkeypatch, github.head("main"))
    left(github, run, monkeypatch, f"no open pull request has the head {run.sha}")


def test_a_fork_is_left_alone(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = Pull(8, "mehr-übung", "mallory/digits", "mallory")
    github.git("update-ref", github.ref(fork), "refs/heads/mehr-übung")
    github.pulls[8] = fork
    run = committed(github, monkeypatch)
    run.source = "mallory/digits"
    left(github, run, monkeypatch, "its branch is in a fork")
    assert f"gh run download {run.id}" in fork.comments[0]["body"]


def test_main_is_never_committed_to(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    github.pulls[8] = Pull(8, "main")  # from main into another branch
    run = committed(github, monkeypatch, github.head("main"))
    run.branch = "main"
    assert "its branch is the default branch" in commit.main([])


@pytest.mark.parametrize(
    "name",
    [
        "src/digits/model/network.py",
        ".github/workflows/ci.yml",
        "data/noise.json",
        "data/labelled/a.csv",
        "params.yaml",
        "data/evaluation/x/y.json",
        "dvc.lock2",
        "../dvc.lock",
        "/dvc.lock",
        "dvc.lock\n",
    ],
)
def test_no_other_path_is_committed(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = github.head("refs/heads/mehr-übung")
    committed(github, monkeypatch, **{name: "x"})
    with pytest.raises(DigitsError, match="is not among the files that may be committed"):
        commit.main([])
    assert github.head("refs/heads/mehr-übung") == before


def test_a_large_artifact_is_not_committed(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(github, monkeypatch, **{"data/model/a.csv": "x" * (commit.BYTES + 1)})
    with pytest.raises(DigitsError, match=f"more than {commit.BYTES} bytes"):
        commit.main([])
    many = {f"data/model/{'a' * number}.csv": "" for number in range(1, commit.FILES + 1)}
    committed(github, monkeypatch, **many)
    with pytest.raises(DigitsError, match=f"at most {commit.FILES} are committed"):
        commit.main([])


@pytest.mark.parametrize("place", range(21))
@pytest.mark.prove
def test_whatever_call_fails_nothing_is_half_written_and_a_rerun_recovers(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Of about twenty calls of commit, comment and status each gets no answer for a while."""
    run, before = committed(github, monkeypatch), github.head("refs/heads/mehr-übung")
    github.failures.extend([None] * place + [(502, {})] * client.ATTEMPTS)
    for attempt in range(2):
        try:
            if "MADE" not in os.environ:
                committed_and_shown(run, monkeypatch)
            else:  # "Re-run failed jobs" leaves out what succeeded, and keeps its outputs
                show(run, monkeypatch)
        except DigitsError:
            assert attempt == 0
        github.failures.clear()
        after = github.head("refs/heads/mehr-übung")
        assert after == before or github.git("rev-parse", f"{after}^") == before
        assert len(texts(github)) <= 1
        if attempt == 0 and "LEFT" in os.environ:
            monkeypatch.delenv("LEFT")
    assert after != before
    (text,) = texts(github)
    assert f"are committed** as {after[:10]}" in text
    assert github.statuses[-1]["state"] == "success"


def test_a_pull_request_that_was_closed_and_a_branch_that_was_deleted_are_left_alone(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = committed(github, monkeypatch), github.head("refs/heads/mehr-übung")
    refuse = commit.refusal

    def deleted(*given: Any) -> str:
        """A person deletes the branch between the question and the commit."""
        github.git("update-ref", "-d", "refs/heads/mehr-übung")
        return refuse(*given)

    github.pulls[7].state = "closed"
    left(github, run, monkeypatch, "no open pull request has the head")
    assert "nothing to comment" in show(run, monkeypatch) and texts(github) == []
    github.pulls[7].state = "open"
    monkeypatch.setattr(commit, "refusal", deleted)
    with pytest.raises(DigitsError, match="Reference does not exist"):
        commit.main([])
    assert not github.git("for-each-ref", "refs/heads/mehr-übung")
    github.git("update-ref", "refs/heads/mehr-übung", before)
    monkeypatch.setattr(commit, "refusal", refuse)  # restored, as GitHub offers it
    assert "is now at" in commit.main([])


# A merge of main


@pytest.fixture
def clone(github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Main has gone on: the branch conflicts in dvc.lock; this clone has both."""
    work = Project(tmp_path / "work")
    files = {"README.md": "one\n\n\n\ntwo\n", "src/a.py": "a\n", "old.py": "", "dvc.lock": "0"}
    for branch, changes in (
        ("main", files),
        ("mehr-übung", {"dvc.lock": "1", "README.md": "one\n\n\n\nTWO\n"}),
        ("main", {"dvc.lock": "2", "src/a.py": "b\n"}),
    ):
        start = "main" if branch == "main" else "HEAD"
        work.git("checkout", "--quiet", *(["-B", branch] if start == "HEAD" else ["main"]))
        for name, text in changes.items():
            (work.root / name).parent.mkdir(exist_ok=True)
            (work.root / name).write_text(text)
        if "src/a.py" in changes and changes["src/a.py"] == "b\n":
            work.git("rm", "--quiet", "old.py")
        work.git("add", "--all")
        work.git("commit", "--quiet", "--message", branch)
        work.git("push", "--quiet", "--force", str(github.origin), branch)
    work.git("remote", "add", "origin", str(github.origin))
    work.git("fetch", "--quiet", "origin")
    monkeypatch.chdir(work.root)
    return work


def merged(github: GitHub, monkeypatch: pytest.MonkeyPatch, **files: str) -> Run:
    """Add a run by hand that has merged main."""
    artifact = {"merged": github.head("main") + "\n", **LOCK, "params.yaml": "epochs: 3\n", **files}
    content = archive(**{"report.json": schema.dump(report())})
    run = ran(github, report=content, lock=archive(**artifact))
    run.event, run.login = "workflow_dispatch", "maintainer"
    monkeypatch.setenv("RUN", str(run.id))
    return run


def test_a_conflict_starts_no_checks(github: GitHub, clone: Project) -> None:
    pull = github.pulls[7]
    assert github.conflicts(pull)
    assert github.checks(pull, "User") == []


def test_main_is_merged_by_a_commit_with_two_parents(
    github: GitHub, clone: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, main = github.head("refs/heads/mehr-übung"), github.head("main")
    run = merged(github, monkeypatch)
    assert "is now at" in committed_and_shown(run, monkeypatch)
    made = github.head("refs/heads/mehr-übung")
    assert github.git("log", "-1", "--format=%P", made).split() == [head, main]
    assert github.git("diff", "--name-only", main, made).split() == [
        "README.md",
        "data/evaluation/metrics.json",
        "dvc.lock",
        "params.yaml",
    ]
    assert github.git("show", f"{made}:README.md") == "one\n\n\n\nTWO"
    assert github.git("show", f"{made}:dvc.lock") == LOCK["dvc.lock"].strip()
    assert not github.conflicts(github.pulls[7])
    assert f"are committed** as {made[:10]}" in texts(github)[0]
    assert github.git("show", f"{made}:src/a.py") == "b"


HAND = """\
  git checkout --ours dvc.lock 'data/*.json' 'data/*.csv'
  dvc checkout --force --allow-missing
  dvc repro
  git add dvc.lock data
"""


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"merged": "main"}, "the artifact names no commit of main: 'main'"),
        ({"merged": "main; rm"}, "the artifact names no commit of main: 'main; rm'"),
        ({"src/b.py": ""}, "src/b.py: is not among the files that may be committed"),
    ],
)
def test_a_merge_that_fails_ends_with_the_lines_for_a_person(
    github: GitHub,
    clone: Project,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, str],
    why: str,
) -> None:
    head = github.head("refs/heads/mehr-übung")
    run = merged(github, monkeypatch, **changed)
    assert why in committed_and_shown(run, monkeypatch)
    assert github.head("refs/heads/mehr-übung") == head
    assert HAND in texts(github)[0]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (".github/workflows/x.yml", "on: push\n", "without `workflows`"),
        ("README.md", "ONE\n", "README.md is changed here and on main"),
    ],
)
def test_what_the_bot_cannot_merge_is_left_to_a_person(
    github: GitHub,
    clone: Project,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    why: str,
) -> None:
    clone.git("checkout", "--quiet", "main")
    (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
    (clone.root / name).write_text(text)
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--message", "A change")
    clone.git("push", "--quiet", "origin", "main")
    clone.git("fetch", "--quiet", "origin")
    run = merged(github, monkeypatch)
    assert why in committed_and_shown(run, monkeypatch)
    assert HAND in texts(github)[0]


def test_a_file_that_one_side_renamed_and_the_other_changed_is_left_to_a_person(
    github: GitHub, clone: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.git("checkout", "--quiet", "mehr-übung")
    clone.git("mv", "README.md", "NEW.md")
    clone.git("commit", "--quiet", "--message", "Another name")
    clone.git("push", "--quiet", "origin", "mehr-übung")
    clone.git("checkout", "--quiet", "main")
    with (clone.root / "README.md").open("a") as file:
        file.write("THREE\n")
    clone.git("commit", "--quiet", "--all", "--message", "A line")
    clone.git("push", "--quiet", "origin", "main")
    clone.git("fetch", "--quiet", "origin")
    run = merged(github, monkeypatch)
    assert "NEW.md is changed here and on main" in committed_and_shown(run, monkeypatch)


def test_another_conflict_is_left_to_a_person(
    github: GitHub, clone: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself failed, so it has handed nothing over."""
    run = ran(github)
    run.event, run.jobs = "workflow_dispatch", {"review": "failure"}
    monkeypatch.setenv("RUN", str(run.id))
    assert "nothing to commit" in committed_and_shown(run, monkeypatch)
    assert "Main was not merged. In a clone" in texts(github)[0] and HAND in texts(github)[0]


# The status, and what production serves


def test_a_status_has_the_figure_and_waits_while_it_runs(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reported(github)
    run.status = "in_progress"
    show(run, monkeypatch)
    assert texts(github) == []
    run.status = "completed"
    show(run, monkeypatch)
    show(ran(github, 2), monkeypatch)
    assert [(row["state"], row["description"]) for row in github.statuses] == [
        ("pending", "The metrics are being computed"),
        ("success", "mnist accuracy 0.9965 (+0.0015)"),
        ("error", "No report: the run ended with success"),
    ]
    assert {row["context"] for row in github.statuses} == {"metrics"}


def test_a_status_counts_for_no_required_check(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any writer may set a status of that name; the ruleset names GitHub Actions as the source."""
    pull = github.pulls[7]
    for context in ("required", "review"):
        values = {"state": "success", "context": context}
        client.api("POST", f"/statuses/{github.head('refs/heads/mehr-übung')}", values)
    assert not github.mergeable(pull)


def test_production_is_recorded_and_compared(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {"mnist": {"accuracy": 0.4321, "loss": float("nan")}}
    name = "data/evaluation/metrics.json"
    served = push(github, tmp_path, {name: json.dumps(values)}, "main")
    steps.run(steps.action("record")[0], tmp_path, COMMIT=served)
    assert [(row["sha"], row["state"]) for row in github.deployments] == [(served, "success")]
    show(reported(github), monkeypatch)
    assert "99.65 % | +0.15 points 🟢 | 43.21 % |" in texts(github)[0]
    assert "Production is not at main" not in texts(github)[0]
    Project(tmp_path / "more").git("fetch", "--quiet", "origin")
    push(github, tmp_path, {"README.md": "On.\n"}, "main")
    show(reported(github, 2), monkeypatch)
    text = f"Production is not at main: it serves {served[:10]}, 1 commits back."
    assert text in texts(github)[0]


@pytest.mark.parametrize("content", [None, "no JSON", '{"accuracy": 0.9}'])
def test_production_without_such_metrics_has_a_comment_all_the_same(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    name = "README.md" if content is None else "data/evaluation/metrics.json"
    served = push(github, tmp_path, {name: content or "On.\n"}, "main")
    steps.run(steps.action("record")[0], tmp_path, COMMIT=served)
    show(reported(github), monkeypatch)
    assert "99.65 % | +0.15 points 🟢" in texts(github)[0]


# Nothing changed


def test_a_change_of_no_dep_needs_no_pipeline(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = "stages:\n  a:\n    deps:\n    - path: src/a\n    outs:\n    - path: data/out.json\n"
    push(github, tmp_path, {"dvc.lock": lock, "src/a/x.py": "1", "data/out.json": "1"}, "main")
    work = Project(tmp_path / "more")
    (work.root / "src/mlops").mkdir(parents=True, exist_ok=True)
    step = steps.find("pull-request.yml", "review", "unchanged")

    def same(name: str, text: str, base: str = "origin/main") -> bool:
        work.git("fetch", "--quiet", "origin")
        push(github, tmp_path, {name: text})
        _, output = steps.run(step, work.root, tmp_path, BASE=base, PYTHONPATH=str(ROOT / "src"))
        return output == "same=true\n"

    for name in (
        *("params.yaml", "dvc.yaml", "dvc.lock", "data/noise.json", "data/x/a.csv.dvc"),
        *(".dvc/config", "src/a/x.py", "src/a/y.py", "data/out.json", "sub/dvc.yaml"),
        "data/evaluation/.gitignore",  # may hide a table
    ):
        assert not same(name, "other\n"), name
    assert not (work.root / "review").exists()
    assert same("README.md", "A word.\n")
    found = schema.parse((work.root / "review/report.json").read_bytes())
    assert found.gate.passed and found.verdict == "same"
    push(github, tmp_path, {"dvc.lock": lock.replace("src/a", '"src/\\x61"')}, "main")
    assert not same("README.md", "Two words.\n")  # a name that git would not take literally
    assert not same("README.md", "Three words.\n", "origin/nowhere")


# Caches


@needs_bash
@pytest.mark.parametrize(("own", "failure"), [(False, None), (True, None), (False, (403, {}))])
def test_a_ref_with_caches_of_its_own_restores_none(
    github: GitHub, tmp_path: Path, own: bool, failure: tuple[int, dict[str, str]] | None
) -> None:
    if own:
        (github.caches / "refs-pull-7-merge" / "dvc-1").mkdir(parents=True)
    (github.caches / "refs-heads-main" / "dvc-1").mkdir(parents=True)
    if failure:
        github.failures.append(failure)
    step = steps.find("pull-request.yml", "review", "caches")
    done, output = steps.run(step, tmp_path, REF="refs/pull/7/merge")
    assert ("No cache is restored: refs/pull/7/merge has" in done) == bool(own or failure)
    assert output == ("" if own or failure else "own=false\n")


# GitHub


def test_a_refusal_is_one_line(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    github.running = "ci.yml"  # whose jobs may do nothing of this
    monkeypatch.setenv("RUN", "1")
    with pytest.raises(DigitsError, match=r"403 .*Resource not accessible"):
        comment.main([])
    assert len(github.calls) == 1
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:9")
    with pytest.raises(DigitsError, match="did not answer"):
        comment.main([])


@pytest.mark.parametrize(
    "failure",
    [
        (502, {}),
        (503, {}),
        (429, {}),
        (403, {"Retry-After": "0"}),
        (403, {"X-RateLimit-Remaining": "0"}),
    ],
)
def test_what_is_safe_is_tried_again(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, failure: tuple[int, dict[str, str]]
) -> None:
    github.failures.append(failure)
    assert "comment written" in show(reported(github), monkeypatch)
    assert [call.status for call in github.calls][:2] == [failure[0], 200]
    assert len(texts(github)) == 1


def test_a_post_that_may_have_worked_is_not_repeated(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    github.failures.append((502, {}))
    with pytest.raises(DigitsError, match=r"refused POST .* 502"):
        client.api("POST", "/issues", {"title": "x", "body": "y"})
    assert len(github.calls) == 1
    github.failures.append((429, {"Retry-After": "0"}))  # refused before it did anything
    assert client.api("POST", "/issues", {"title": "x", "body": "y"})["number"]


def test_a_wait_that_is_too_long_ends_with_the_error(github: GitHub) -> None:
    github.failures.append((429, {"Retry-After": "3600"}))
    with pytest.raises(DigitsError, match="429"):
        client.api("GET", "/issues?state=open")
    assert len(github.calls) == 1


FOUND: dict[str, Any] = {
    "drift": True,
    "since": None,
    "window": 5,
    "windows": 1,
    "requests": 5,
    "action": None,
}
FOUND |= {"recent_requests": 5, "contributing_signals": []}
CHECKED = [name for name in FOUND if name not in ("since", "action")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"drift": false}',
        *[json.dumps({**FOUND, name: "x"}).encode() for name in CHECKED],
        *[json.dumps({key: FOUND[key] for key in FOUND if key != name}).encode() for name in FOUND],
        None,
    ],
)
def test_damaged_findings_are_named_in_the_issue_of_drift(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    path = tmp_path / "monitoring.json"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("MONITORING", str(path))
    monkeypatch.setattr("sys.argv", ["issues", "drift"])
    with pytest.raises(SystemExit, match="1"):
        client.script(issues.main)
    said = capsys.readouterr().out
    assert said.startswith(f"::error::{path}: is invalid (")
    assert said.count("\n") == 1 and "Run the workflow again" in said


def test_whole_findings_are_read(tmp_path: Path) -> None:
    (tmp_path / "monitoring.json").write_text(json.dumps(FOUND))
    assert issues.findings(tmp_path / "monitoring.json") == FOUND
