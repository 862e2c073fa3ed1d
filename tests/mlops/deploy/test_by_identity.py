"""Datastores by identity: everything of ours works with tokens over TLS, and nobody gets a key."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from emulated import wait_until
from light import BATCH, Deployable, Emulator, a_project, collecting, known_digits, remaining
from pyarrow import parquet

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from mlops.azure.batch import Batch
    from mlops.azure.endpoint import Target
    from mlops.azure.settings import load
    from mlops.azure.workspace import connect, store
    from mlops.deploy import release
    from mlops.production import monitor

pytestmark = pytest.mark.prove


@pytest.fixture(name="own")
def an_emulator(tmp_path: Path) -> Iterator[Emulator]:
    """An emulator whose datastores have no keys."""
    server = Emulator(tmp_path / "emulator")
    server.folder.mkdir()
    (server.folder / "settings.json").write_text('{"identity_datastores": true}')
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(name="project")
def a_deployable(own: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployable:
    """A project whose endpoint collects its requests and whose batch endpoint answers files."""
    project = a_project(tmp_path / "project", own, collecting())
    (project.root / "serving" / "batch.py").write_text(BATCH)
    project.commit("one")
    for name, value in project.settings().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")  # set by `connect`; put back in the end
    monkeypatch.chdir(project.root)
    return project


@pytest.mark.filterwarnings("ignore")  # the SDK's own
def test_deploy_collection_and_batch_need_no_key(
    own: Emulator, project: Deployable, tmp_path: Path
) -> None:
    assert own.address["blobs"].startswith("https://")
    store_path = project.endpoint.replace("onlineEndpoints", "datastores/workspaceblobstore")
    refused = own.call("POST", f"{store_path}/listSecrets", {})["error"]
    assert refused["message"] == "No secrets for credentials of type None."
    workspace = connect("local")
    assert store(workspace).credential is workspace.credential

    project.deploy("apply")
    version = project.version(own)

    def rows() -> list[dict[str, Any]]:
        with monitor.downloaded("local", None, None) as (_, folder, left):
            assert not left.damaged and not left.elsewhere
            return parquet.read_table(folder / "requests.parquet").to_pylist()

    (live,) = project.serving(own)["traffic"]
    wait_until(lambda: len(rows()) >= 10)
    digits = {image.tobytes(): str(n % 10) for n, image in enumerate(known_digits().images)}
    assert {row["deployment"] for row in rows()} == {live}
    assert all(row["digit"] == digits[bytes(row["image"])] for row in rows())

    images = pa.array([image.tobytes() for image in known_digits().images], pa.binary())
    parquet.write_table(pa.table({"image": images}), tmp_path / "digits.parquet")
    settings = load()
    batch = Batch(Target(workspace, settings), release.read(settings), None)
    batch.score([tmp_path / "digits.parquet"], tmp_path / "out")
    found = tmp_path / "out" / "digits.parquet"
    assert (found / "part-000000.parquet").read_text() == "answers"
    assert (found / "_SUCCESS").exists()

    assert project.version(own) == version
    project.deploy("destroy")
    kinds = {path.partition(f"/{project.workspace}/")[2] for path in remaining(project, own)}
    assert {kind.partition("/")[0] for kind in kinds} <= {"codes", "jobs"}
    assert not list(store(workspace).list_blob_names(name_starts_with="modelDataCollector/"))
    assert not list(store(workspace).list_blob_names(name_starts_with="scoring/"))
