"""What the privileged jobs run, against GitHub's API on loopback and hostile input."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project
from loopback import GitHub
from records import FULL_NAME, Pull, Run

from core.errors import DigitsError
from mlops.bot import comment, commit, weekly
from mlops.review import publish

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
        monkeypatch.setenv("GITHUB_API_URL", github.url)
        monkeypatch.setenv("GITHUB_REPOSITORY", FULL_NAME)
        monkeypatch.setenv("TOKEN", "the-token-of-a-job")
        monkeypatch.delenv("GITHUB_JOB", raising=False)
        yield github


def archive(**files: str | bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as members:
        for name, content in files.items():
            members.writestr(name, content)
    return packed.getvalue()


def report(github: GitHub, content: bytes, number: int = 1, sha: str = "") -> Run:
    """Add a run of pull-request.yml with the artifact `report`."""
    sha = sha or github.head("refs/heads/mehr-übung")
    run = Run(len(github.runs) + 1, "pull-request.yml", "pull_request", "mehr-übung", sha)
    run.number = number
    github.runs.append(run)
    place = github.artifacts / str(run.id) / "report.zip"
    place.parent.mkdir()
    place.write_bytes(content)
    return run


def show(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RUN", str(run.id))
    return comment.main([])


def texts(github: GitHub) -> list[str]:
    return [row["body"] for row in github.pulls[7].comments]


def test_a_second_push_updates_the_comment(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(150):  # more than a page of others' comments
        body = {"id": 7000 + number, "user": {"login": "student"}, "body": "Hm."}
        github.pulls[7].comments.append(body)
    show(report(github, archive(**{"report.md": "## Better: first"}), 1), monkeypatch)
    show(report(github, archive(**{"report.md": "## Worse: second"}), 2), monkeypatch)
    assert len(texts(github)) == 151
    assert "Worse" in texts(github)[-1]
    assert "Better" not in texts(github)[-1]
    assert texts(github)[-1].splitlines()[1].startswith("## Worse")  # the verdict comes first
    assert github.leaks == []  # the token stayed with GitHub


def test_an_older_report_never_overwrites_a_newer_one(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = report(github, archive(**{"report.md": "older"}), 1)
    newer = report(github, archive(**{"report.md": "newer"}), 2)
    show(newer, monkeypatch)
    assert "of the newer run 2" in show(older, monkeypatch)
    assert "newer" in texts(github)[0]
    again = report(github, archive(**{"report.md": "attempt two"}), 2)
    again.attempt = 2
    show(again, monkeypatch)
    assert "attempt two" in texts(github)[0]


def test_a_report_of_another_commit_belongs_nowhere(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number the artifact claims: the run's commit decides."""
    lie = archive(**{"report.md": "#7", "report.json": '{"pull_request": 7}', "number": "7"})
    assert "nothing to comment" in show(report(github, lie, sha=github.head("main")), monkeypatch)
    assert texts(github) == []


def test_a_fork_with_the_same_branch_and_commit_is_another(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = report(github, archive(**{"report.md": "from the fork"}))
    run.source = "mallory/digits"
    assert "nothing to comment" in show(run, monkeypatch)
    run.source = ""  # and one that has been deleted
    assert "nothing to comment" in show(run, monkeypatch)


def test_a_run_of_another_workflow_is_refused(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = report(github, archive(**{"report.md": "x"}))
    run.workflow = "mine.yml"
    with pytest.raises(DigitsError, match=r"not of .*pull-request\.yml"):
        show(run, monkeypatch)
    monkeypatch.setenv("RUN", "1/../../x")
    with pytest.raises(DigitsError, match="no id of a run"):
        comment.main([])


def test_a_persons_comment_with_the_marker_is_left_alone(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = "<!-- digits-review run=99999 attempt=1 -->"
    github.pulls[7].comments.append({"id": 7000, "user": {"login": "mallory"}, "body": marker})
    show(report(github, archive(**{"report.md": f"{marker} mine"})), monkeypatch)
    assert texts(github)[0] == marker
    assert texts(github)[1].count("<!--") == 1
    show(report(github, archive(**{"report.md": "next"}), 2), monkeypatch)
    assert "next" in texts(github)[1]


def test_fifty_megabytes_are_cut(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    show(report(github, archive(**{"report.md": b"@" * MUCH})), monkeypatch)
    assert len(texts(github)[0]) < 65_536
    show(report(github, archive(**{"report.md": b"a b " * (MUCH // 4)}), 2), monkeypatch)
    assert "(cut; the artifact has all of it)" in texts(github)[0]
    show(report(github, bytes(comment.ARTIFACT_BYTES + 1), 3), monkeypatch)
    assert "too large to be shown" in texts(github)[0]


@pytest.mark.parametrize(
    "start", ["```\n", "~~~~\n", "<details>\n", "## <details>\n", "## `\n", "- x\n  ```\n"]
)
def test_no_report_hides_how_the_run_ended(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    show(report(github, archive(**{"report.md": f"{start}all is well"})), monkeypatch)
    said, _, rest = texts(github)[0].partition("all is well")
    assert "ended with **success**" in said.partition(start.strip())[0]
    assert "ended with" not in rest


@pytest.mark.parametrize("content", [b"", b"PK no zip", archive(other="x")])
def test_a_damaged_archive_is_told(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    show(report(github, content), monkeypatch)
    assert "The report cannot be read" in texts(github)[0]


def test_a_run_without_a_report_is_told(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    run = report(github, b"")
    (github.artifacts / str(run.id) / "report.zip").unlink()
    show(run, monkeypatch)
    assert "No report" in texts(github)[0]


def test_no_member_of_an_archive_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert comment.text_of(archive(**{"../../evil": "x", "/evil": "x", "report.md": "ok"})) == "ok"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", folder]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("[click](https://evil.example)", "["),
        ("\\[click](https://evil.example)", "["),
        ("\\\\[click](https://evil.example)", "["),
        ("![pixel](https://evil.example/x.png)", "["),
        ("[a]: https://evil.example", "://"),
        ("https://evil.example and www.evil.example", "://"),
        ("www.evil.example", "www."),
        ("<script>alert(1)</script>", "<"),
        ("<img src=x onerror=alert(1)>", "<"),
        ("<details open ontoggle=alert(1)>", "<"),
        ("&#64;everybody &lt;b>", "&#64"),
        ("@octo/everybody", "@o"),
        ("closes #1, octo/other#2", "#1"),
        ("GH-1", "GH-1"),
        ("\u202edesrever", "\u202e"),
        ("```mermaid\nflowchart LR\n click A href\n```", "```mermaid"),
        ("```mermaid\nxychart-beta\n title <img src=x>\n```", "<"),
        ("```mermaid\nxychart-beta\n title @octo\n```", "@o"),
    ],
)
def test_markdown_is_made_harmless(text: str, gone: str) -> None:
    assert gone in text
    assert gone not in comment.harmless(text)


def test_what_a_report_needs_is_kept() -> None:
    text = (
        "**Better**: gate passed\n\n| metric | before |\n|---|---:|\n| accuracy | 0.99 |\n\n"
        '```mermaid\nxychart-beta\n    title "Loss"\n    x-axis "epoch" 1 --> 3\n'
        '    y-axis "loss" 0.1 --> 2.5\n    line [1.5, 0.5, 0.1]\n```\n'
        "<details><summary>Stages</summary>\n\n- train ran (12 s)\n\n</details>\n"
    )
    assert comment.harmless(text) == text


# The commit


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    folder = tmp_path / "lock"
    (folder / "data" / "evaluation").mkdir(parents=True)
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    (folder / "data" / "evaluation" / "metrics.json").write_text("{}")
    return folder


@pytest.fixture
def setting(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> GitHub:
    monkeypatch.setenv("BASE", "main")
    monkeypatch.setenv("BRANCH", "mehr-übung")
    monkeypatch.setenv("HEAD", github.head("refs/heads/mehr-übung"))
    monkeypatch.setenv("ANY_CHANGE", "false")
    monkeypatch.setenv("START_CHECKS", "true")
    return github


def test_a_lock_is_committed_and_the_checks_started(setting: GitHub, lock: Path) -> None:
    before = setting.head("refs/heads/mehr-übung")
    commit.main([str(lock)])
    assert setting.git("rev-parse", "mehr-übung^") == before
    changed = setting.git("diff", "--name-only", before, "mehr-übung").split()
    assert changed == ["data/evaluation/metrics.json", "dvc.lock"]
    started = [(workflow, payload["inputs"]) for _, workflow, _, payload in setting.waiting]
    assert started == [("ci.yml", {}), ("pull-request.yml", {"relock": "false"})]


def test_an_app_needs_no_start(
    setting: GitHub, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("START_CHECKS", "false")
    commit.main([str(lock)])
    assert not setting.waiting


def test_a_branch_that_moved_on_is_left_alone(
    setting: GitHub, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEAD", setting.head("main"))
    with pytest.raises(DigitsError, match="if the branch has moved on"):
        commit.main([str(lock)])
    assert not setting.waiting


def test_a_change_of_code_is_left_to_its_author_unless_asked(
    setting: GitHub, lock: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = Project(tmp_path / "work")
    (work.root / "train.py").write_text("")
    work.git("add", "--all")
    work.git("commit", "--quiet", "--message", "Code")
    work.git("push", "--quiet", str(setting.origin), "HEAD:refs/heads/mehr-übung")
    monkeypatch.setenv("HEAD", setting.head("refs/heads/mehr-übung"))
    assert "Left to the author" in commit.main([str(lock)])
    assert not setting.waiting
    monkeypatch.setenv("ANY_CHANGE", "true")
    assert "is now at" in commit.main([str(lock)])


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
    ],
)
def test_no_other_path_is_committed(setting: GitHub, lock: Path, name: str) -> None:
    (lock / name).parent.mkdir(parents=True, exist_ok=True)
    (lock / name).write_text("x")
    with pytest.raises(DigitsError, match=r"only dvc\.lock and small metrics"):
        commit.main([str(lock)])
    assert not setting.waiting


def test_a_link_and_a_large_file_are_not_committed(setting: GitHub, lock: Path) -> None:
    (lock / "data" / "model").symlink_to("/etc")
    with pytest.raises(DigitsError, match="data/model: only"):
        commit.main([str(lock)])
    (lock / "data" / "model").unlink()
    (lock / "dvc.lock").write_bytes(bytes(commit.FILE_BYTES + 1))
    with pytest.raises(DigitsError, match="give it to DVC"):
        commit.main([str(lock)])


# The publication


def content(folder: Path, data: bytes, name: str = "") -> Path:
    digest = hashlib.md5(data).hexdigest()
    path = folder / (name or f"files/md5/{digest[:2]}/{digest[2:]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_what_was_computed_is_hashed_again(tmp_path: Path) -> None:
    source, cache = tmp_path / "computed", tmp_path / "cache"
    good = content(source, b"weights")
    run = content(source, b"cmd: x\n", f"runs/ab/ab{'0' * 62}/{'1' * 64}")
    publish.take_over(source, cache)
    for path in (good, run):
        assert (cache / path.relative_to(source)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (f"files/md5/ab/{'0' * 30}", "its content has the hash"),
        (f"files/md5/ab/{'0' * 30}.dir", "its content has the hash"),
        ("config", "not of DVC's cache"),
        (f"runs/ab/cd{'0' * 62}/{'1' * 64}", "not of DVC's cache"),
    ],
)
def test_anything_else_publishes_nothing(tmp_path: Path, name: str, told: str) -> None:
    source, cache = tmp_path / "computed", tmp_path / "cache"
    content(source, b"weights")
    content(source, b"forged", name)
    with pytest.raises(DigitsError, match=told):
        publish.take_over(source, cache)
    assert not cache.exists()


# The upkeep


def test_one_issue_is_opened_updated_and_closed(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINK", "https://github.com/octo/digits/actions/runs/1")
    monkeypatch.setenv("CHANGES", "-numpy==2.0\n+numpy==2.1")
    told = []
    for result in ("success", "failure", "failure", "success"):
        monkeypatch.setenv("RESULT", result)
        told.append(weekly.main([]))
    assert told == [
        "All is well; no issue is open.",
        "#101: opened.",
        "#101: updated.",
        "#101: closed.",
    ]
    assert len(github.issues) == 1
    assert "+numpy==2.1" in github.issues[0]["body"]


def test_a_refusal_is_told(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    github.running = "ci.yml"  # whose jobs may do nothing of this
    monkeypatch.setenv("RUN", "1")
    with pytest.raises(DigitsError, match=r"403 .*Resource not accessible"):
        comment.main([])
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:9")
    with pytest.raises(DigitsError, match="did not answer"):
        comment.main([])
