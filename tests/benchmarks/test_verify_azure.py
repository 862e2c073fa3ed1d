"""`digits verify azure` against emulated `az` and the emulator of Azure ML; see cloud.py."""

import json
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pyarrow as pa
import pytest
from cloud import Cloud
from conftest import ROOT
from light import BATCH, Deployable, Emulator, collecting, known_digits
from pyarrow import parquet

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from contract import unlike
    from replay import replay

    from benchmarks import verified, verify_azure
    from mlops.azure import workspace
    from mlops.setup import az
from core.errors import DigitsError

GROUP = ["verify", "--yes"]
SLOW = "def run(body):\n    time.sleep(0.05)\n"


@pytest.fixture(name="cloud")
def a_cloud(deployable: Deployable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Azure with nothing of ours; the workspace that is made in it is the emulator's."""
    found = Cloud(tmp_path / "cloud")
    monkeypatch.setattr(az, "execute", found.run)
    monkeypatch.setenv("PATH", str(found.bin), prepend=":")
    monkeypatch.setattr(verify_azure, "connect", lambda kind: workspace.connect("local"))
    for name, value in deployable.settings().items():
        monkeypatch.setenv(name, value)
    for name in workspace.SETTINGS:
        monkeypatch.setenv(name, "")  # set by the command; put back in the end
    shutil.copytree(ROOT / ".github", deployable.root / ".github")
    serving = deployable.root / "serving"
    code = collecting().replace("def run(body):\n", SLOW)
    (serving / "score.py").write_text(code)
    (serving / "batch.py").write_text(BATCH)
    images = pa.array([image.tobytes() for image in known_digits().images], pa.binary())
    path = deployable.root / verify_azure.REQUESTS
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.table({"image": images}), path)
    deployable.commit("one")
    monkeypatch.chdir(deployable.root)
    return found


@pytest.mark.prove(minutes=2)
@pytest.mark.filterwarnings("ignore")  # the SDK's own
@pytest.mark.skipif(sys.platform == "win32", reason="gh and az are scripts here")
def test_the_life_of_an_endpoint_is_played_and_its_group_removed(
    cloud: Cloud,
    deployable: Deployable,
    emulator: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda question: "another")
    with pytest.raises(DigitsError, match="Nothing was made"):
        verify_azure.main(GROUP[:1])
    assert "(cost: " in capsys.readouterr().out
    assert not cloud.calls("create")
    cloud.change(groups={"verify": {"owner": "somebody"}})
    with pytest.raises(DigitsError, match=r"verify: exists\. Give a new name"):
        verify_azure.main(GROUP)
    assert cloud.state["groups"] == {"verify": {"owner": "somebody"}}
    assert not cloud.calls("create") and not cloud.calls("delete")
    cloud.change(groups={})
    emulator.faults()
    verify_azure.main(GROUP)
    said = json.loads(verified.OUT.read_text())["azure"]
    assert results() == dict.fromkeys(verify_azure.STEPS, "ok")
    found, compared = unlike(said["calls"])
    assert found == [] and compared > 40
    assert replay(said["calls"], tmp_path / "replayed") == []
    text = verified.OUT.read_text()
    for secret in ("secret", "blob_key"):
        assert emulator.address[secret] not in text
    assert "sig=" not in text
    assert {"PUT", "DELETE"} <= {call["method"] for call in said["calls"]}
    gone(cloud)

    emulator.faults({"do": "quota"})
    verified.OUT.unlink()
    with pytest.raises(DigitsError, match="does not behave as expected"):
        verify_azure.main(GROUP)
    emulator.faults()
    steps = results()
    assert list(steps) == ["roles", "deploy", "destroy"]
    assert "quota is used up" in steps["deploy"] and steps["destroy"] == "ok"
    gone(cloud)
    assert emulator.call("GET", deployable.endpoint)["value"] == []

    verified.OUT.unlink()
    monkeypatch.setattr(verify_azure, "play", lambda *_: ({}, []))
    monkeypatch.setattr(verify_azure, "purge", Mock(side_effect=DigitsError("not purged")))
    with pytest.raises(DigitsError, match="not purged"):
        verify_azure.main(GROUP)
    assert cloud.state["groups"] == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the SDK's own
def test_collected_rows_are_read(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is cut, or of another deployment, is no proof that rows are collected."""
    target = SimpleNamespace(workspace=SimpleNamespace(poll_seconds=0.0), name="collects")
    verification = object.__new__(verify_azure.Verification)
    verification.target = target  # type: ignore[assignment]
    verification.settings = SimpleNamespace(collections=("rows",))  # type: ignore[assignment]
    verification.new = verification.other = SimpleNamespace(name="blue")  # type: ignore[assignment]
    row = {"request_id": "1", "position": 0, "model_version": "v", "digit": "1", "image": "AA=="}
    row |= {"confidence": 1.0, "ood_score": 0.0}
    event = {"time": "2026-01-01T00:10:00Z", "source": "x/blue", "data": [row]}
    line = json.dumps(event).encode()
    path = f"modelDataCollector/{target.name}/r/model_inputs_outputs/2026/01/01/00/rows.jsonl"
    with emulator.blobs() as container:
        monkeypatch.setattr(verify_azure, "store", lambda workspace: container)
        for content, fault in (
            (line[:-9], "expected lines that can be read"),
            (line.replace(b'"data": [', b'"dataref": ['), "expected lines that can be read"),
            (line.replace(b"2026", b"2020"), "found LeftOut"),
            (line.replace(b"x/blue", b"x/red"), "rows of both deployments"),
        ):
            container.upload_blob(path, content + b"\n", overwrite=True)
            with pytest.raises(DigitsError, match=fault):
                verification.collection()
        container.upload_blob(path, line + b"\n", overwrite=True)
        verification.collection()
        container.delete_blob(path)


def results() -> dict[str, str]:
    """Return the result of each step."""
    steps = json.loads(verified.OUT.read_text())["azure"]["steps"]
    return {name: row["result"] for name, row in steps.items()}


def gone(cloud: Cloud) -> None:
    """Nothing of the group is left, and the names are free."""
    (workspace_id, vault) = cloud.state["deleted"]
    assert "/workspaces/digits" in workspace_id and "/vaults/" in vault
    assert cloud.state["purged"] == [vault.rpartition("/")[2]]
    assert cloud.state["groups"] == {}
    cloud.change(stack=None, deleted=[], purged=[], vaults=[])
