"""A pull request's way through the real workflow files, run by act on loopback."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import (
    AccountSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)
from conftest import Azurite, Project
from loopback import GitHub, needs_bash
from records import FULL_NAME, Pull, Run

pytestmark = [pytest.mark.slow, needs_bash]
ACCOUNT = "devstoreaccount1"
SMALL_REVIEW = """\
review:
  retrain: {propose: true, set: {prepare.foreign_share: 0.05}}
  gate:
    mnist:
      accuracy: {direction: higher, limit: 0.3, tolerance: 0.2}
"""


def identities(azurite: Azurite) -> dict[str, str]:
    """Return what the fake of azure/login gives: who reads all containers."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    reader = generate_account_sas(
        ACCOUNT,
        azurite.key,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, list=True),
        soon,
    )
    place = f"BlobEndpoint=http://127.0.0.1:{azurite.port}/{ACCOUNT};SharedAccessSignature="
    return {"IDENTITY_reader": place + reader}


MONITOR = """\
import sys
from pathlib import Path

import numpy as np

from core.dataset import Digits, write_csv
from core.files import write_text


def main(asked):
    folder = asked.out or asked.labelled
    if asked.out:
        text = '{"drift": true, "since": null, "windows": 1, "requests": 500, "window": 500, '
        text += '"accuracy": null, "estimated_accuracy": 1, '
        text += '"contributing_signals": ["ood_confidence"], '
        text += '"action": "retrain", "recent_requests": 500}'
        write_text(Path(folder, "monitoring.json"), text)
    else:
        images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
        labels = (np.arange(40) % 10).astype(np.uint8)
        digits = Digits(images, labels, "devanagari", False, 10)
        write_csv(Path(folder, "devanagari_20261124.csv"), digits)
"""


@dataclass
class Hub:
    """A repository on GitHub, whose main is reproduced, and a blob storage that has it."""

    github: GitHub
    azurite: Azurite
    main: Project
    folder: Path

    def branch(self, number: int, name: str, *edits: tuple[str, str, str]) -> tuple[Project, Pull]:
        """Return a person's clone with edits committed, and the pull request to be pushed."""
        work = self.main.clone(self.folder / f"work{number}")
        work.git("checkout", "--quiet", "-b", name)
        for edit in edits:
            work.edit(*edit)
        work.git("commit", "--quiet", "--all", "--allow-empty", "--message", name)
        return work, Pull(number, name)

    def open(self, work: Project, pull: Pull) -> list[Run]:
        """Push, and let everything run."""
        self.github.push(work.root, pull)
        return self.github.settle()


@pytest.fixture(scope="module")
def hub(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    main = reproduced.copy(folder / "main")
    (main.root / "data" / "small.dvc").unlink()  # so that a fork has the digits too
    ignore = main.root / "data" / ".gitignore"
    ignore.write_text(ignore.read_text("utf-8").replace("/small\n", ""), "utf-8")
    params = main.root / "params.yaml"
    text = re.sub(
        r"^review:.*?(?=^\w|\Z)", SMALL_REVIEW, params.read_text("utf-8"), flags=re.M | re.S
    )
    params.write_text(text, "utf-8", newline="\n")
    main.git("add", "--all")
    main.git("commit", "--quiet", "--message", "The digits are in git")
    azurite = Azurite(folder / "azurite")
    azurite.start()
    try:
        setting = ("connection_string", azurite.connection_string)
        main.dvc("remote", "modify", "--local", "--quiet", "main", *setting)
        main.dvc("push", "--run-cache")
        with GitHub(folder / "github") as github:
            main.git("push", "--quiet", str(github.origin), "HEAD:refs/heads/main")
            github.variables = {
                "AZURE_STORAGE_ACCOUNT": ACCOUNT,
                "AZURE_TENANT_ID": "tenant",
                "AZURE_READER_CLIENT_ID": "reader",
            }
            github.environment = identities(azurite)
            yield Hub(github, azurite, main, folder)
    finally:
        azurite.stop()


@pytest.mark.prove(minutes=3)
def test_an_edit_of_epochs_in_the_web_editor_becomes_mergeable(hub: Hub) -> None:
    work, pull = hub.branch(1, "mehr-übung", ("params.yaml", "epochs: 1", "epochs: 2"))
    edited = work.git("rev-parse", "HEAD").strip()
    github = hub.github
    runs = hub.open(work, pull)
    first, _, comment, waits, silent = runs
    names = [run.workflow for run in runs]
    assert names == ["pull-request.yml", "ci.yml", "comment.yml", "pull-request.yml", "comment.yml"]
    assert (waits.conclusion, silent.jobs) == ("action_required", {})  # and it is told of once
    assert first.jobs == {"review": "failure"}, first.log
    assert "Running stage 'train'" in first.log
    assert "Running stage 'mnist'" not in first.log  # its outputs came from the container `main`
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
    made = github.head(pull.branch)
    assert github.git("rev-parse", f"{made}^") == edited
    changed = set(github.git("diff", "--name-only", edited, made).splitlines())
    assert {"dvc.lock", "data/evaluation/metrics.json"} <= changed
    assert not github.mergeable(pull)  # until a person approves the runs
    github.approve(pull)
    second, _, comment, *_ = github.settle()
    assert second.jobs == {"review": "success"}, second.log
    assert "Running stage 'train'" in second.log  # nothing that the first run made is believed
    assert github.head(pull.branch) == made
    assert github.mergeable(pull)
    assert len(pull.comments) == 1
    assert f"of {made[:10]} ended with **success**" in pull.comments[0]["body"]


@pytest.mark.prove
def test_a_worse_model_is_not_mergeable(hub: Hub) -> None:
    edit = ("src/digits/pipeline/evaluate.py", '"accuracy": accuracy,', '"accuracy": accuracy / 2,')
    work, pull = hub.branch(6, "worse", edit)
    first, *_ = hub.open(work, pull)
    assert first.jobs["review"] == "failure", first.log
    assert "Running stage 'train'" not in first.log
    assert "the gate failed: mnist accuracy" in first.log
    assert "gate failed" in pull.comments[0]["body"].splitlines()[1]
    assert not hub.github.mergeable(pull)


@pytest.mark.prove
def test_a_change_of_code_is_left_to_its_author(hub: Hub) -> None:
    """Metric code alone: nothing trains; the author takes the files of the run."""
    work, pull = hub.branch(2, "metrics")
    path = work.root / "src" / "digits" / "evaluation" / "metrics.py"
    path.write_text(path.read_text("utf-8") + "\n# A change that changes nothing.\n", "utf-8")
    work.git("commit", "--quiet", "--all", "--message", "Metric code")
    first, _, comment, *_ = hub.open(work, pull)
    assert first.jobs == {"review": "failure"}, first.log
    assert "Running stage 'evaluate'" in first.log
    assert "Running stage 'train'" not in first.log
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
    assert "Left to the author: it changes code" in comment.log
    assert f"gh run download {first.id} --repo {FULL_NAME} --name lock" in pull.comments[0]["body"]
    lock = hub.github.artifacts / str(first.id) / "lock.zip"
    work.run("python", "-m", "zipfile", "--extract", str(lock), ".")
    work.git("add", "dvc.lock", "data")
    work.git("commit", "--quiet", "--message", "New dvc.lock and metrics")
    second, *_ = hub.open(work, pull)
    assert second.jobs["review"] == "success", second.log
    assert "Running stage 'train'" not in second.log
    assert len(pull.comments) == 1
    assert f"of {second.sha[:10]} ended with **success**" in pull.comments[0]["body"]


@pytest.mark.prove
def test_a_fork_gets_everything_without_an_identity(hub: Hub) -> None:
    work, pull = hub.branch(3, "patch-1", ("params.yaml", "mistakes: 60", "mistakes: 30"))
    pull.source, pull.author = "mallory/digits", "mallory"
    first, _, comment, *_ = hub.open(work, pull)
    assert first.jobs == {"review": "failure"}, first.log  # the lock is outdated
    assert "CONNECTION_STRING" not in first.log
    assert "Running stage 'mnist'" in first.log
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
    (text,) = (row["body"] for row in pull.comments)
    assert "its branch is in a fork" in text
    assert f"gh run download {first.id} --repo {FULL_NAME} --name lock" in text


@pytest.mark.prove
def test_a_readme_needs_no_pipeline(hub: Hub) -> None:
    work, pull = hub.branch(4, "words")
    (work.root / "README.md").write_text("A word.\n", "utf-8")
    work.git("add", "--all")
    work.git("commit", "--quiet", "--message", "A word")
    first, *_ = hub.open(work, pull)
    assert first.jobs == {"review": "success"}, first.log
    assert "Install the locked packages" not in first.log
    assert "so nothing was reproduced" in pull.comments[0]["body"]
    assert hub.github.mergeable(pull)


@pytest.mark.prove
def test_a_storage_that_is_down_is_named_and_all_is_made_anew(hub: Hub) -> None:
    work, pull = hub.branch(5, "fewer", ("params.yaml", "mistakes: 60", "mistakes: 30"))
    hub.azurite.stop()
    hub.github.variables["BLOB_SECONDS"] = "3"
    try:
        first, _, comment, *_ = hub.open(work, pull)
    finally:
        del hub.github.variables["BLOB_SECONDS"]
        hub.azurite.start()
        hub.github.environment |= identities(hub.azurite)
    assert first.jobs == {"review": "failure"}, first.log  # the lock is outdated
    assert "Running stage 'train'" in first.log
    assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
    assert re.search(
        "not all could be restored [(]remote .*no answer from", pull.comments[0]["body"]
    )


@pytest.mark.prove
def test_who_reads_cannot_write(hub: Hub) -> None:
    forger = hub.main.clone(hub.folder / "forger")
    forger.dvc("fetch", AZURE_STORAGE_CONNECTION_STRING=hub.azurite.connection_string)
    (forger.root / "forged.csv").write_text("forged", "utf-8")
    forger.dvc("add", "--quiet", "forged.csv")
    reader = hub.github.environment["IDENTITY_reader"]
    for remote in ("main", "review"):
        push = ("push", "--remote", remote, "forged.csv.dvc")
        output = forger.dvc(*push, code=1, AZURE_STORAGE_CONNECTION_STRING=reader)
        assert "AuthorizationPermissionMismatch" in output


@pytest.mark.prove(minutes=2)
def test_of_two_open_experiments_the_second_is_merged_by_a_manual_run(hub: Hub) -> None:
    """Both change one key, and so dvc.lock and tables, too: no check starts on the second."""
    github, before = hub.github, hub.github.head("main")
    first, second = (
        hub.branch(20 + n // 30, f"mistakes-{n}", ("params.yaml", "mistakes: 60", f"mistakes: {n}"))
        for n in (20, 40)
    )
    for work, pull in (first, second):
        hub.open(work, pull)  # the bot commits dvc.lock
    try:
        github.git("update-ref", "refs/heads/main", github.head(first[1].branch))  # merged
        first[1].state, pull = "closed", second[1]
        head, main = github.head(pull.branch), github.head("main")
        assert github.conflicts(pull) and github.checks(pull, "User") == []
        github.dispatch("pull-request.yml", pull.branch, {"params": "this branch"})
        run, comment, waits, _ = github.settle()
        assert run.jobs == {"review": "success"}, run.log
        assert "Running stage 'train'" not in run.log
        assert comment.jobs == {"comment": "success", "commit": "success"}, comment.log
        made = github.head(pull.branch)
        assert github.git("log", "-1", "--format=%P", made).split() == [head, main]
        assert "mistakes: 40" in github.git("show", f"{made}:params.yaml")
        assert not github.conflicts(pull) and not github.mergeable(pull)
        assert waits.conclusion == "action_required"
        github.approve(pull)
        checked, *_ = github.settle()
        assert checked.jobs == {"review": "success"}, checked.log  # the lock is what it makes
        assert github.mergeable(pull) and len(pull.comments) == 1
        assert f"of {made[:10]} ended with **success**" in pull.comments[0]["body"]
    finally:
        github.git("update-ref", "refs/heads/main", before)


@pytest.mark.prove
def test_drift_becomes_a_retraining_that_can_be_merged(hub: Hub) -> None:
    """The experiment is real; what `digits monitor` finds is the test's."""
    work = hub.main.clone(hub.folder / "drifting")
    (work.root / "src" / "mlops" / "production" / "monitor.py").write_text(MONITOR)
    work.git("commit", "--quiet", "--all", "--message", "Production drifts")
    before = hub.github.head("main")
    work.git("push", "--quiet", str(hub.github.origin), "HEAD:refs/heads/main")
    soon = datetime.now(UTC) + timedelta(hours=1)
    may = ContainerSasPermissions(read=True, list=True, write=True, create=True)
    key = hub.azurite.key
    signature = generate_container_sas(ACCOUNT, "main", key, permission=may, expiry=soon)
    place = f"BlobEndpoint=http://127.0.0.1:{hub.azurite.port}/{ACCOUNT}"
    github = hub.github
    github.environment["IDENTITY_main"] = f"{place};SharedAccessSignature={signature}"
    github.variables |= {"AZURE_ML_WORKSPACE": "digits", "AZURE_MAIN_CLIENT_ID": "main"}
    try:
        run = github.act("monitor.yml", "schedule", github.head("main"), {})
        assert set(run.jobs.values()) == {"success"}, run.log
        assert "Running stage 'train'" in run.log
        text = github.issues[-1]["remarks"][0]["body"]
        assert "| prepare.foreign_share | 0.0 | 0.05 |" in text
        assert "accuracy given script" in text
        branch = github.git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/retrain-*")
        pull = github.open_link(branch)
        span = f"main..{pull.branch}"
        assert github.git("diff", "--numstat", span, "--", "params.yaml").split()[:2] == ["1", "1"]
        runs = github.settle()
    finally:
        github.git("update-ref", "refs/heads/main", before)
        del github.variables["AZURE_ML_WORKSPACE"]
    log = "\n".join(run.log for run in runs)
    assert runs[0].jobs["review"] == "success", log  # the labelled digits came from `main`
    assert github.mergeable(pull)
    assert f"of {github.head(pull.branch)[:10]} ended with **success**" in pull.comments[0]["body"]
