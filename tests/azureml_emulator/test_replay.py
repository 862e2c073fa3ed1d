"""What `digits verify azure` recorded is replayed on the emulator, which must answer likewise."""

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from emulated import ECHO, STORE, emulated, wait_until
from replay import replay

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from azure.ai.ml import Input, MLClient, entities
    from azure.ai.ml.constants import AssetTypes
    from azure.core.exceptions import HttpResponseError
    from benchmarks import verified, verify_azure

    from azureml_emulator.client import connect

pytestmark = [
    pytest.mark.prove,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),  # the SDK's
]
Calls = list[dict[str, Any]]


def lives(client: MLClient, files: Path) -> None:
    """Let an online and a batch endpoint live from their creation to their deletion."""
    client.workspaces.get("w")
    client.datastores.get_default(include_secrets=True)
    list(client.compute.list_sizes())
    list(client.compute.list_usage())
    (files / "code").mkdir()
    (files / "code" / "score.py").write_text(ECHO.format(answer="given"))
    environment = entities.Environment(name="e", version="1", image="image")
    model = entities.Model(name="m", version="1", path=files / "code")
    client.models.create_or_update(model)
    client.models.archive("m", "1")
    list(client.models.list(name="m"))
    code = entities.CodeConfiguration(code=str(files / "code"), scoring_script="score.py")
    online = client.online_endpoints
    online.begin_create_or_update(entities.ManagedOnlineEndpoint(name="online")).result()
    blue = entities.ManagedOnlineDeployment(
        name="blue",
        endpoint_name="online",
        environment=environment,
        code_configuration=code,
        instance_type="Standard_DS3_v2",
        instance_count=1,
    )
    client.online_deployments.begin_create_or_update(blue).result()
    endpoint = online.get("online")
    endpoint.traffic = {"blue": 100}
    online.begin_create_or_update(endpoint).result()
    online.get_keys("online")
    client.online_deployments.get_logs("blue", "online", lines=5)
    with pytest.raises(HttpResponseError, match="has traffic"):
        client.online_deployments.begin_delete("blue", "online")
    endpoint.traffic = {}
    online.begin_create_or_update(endpoint).result()
    batch = client.batch_endpoints
    batch.begin_create_or_update(entities.BatchEndpoint(name="batch")).result()
    one = entities.ModelBatchDeployment(
        name="one",
        endpoint_name="batch",
        environment=environment,
        code_configuration=code,
        compute="cluster",
        settings=entities.ModelBatchDeploymentSettings(mini_batch_size=1),
    )
    client.batch_deployments.begin_create_or_update(one).result()
    given = {"given": Input(type=AssetTypes.URI_FOLDER, path=f"{STORE}scored/")}
    job = batch.invoke("batch", deployment_name="one", inputs=given)
    wait_until(lambda: client.jobs.get(job.name).status == "Completed")
    batch.begin_delete("batch").result()
    client.online_deployments.begin_delete("blue", "online").result()
    online.begin_delete("online").result()
    client.models.restore("m", "1")


@pytest.fixture(scope="module", name="record")
def a_record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """A record in the form of verified.json, of an emulator instead of Azure."""
    folder = tmp_path_factory.mktemp("recorded")
    names = ("REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy", "AZUREML_CURRENT_CLOUD")
    before = {name: os.environ.get(name) for name in names}
    with emulated(folder / "emulator") as made, verify_azure.recorded() as calls:
        made.emulator.storage.client.upload_blob("scored/a.csv", b"1")
        lives(connect(made.emulator.folder, "w"), folder)
    yield json.loads(json.dumps(calls))
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value else {})


def test_a_record_is_replayed_without_a_difference(record: Calls, tmp_path: Path) -> None:
    assert len(record) > 60
    assert {call["method"] for call in record} == {"GET", "PUT", "POST", "DELETE"}
    assert any(call["query"].get("hash") for call in record)  # a list is asked for with it
    assert any(call["headers"]["azure-asyncoperation"] for call in record)
    assert replay(record, tmp_path / "emulator") == []


def deployment(call: dict[str, Any]) -> bool:
    """Return whether a call creates the online deployment."""
    return call["method"] == "PUT" and "/onlineEndpoints/online/deployments/" in call["path"]


def listed(call: dict[str, Any]) -> bool:
    """Return whether a call lists the versions of a code by their hash."""
    return bool(call["query"].get("hash"))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], bool], Callable[[dict[str, Any]], Any]]] = {
    "status": (deployment, lambda call: call.update(status=202)),
    "header": (deployment, lambda call: call["headers"].update({"azure-asyncoperation": None})),
    "value": (deployment, lambda call: call["response"]["sku"].update(capacity=2)),
    "text": (deployment, lambda call: call["response"]["properties"].update(instanceType="F4")),
    "number": (deployment, lambda call: call["response"].update(name="blue1")),
    "missing": (deployment, lambda call: call["response"]["properties"].pop("scaleSettings")),
    "more": (deployment, lambda call: call["response"]["properties"].update(priority="high")),
    "list": (listed, lambda call: call["response"]["value"].append({})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_answer_is_a_difference(record: Calls, tmp_path: Path, change: str) -> None:
    changed = copy.deepcopy(record)
    chosen, apply = CHANGES[change]
    number = next(number for number, call in enumerate(changed) if chosen(call))
    apply(changed[number])
    found = replay(changed[: number + 1], tmp_path / "emulator")
    assert len(found) == 1, found


RECORD = ROOT / verified.OUT
KNOWN = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}


@pytest.mark.skipif("azure" not in KNOWN, reason="there is no record of Azure: digits verify azure")
def test_the_emulator_answers_as_azure_did(tmp_path: Path) -> None:
    assert replay(KNOWN["azure"]["calls"], tmp_path / "emulator") == []
