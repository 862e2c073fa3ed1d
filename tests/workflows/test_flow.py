"""A pull request's way through the real workflow files, run by act on loopback."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import run as targets
from azure.storage.blob import (
    AccountSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)
from conftest import ROOT, Azurite, Project, free_port
from loopback import GitHub, needs_bash
from records import FULL_NAME, Pull, Run

pytestmark = [pytest.mark.slow, needs_bash]
ACCOUNT = "devstoreaccount1"
SMALL_REVIEW = """\
review:
  stage_seconds: {train: 10}
  retrain: {propose: true, set: {prepare.foreign_share: 0.05}}
  gate:
    mnist:
      accuracy: {direction: higher, floor: 0.3, tolerance: 0.2}
"""


def identities(port: int) -> dict[str, str]:
    """Return what the stand-in of azure/login gives: who reads all, who writes `review`."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    reader = generate_account_sas(
        ACCOUNT,
        targets.AZURITE_KEY,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, list=True),
        soon,
    )
    writer = generate_container_sas(
        ACCOUNT,
        "review",
        targets.AZURITE_KEY,
        permission=ContainerSasPermissions(read=True, list=True, write=True, create=True),
        expiry=soon,
    )
    place = f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};SharedAccessSignature="
    return {"IDENTITY_reader": place + reader, "IDENTITY_reviewer": place + writer}


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
    azurite = Azurite(free_port(), folder / "azurite")
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
                "AZURE_REVIEWER_CLIENT_ID": "reviewer",
            }
            github.environment = identities(azurite.port)
            yield Hub(github, azurite, main, folder)
    finally:
        azurite.stop()


@pytest.mark.prove(minutes=3)
def test_an_edit_of_epochs_in_the_web_editor_becomes_mergeable(hub: Hub) -> None:
    work, pull = hub.branch(1, "mehr-übung", ("params.yaml", "epochs: 1", "epochs: 2"))
    edited = work.git("rev-parse", "HEAD").strip()
    runs = hub.open(work, pull)
    github = hub.github
    names = [(run.workflow, run.event) for run in runs]
    log = "\n".join(run.log for run in runs)
    assert names == [
        ("pull-request.yml", "pull_request"),
        ("ci.yml", "workflow_dispatch"),
        ("pull-request.yml", "workflow_dispatch"),
        ("comment.yml", "workflow_run"),
        ("comment.yml", "workflow_run"),
    ], log
    first, _, second, *_ = runs
    assert first.jobs == {"review": "failure", "publish": "success", "commit": "success"}, log
    assert second.jobs["review"] == "success", log
    assert "Running stage 'train'" in first.log
    assert "Running stage" not in second.log  # all of it came from the container `review`
    made = github.head(pull.branch)
    assert github.git("rev-parse", f"{made}^") == edited
    changed = set(github.git("diff", "--name-only", edited, made).splitlines())
    assert {"dvc.lock", "data/evaluation/metrics.json"} <= changed
    assert github.mergeable(pull)
    assert len(pull.comments) == 1
    assert f"of {made[:10]} ended with **success**" in pull.comments[0]["body"]


@pytest.mark.prove
def test_a_worse_model_is_not_mergeable(hub: Hub) -> None:
    edit = ("src/digits/pipeline/evaluate.py", '"accuracy": accuracy,', '"accuracy": accuracy / 2,')
    work, pull = hub.branch(6, "worse", edit)
    first, _ = hub.open(work, pull)
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
    first, comment = hub.open(work, pull)
    assert first.jobs == {"review": "failure", "publish": "success", "commit": "success"}
    assert "Left to the author" in first.log
    assert "Running stage 'evaluate'" in first.log
    assert "Running stage 'train'" not in first.log
    assert comment.jobs == {"comment": "success"}, comment.log
    assert f"gh run download {first.id} --repo {FULL_NAME} --name lock" in pull.comments[0]["body"]
    lock = hub.github.artifacts / str(first.id) / "lock.zip"
    work.run("python", "-m", "zipfile", "--extract", str(lock), ".")
    work.git("add", "dvc.lock", "data")
    work.git("commit", "--quiet", "--message", "New dvc.lock and metrics")
    second, _ = hub.open(work, pull)
    assert second.jobs["review"] == "success", second.log
    assert "Running stage" not in second.log
    assert len(pull.comments) == 1
    assert f"of {second.sha[:10]} ended with **success**" in pull.comments[0]["body"]


@pytest.mark.prove
def test_a_fork_gets_everything_without_an_identity(hub: Hub) -> None:
    work, pull = hub.branch(3, "patch-1")
    pull.source, pull.author = "mallory/digits", "mallory"
    first, comment = hub.open(work, pull)
    assert first.jobs == {"review": "success"}, first.log
    assert "CONNECTION_STRING" not in first.log
    assert "Running stage 'mnist'" in first.log
    assert comment.jobs == {"comment": "success"}, comment.log
    assert len(pull.comments) == 1


@pytest.mark.prove
def test_dependabot_gets_its_lock_when_a_maintainer_asks(hub: Hub) -> None:
    work, pull = hub.branch(4, "dependabot/pip/python")
    lock = work.root / "requirements.txt"
    lock.write_text(lock.read_text("utf-8") + "# newer\n", "utf-8")
    work.git("commit", "--quiet", "--all", "--message", "Bump the python group")
    pull.author = "dependabot[bot]"
    hub.github.push(work.root, pull)
    hub.github.waiting.clear()  # it runs as a fork's does, see above
    hub.github.dispatch("pull-request.yml", pull.branch, {"relock": "true"})
    event, workflow, sha, payload = hub.github.waiting.popleft()
    run = hub.github.act(workflow, event, sha, payload)
    assert run.jobs == {"review": "failure", "publish": "success", "commit": "success"}, run.log
    assert "Running stage 'train'" in run.log
    assert "dvc.lock" in hub.github.git("diff", "--name-only", f"{pull.branch}^", pull.branch)
    # and what starts now is what the edit of epochs has shown
    assert [waiting[1] for waiting in hub.github.waiting] == ["ci.yml", "pull-request.yml"]
    hub.github.waiting.clear()


@pytest.mark.prove
def test_a_storage_that_is_down_is_told_and_all_is_made_anew(hub: Hub) -> None:
    work, pull = hub.branch(5, "no-change")
    hub.azurite.stop()
    hub.github.variables["BLOB_SECONDS"] = "3"
    try:
        first, comment = hub.open(work, pull)
    finally:
        del hub.github.variables["BLOB_SECONDS"]
        hub.azurite.start()
    assert first.jobs == {"review": "success", "publish": "failure"}, first.log
    assert "The container main lacks some of it or did not answer" in first.log
    assert "Running stage 'train'" in first.log
    assert comment.jobs == {"comment": "success"}, comment.log


@pytest.mark.prove
def test_who_reads_cannot_write_and_review_forges_nothing_of_main(hub: Hub) -> None:
    """A forged entry of the run cache reaches `review` at most; main makes its own bytes."""
    forger = hub.main.clone(hub.folder / "forger")
    forger.dvc(
        "fetch", "--run-cache", AZURE_STORAGE_CONNECTION_STRING=hub.azurite.connection_string
    )
    entries = sorted((forger.root / ".dvc" / "cache" / "runs").glob("*/*/*"))
    lock = (forger.root / "dvc.lock").read_text("utf-8")
    model = next(
        line for line in lock.split("data/model/model.keras")[1].split() if len(line) == 32
    )
    forged = hashlib.md5(b"forged").hexdigest()
    content = forger.root / ".dvc" / "cache" / "files" / "md5" / forged[:2] / forged[2:]
    content.parent.mkdir(parents=True, exist_ok=True)
    content.write_bytes(b"forged")
    for entry in entries:
        entry.write_text(entry.read_text("utf-8").replace(model, forged), "utf-8")
    reader, writer = (hub.github.environment[f"IDENTITY_{who}"] for who in ("reader", "reviewer"))
    push = ("push", "--run-cache", "--remote")
    (forger.root / "dvc.lock").write_text(lock.replace(model, forged), "utf-8")
    told = forger.dvc(*push, "review", code=1, AZURE_STORAGE_CONNECTION_STRING=reader)
    assert "AuthorizationPermissionMismatch" in told
    told = forger.dvc(*push, "main", code=255, AZURE_STORAGE_CONNECTION_STRING=writer)
    assert "Authorization" in told
    forger.dvc(*push, "review", AZURE_STORAGE_CONNECTION_STRING=writer)

    main = hub.main.clone(hub.folder / "merged")
    (main.root / "node_modules").symlink_to(ROOT / "node_modules")
    main.dvc("fetch", "--run-cache", "--remote", "main", AZURE_STORAGE_CONNECTION_STRING=reader)
    main.dvc("checkout")
    assert main.stages_run(main.dvc("repro")) == []
    assert main.git("status", "--porcelain") == ""
    assert (main.root / "data" / "model" / "model.keras").read_bytes() != b"forged"


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
    key = targets.AZURITE_KEY
    signature = generate_container_sas(ACCOUNT, "main", key, permission=may, expiry=soon)
    place = f"BlobEndpoint=http://127.0.0.1:{hub.azurite.port}/{ACCOUNT}"
    github = hub.github
    github.environment["IDENTITY_main"] = f"{place};SharedAccessSignature={signature}"
    github.variables |= {"AZURE_ML_WORKSPACE": "digits", "AZURE_MAIN_CLIENT_ID": "main"}
    try:
        run = github.act("monitor.yml", "schedule", github.head("main"), {})
        assert set(run.jobs.values()) == {"success"}, run.log
        assert "Running stage 'train'" in run.log
        pull = max(github.pulls.values(), key=lambda pull: pull.number)
        assert "| prepare.foreign_share | 0.0 | 0.05 |" in pull.body
        assert "accuracy told" in pull.body
        span = f"main..{pull.branch}"
        assert github.git("diff", "--numstat", span, "--", "params.yaml").split()[:2] == ["1", "1"]
        runs = github.settle()
    finally:
        github.git("update-ref", "refs/heads/main", before)
        del github.variables["AZURE_ML_WORKSPACE"]
    log = "\n".join(run.log for run in runs)
    assert runs[1].jobs["review"] == "success", log  # the labelled digits came from `main`
    assert github.mergeable(pull)
    assert f"of {github.head(pull.branch)[:10]} ended with **success**" in pull.comments[0]["body"]


def test_only_a_pull_request_reads_review() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text("utf-8")
        assert path.name == "pull-request.yml" or not re.search(
            r"remote[= ]review|review-(read|write)", text
        )
