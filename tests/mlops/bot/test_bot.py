"""What the privileged jobs run, against GitHub's API on loopback and hostile input."""

import io
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, environment
from loopback import GitHub
from records import FULL_NAME, Pull, Run
from reports import report

from core.errors import DigitsError
from mlops.bot import caches, change, comment, commit
from mlops.bot import github as client
from mlops.review import schema

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
    assert "of the newer run 2" in show(older, monkeypatch)
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
    with pytest.raises(DigitsError, match="no id of a run"):
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
        (archive(other="x"), "the run ended before it was written"),
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
    assert "No report: the run ended before it was written" in texts(github)[0]


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
    stages = [schema.Stage("@" * 200, "ran", 1.0, 1.0, ["@" * 99] * 9)] * 99
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
    assert body.index("This changes code") < body.index("| Metric |")


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
    assert found == ["data", "run.md (no plain file)", "x.md (no plain file)"]


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
    show(run, monkeypatch)
    assert (
        'is committed to the branch. If the checks of that commit wait, press "Approve'
        in (texts(github)[0])
    )
    assert "is now at" in commit.main([])
    assert github.git("rev-parse", "mehr-übung^") == before
    changed = github.git("diff", "--name-only", before, "mehr-übung").split()
    assert changed == ["data/evaluation/metrics.json", "dvc.lock"]
    assert not github.waiting
    github.approve(github.pulls[7])
    assert [waiting[1] for waiting in github.waiting] == ["pull-request.yml", "ci.yml"]


def test_the_checks_of_an_apps_commit_start(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(github, monkeypatch)
    monkeypatch.setenv("COMMIT_TOKEN", "the-token-of-an-app")
    commit.main([])
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
    assert f"Left to the author: {why}" in commit.main([])
    assert github.head("refs/heads/mehr-übung") == before
    show(run, monkeypatch)
    if texts(github):
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
    left(github, run, monkeypatch, "the last commit is of a bot")


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


# Caches


@pytest.mark.parametrize("own", [False, True])
def test_a_ref_with_caches_of_its_own_restores_none(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: bool
) -> None:
    monkeypatch.setenv("REF", "refs/pull/7/merge")
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    if own:
        (github.caches / "refs-pull-7-merge" / "dvc-1").mkdir(parents=True)
    (github.caches / "refs-heads-main" / "dvc-1").mkdir(parents=True)
    done = caches.main([])
    assert ("1 caches of refs/pull/7/merge: none is restored" in done) == own
    assert (tmp_path / "output").read_text() == f"own={str(own).lower()}\n"


def test_no_cache_is_restored_when_github_does_not_answer(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REF", "refs/pull/7/merge")
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    github.failures.extend([(502, {})] * client.ATTEMPTS)
    assert "No cache is restored" in caches.main([])
    assert (tmp_path / "output").read_text() == "own=true\n"


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
