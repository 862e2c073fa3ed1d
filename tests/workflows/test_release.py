"""A merge's way into production through the real workflow files: act, emulator, the real SDK."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import frozen
import pytest
import yaml
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas
from conftest import ROOT, Azurite
from light import LIGHT_SCORE, Deployable, Emulator, write_package
from loopback import GitHub, needs_bash
from records import Run

pytestmark = [pytest.mark.slow, needs_bash]
ACCOUNT = "devstoreaccount1"
DEPLOYED = {"reproduce": "success", "apply": "success", "record": "success"}
MEASURED = '{"mnist": {"accuracy": 0.995, "calibration_error": 0.001}}'
# One of two contents with the same MD5: Wang et al., "Collisions for hash functions MD4, MD5,
# HAVAL-128 and RIPEMD" (eprint.iacr.org/2004/199).
COLLISION = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f89"
    "55ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b"
    "d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
    "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)
METRICS = "data/evaluation/metrics.json"
COPY = "python -c 'import shutil, sys; shutil.copytree(*sys.argv[1:], dirs_exist_ok=True)'"


def identity(azurite: Azurite, write: bool) -> str:
    """Return what the replacement of azure/login gives: the container `main` and no other."""
    may = ContainerSasPermissions(read=True, list=True, write=write, create=write)
    soon = datetime.now(UTC) + timedelta(hours=1)
    key = azurite.key
    signature = generate_container_sas(ACCOUNT, "main", key, permission=may, expiry=soon)
    return (
        f"BlobEndpoint=http://127.0.0.1:{azurite.port}/{ACCOUNT};SharedAccessSignature={signature}"
    )


@dataclass
class Production:
    """A repository on GitHub whose pipeline copies a model, and a workspace to deploy it to."""

    github: GitHub
    work: Deployable
    emulator: Emulator

    def model(self, name: str, reproduced: bool = True) -> str:
        """Commit another model; return its version."""
        version = write_package(self.work.root / "model", name)
        if reproduced:
            self.work.dvc("repro", "--quiet")
        self.work.git("add", "--all")
        self.work.git("commit", "--quiet", "--message", f"Model {name} (#12)")
        return version[:12]

    def push(self) -> Run:
        """Push to main, and let deploy.yml run."""
        self.work.git("push", "--quiet", str(self.github.origin), "main")
        payload = {"ref": "refs/heads/main"}
        return self.github.act("deploy.yml", "push", self.github.head("main"), payload)

    def dispatch(self, workflow: str, inputs: dict[str, str]) -> Run:
        """Start a workflow on main by hand."""
        payload = {"ref": "refs/heads/main", "inputs": inputs}
        return self.github.act(workflow, "workflow_dispatch", self.github.head("main"), payload)

    @property
    def live(self) -> str:
        """The model version that answers."""
        return self.work.version(self.emulator)


def make_project(root: Path, workspace: str, folder: Path) -> Deployable:
    """Return a repository with the real workflows and source, and a pipeline that copies."""
    work = Deployable(root, workspace, folder)
    for name in (".github", "src", ".dvc"):
        unwanted = shutil.ignore_patterns(
            "__pycache__", "cache", "tmp", "config.local", "*.egg-info"
        )
        shutil.copytree(ROOT / name, root / name, ignore=unwanted)
    (root / "params.yaml").write_text(frozen.text(), "utf-8")
    for name in (".dvcignore", "pyproject.toml"):
        shutil.copyfile(ROOT / name, root / name)
    (root / "serving").mkdir()
    (root / "serving" / "score.py").write_text(LIGHT_SCORE)
    (root / "run.py").write_text("import sys\nif 'sbom' in sys.argv: open('sbom.json', 'w')\n")
    ignored = (".venv", "node_modules", "__pycache__/", "/.deploy/", "*.partial", "/sbom.json")
    (root / ".gitignore").write_text("\n".join((*ignored, "/data/*", "!/data/evaluation")))
    (root / "digits").mkdir()
    (root / "digits" / "test.npz").write_bytes(b"digits")
    (root / "data" / "evaluation").mkdir(parents=True)
    stages = {
        "prepare": {
            "cmd": f"{COPY} digits data/prepared",
            "deps": ["digits"],
            "outs": ["data/prepared/test.npz"],
        },
        "train": {
            "cmd": f"{COPY} model data/model",
            "deps": ["model"],
            "outs": ["data/model"],
        },
        "package": {
            "cmd": f"{COPY} data/model data/package",
            "deps": ["data/model"],
            "outs": ["data/package"],
        },
        "evaluate": {
            "cmd": [
                "git hash-object model/answers.json > data/images",
                f"echo '{MEASURED}' > data/evaluation/metrics.json",
            ],
            "deps": ["model"],
            "outs": ["data/images"],
            "metrics": [{"data/evaluation/metrics.json": {"cache": False}}],
        },
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    write_package(root / "model", "none")
    work.git("init", "--quiet", "--initial-branch", "main")
    smoke = "{digits: 10, accuracy: 0.9, latency_seconds: 5.0}"
    work.set(code="serving", step_seconds="0.0", smoke=smoke, lease_seconds="15")
    return work


@pytest.fixture(scope="module")
def production(
    emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("production")
    (folder / "work").mkdir()
    work = make_project(folder / "work", "merged", emulator.folder)
    (work.root / ".emulator").symlink_to(emulator.folder)
    (work.root / ".git" / "info" / "exclude").write_text(".emulator\n")
    azurite = Azurite(folder / "azurite")
    azurite.start()
    try:
        with GitHub(folder / "github") as github:
            github.variables = {
                "AZURE_STORAGE_ACCOUNT": ACCOUNT,
                "AZURE_ML_WORKSPACE": "merged",
                "AZURE_TENANT_ID": "tenant",
                "AZURE_MAIN_CLIENT_ID": "main",
                "AZURE_DEPLOYER_CLIENT_ID": "deployer",
                "DEPLOY_TO": "local",
            }
            github.environment = {
                "IDENTITY_main": identity(azurite, write=True),
                "IDENTITY_deployer": identity(azurite, write=False),
                "EMULATOR": str(emulator.folder),
                "DIGITS_LOCAL_WORKSPACE": "merged",
            }
            yield Production(github, work, emulator)
            work.deploy("destroy", "--wait")
    finally:
        azurite.stop()


@pytest.mark.slow(minutes=0.5)
def test_a_stale_lock_on_main_deploys_nothing(production: Production) -> None:
    production.model("lock")
    production.model("stale", reproduced=False)
    run = production.push()
    assert run.jobs == {"reproduce": "failure"}, run.log
    assert "main's dvc.lock is not what its pipeline makes (M dvc.lock)" in run.log, run.log
    assert production.emulator.call("GET", production.work.endpoint)["value"] == []


@pytest.mark.prove
def test_a_lock_that_claims_what_was_never_made_deploys_nothing(production: Production) -> None:
    production.model("made")
    writer = production.github.environment["IDENTITY_main"]
    production.work.dvc(
        "push", "--run-cache", "--remote", "main", AZURE_STORAGE_CONNECTION_STRING=writer
    )
    lock = production.work.root / "dvc.lock"
    old = yaml.safe_load(lock.read_text())["stages"]
    write_package(production.work.root / "model", "claimed")
    production.work.dvc("repro", "--quiet")
    forged = yaml.safe_load(lock.read_text())
    for stage, made in forged["stages"].items():
        made["outs"] = old[stage]["outs"]  # what main has, of a model that is not there any more
    lock.write_text(yaml.safe_dump(forged))
    production.work.git("commit", "--quiet", "--all", "--message", "Trust me")
    run = production.push()
    assert run.jobs == {"reproduce": "failure"}, run.log
    assert "main's dvc.lock is not what its pipeline makes (M dvc.lock)" in run.log, run.log
    production.work.git("revert", "--no-edit", "HEAD")


@pytest.mark.prove
def test_the_first_deployment(production: Production) -> None:
    version = production.model("one")
    run = production.push()
    assert run.jobs == DEPLOYED, run.log
    assert "to be created" in run.log, run.log
    assert "Running stage 'package'" in run.log  # nothing of anybody's was taken over
    assert production.live == version


@pytest.mark.prove
def test_a_merged_fork_is_deployed_like_any_other_and_rolled_back(production: Production) -> None:
    before = production.live
    fork = production.work.clone(production.work.root.parent / "fork")
    write_package(fork.root / "model", "fork")
    fork.dvc("repro", "--quiet")
    fork.git("commit", "--quiet", "--all", "--message", "A fork's model")
    production.work.git("pull", "--quiet", "--no-rebase", "--no-ff", str(fork.root), "main")
    run = production.push()
    assert run.jobs == DEPLOYED, run.log
    assert "Running stage 'package'" in run.log, run.log
    assert "Running stage 'prepare'" not in run.log  # main's own, restored
    assert production.live.startswith("fork")
    run = production.dispatch("rollback.yml", {"revision": ""})
    assert run.jobs == {"rollback": "success", "record": "success"}, run.log
    assert production.live == before


@pytest.mark.prove
def test_other_bytes_of_the_same_md5_are_not_deployed(production: Production) -> None:
    """A writer of the container `main` stores a twin of a file that is merged later."""
    before = production.live
    (production.work.root / "model" / "weights.bin").write_bytes(COLLISION)
    other = bytearray(COLLISION)
    for place in (19, 45, 59, 83, 109, 123):
        other[place] ^= 0x80
    md5 = hashlib.md5(other, usedforsecurity=False).hexdigest()
    assert md5 == hashlib.md5(COLLISION, usedforsecurity=False).hexdigest()
    assert other != COLLISION
    writer = production.github.environment["IDENTITY_main"]
    with BlobServiceClient.from_connection_string(writer) as service:
        stored = service.get_blob_client("main", f"files/md5/{md5[:2]}/{md5[2:]}")
        stored.upload_blob(bytes(other))
    production.model("twin")
    run = production.push()
    production.work.git("revert", "--no-edit", "HEAD")
    assert run.jobs == {"reproduce": "success", "apply": "failure"}, run.log
    assert "Nothing is deployed: data/package has the SHA-256" in run.log, run.log
    assert production.live == before


@pytest.fixture
def restores(production: Production) -> Iterator[Production]:
    """Params of main that keep weights which were made elsewhere."""
    start = production.github.head("main")
    production.work.set(verify="restore")
    yield production
    production.work.git("reset", "--quiet", "--hard", start)
    production.github.git("update-ref", "refs/heads/main", start)


def push_stages(production: Production, *stages: str) -> None:
    """Push what stages made, as who trained elsewhere does."""
    writer = production.github.environment["IDENTITY_main"]
    command = ("push", "--remote", "main", *stages)
    production.work.dvc(*command, AZURE_STORAGE_CONNECTION_STRING=writer)


@pytest.mark.prove
def test_weights_that_are_not_made_again_are_deployed_with_what_main_makes_of_them(
    restores: Production,
) -> None:
    version = restores.model("dear")
    restores.work.git("commit", "--quiet", "--amend", "--no-edit", "--trailer", "Job: digits-1")
    push_stages(restores, "train")
    run = restores.push()
    assert run.jobs == DEPLOYED, run.log
    assert restores.live == version
    assert "weights not reproduced; made by digits-1 of " in run.log, run.log
    assert "Running stage 'train'" not in run.log, run.log
    for stage in ("package", "evaluate"):  # nobody's claim about these is believed
        assert f"Running stage '{stage}'" in run.log, run.log


@pytest.mark.prove
def test_with_weights_of_others_the_rest_is_not_believed(restores: Production) -> None:
    """Main has a package of that name, but it is of other weights."""
    lock = restores.work.root / "dvc.lock"
    old = yaml.safe_load(lock.read_text())["stages"]["package"]["outs"]
    restores.model("claimed")
    forged = yaml.safe_load(lock.read_text())
    forged["stages"]["package"]["outs"] = old
    lock.write_text(yaml.safe_dump(forged, sort_keys=False))
    restores.work.git("commit", "--quiet", "--all", "--message", "Trust me")
    push_stages(restores)
    run = restores.push()
    assert run.jobs == {"reproduce": "failure"}, run.log
    assert "main's dvc.lock is not what its pipeline makes (M dvc.lock)" in run.log, run.log


@pytest.mark.prove
def test_weights_of_others_that_are_stale_or_absent_are_not_deployed(
    restores: Production,
) -> None:
    restores.model("never pushed")
    run = restores.push()
    assert run.jobs == {"reproduce": "failure"}, run.log
    assert "the container main has not all that stage train made" in run.log, run.log
    push_stages(restores, "train")
    restores.model("not trained", reproduced=False)
    run = restores.push()
    assert run.jobs == {"reproduce": "failure"}, run.log
    assert "main's dvc.lock is stale" in run.log and "Running stage 'train'" not in run.log


@pytest.mark.prove
def test_without_protected_environments_a_person_applies(production: Production) -> None:
    production.github.variables["DEPLOY_BY_HAND"] = "true"
    try:
        run = production.push()
        assert run.jobs == {"reproduce": "success"}, run.log
        assert "Running stage" not in run.log  # main has made all of it before
        run = production.dispatch("deploy.yml", {})
    finally:
        del production.github.variables["DEPLOY_BY_HAND"]
    assert run.jobs == DEPLOYED, run.log


@pytest.mark.prove
def test_the_trial_in_ones_own_subscription_leaves_nothing(production: Production) -> None:
    before = production.live
    run = production.dispatch("live.yml", {})
    assert run.jobs == {"live": "success"}, run.log
    assert run.log.count("is live with all traffic") == 3
    assert "/live-" in run.log, run.log
    assert production.live == before  # and `serving` sees one endpoint alone


@pytest.mark.prove
def test_a_model_that_never_serves_changes_nothing_nor_does_its_trial(
    production: Production,
) -> None:
    before = production.live
    production.model("dead")  # its score.py cannot load it
    assert production.push().jobs == {"reproduce": "success", "apply": "failure"}
    assert production.live == before
    run = production.dispatch("live.yml", {})
    production.work.git("revert", "--no-edit", "HEAD")
    assert run.jobs == {"live": "failure"}, run.log
    assert "/live-" in run.log, run.log
    assert production.live == before  # and `serving` sees one endpoint alone


@pytest.mark.parametrize("workflow", ["deploy.yml", "rollback.yml", "live.yml"])
def test_another_branch_than_main_deploys_nothing(production: Production, workflow: str) -> None:
    production.work.git("push", "--quiet", str(production.github.origin), "main")
    payload = {"ref": "refs/heads/other", "inputs": {}}
    sha = production.github.head("main")
    run = production.github.act(workflow, "workflow_dispatch", sha, payload)
    assert run.jobs == {}, run.log


def test_without_azure_main_is_reproduced_and_kept_for_reviews(production: Production) -> None:
    production.model("without Azure")
    variables, production.github.variables = production.github.variables, {}
    try:
        run = production.push()
    finally:
        production.github.variables = variables
    assert run.jobs == {"reproduce": "success"}, run.log
    assert "Nothing is deployed: the variables" in run.log, run.log
    commit = production.work.git("log", "-1", "--format=%h", "--", METRICS).strip()
    assert f"| {commit} | Model " in run.log, run.log
    assert "| 0.995 | 0.001 |" in run.log, run.log
    kept = list((production.github.caches / "refs-heads-main").glob("dvc-*"))
    assert kept
    names = {path.relative_to(one).as_posix() for one in kept for path in one.glob("*/*/*/*")}
    assert names == {".dvc/cache/files/md5"}
