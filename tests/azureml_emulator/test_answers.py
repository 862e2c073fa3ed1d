"""What is asked for is done as on Azure, or refused by name."""

import http.client
import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated import ECHO, GROUP, STORE, VERSION, WORKSPACE, Client, emulated, wait_until

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azure.ai.ml.operations import _job_ops_helper

    from azureml_emulator.client import connect
from azureml_emulator.web import LOOPBACK

pytestmark = pytest.mark.slow
CLUSTER = {"computeType": "AmlCompute", "properties": {"vmSize": "standard_ds3_v2"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of an emulator that all tests of this module share."""
    with emulated(tmp_path_factory.mktemp("emulator")) as made:
        yield made


def test_the_key_is_new_each_time_and_nobody_elses(client: Client, tmp_path: Path) -> None:
    key = client.emulator.storage.key
    assert client.emulator.address["blob_key"] == key
    everything = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True)
    assert key not in everything.stdout
    assert client.emulator.folder.stat().st_mode & 0o77 == 0
    folder = client.emulator.folder
    for file in (path for path in folder.rglob("*") if path.is_file()):
        if key.encode() in file.read_bytes():
            assert file.stat().st_mode & 0o77 == 0, file
    with emulated(tmp_path / "other") as other:
        first = other.emulator.storage.key
        assert first != key
    with emulated(tmp_path / "other") as again:
        assert again.emulator.storage.key != first


def test_another_host_is_refused(client: Client) -> None:
    for host, status in (("evil.example", 403), ("127.0.0.1.evil.example:80", 403), ("x:y", 403)):
        connection = http.client.HTTPConnection(LOOPBACK, client.emulator.router.port, timeout=30)
        connection.request("POST", "/any/score", b"{}", {"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_scoring_script_and_code_are_those_of_the_last_update(
    client: Client, tmp_path: Path
) -> None:
    files = {"other.py": "def answer():\n    return 1\n", "in/entry.py": ECHO.format(answer="1")}
    first = client.code("first", files, tmp_path)
    script = "def init():\n    pass\n\n\ndef run(body):\n    import os\n"
    script += "    return sorted(os.listdir('.'))\n"
    second = client.code("second", {"entry.py": script}, tmp_path)
    client.endpoint("scripts")
    chosen: dict[str, Any] = {"codeId": first, "scoringScript": "in/entry.py"}
    assert client.deployment("blue", first, "scripts", codeConfiguration=chosen) == "Succeeded"
    client.endpoint("scripts", traffic={"blue": 100})
    assert client.score("scripts") == (200, "1")
    chosen = {"codeId": second, "scoringScript": "entry.py"}
    assert client.deployment("blue", second, "scripts", codeConfiguration=chosen) == "Succeeded"
    assert "entry.py" in client.score("scripts")[1]
    assert "other.py" not in client.score("scripts")[1]
    chosen["scoringScript"] = "absent.py"
    assert client.deployment("blue", second, "scripts", codeConfiguration=chosen) == "Failed"
    client.endpoint("scripts", traffic={})
    client.call("DELETE", "/onlineEndpoints/scripts")


def test_a_model_may_be_a_file_or_absent(client: Client, tmp_path: Path) -> None:
    script = ECHO.format(
        answer="[str(p) for p in __import__('pathlib').Path("
        "__import__('os').environ['AZUREML_MODEL_DIR']).rglob('*')]"
    )
    code = client.code("where", {"score.py": script}, tmp_path)
    client.emulator.storage.client.upload_blob("files/model.bin", b"1")
    uri = f"{STORE}files/model.bin"
    properties = {"modelUri": uri, "modelType": "custom_model"}
    model = client.put("/models/File/versions/7", properties)["id"]
    client.endpoint("files")
    assert client.deployment("blue", code, "files", model=model) == "Succeeded"
    client.endpoint("files", traffic={"blue": 100})
    assert client.score("files")[1].endswith('/azureml-models/File/7/model.bin"]')
    assert client.deployment("blue", code, "files") == "Succeeded"
    assert client.score("files") == (200, "[]")
    bare = {"location": "x", "properties": {"instanceType": "Standard_DS2_v2", "model": model}}
    path = "/onlineEndpoints/files/deployments/bare"
    assert client.call("PUT", path, bare | {"sku": {"capacity": 1}})[0] == 400
    client.endpoint("files", traffic={})
    client.call("DELETE", "/onlineEndpoints/files")


@pytest.mark.prove
def test_an_mlflow_model_needs_no_code(client: Client, tmp_path: Path) -> None:
    import mlflow.pyfunc

    class Twice(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        """Doubles."""

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input["a"] * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=Twice())
    client.emulator.storage.upload(tmp_path / "model", f"{STORE}flow/model")
    properties = {"modelUri": f"{STORE}flow/model", "modelType": "mlflow_model"}
    model = client.put("/models/flow/versions/1", properties)["id"]
    client.endpoint("flow")
    assert client.deployment("blue", "", "flow", model=model, codeConfiguration=None) == "Succeeded"
    client.endpoint("flow", traffic={"blue": 100})
    body = b'{"input_data": {"columns": ["a"], "index": [0, 1], "data": [[1], [2]]}}'
    assert client.score("flow", body) == (200, "[2, 4]")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDK's own
def test_inputs_and_named_outputs_of_a_job_are_bound(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # to be as before after the test
    client.emulator.storage.client.upload_blob("data/one.csv", b"1,2\n")
    data = {"dataType": "uri_file", "dataUri": f"{STORE}data/one.csv"}
    asset = client.put("/data/one/versions/1", data)["id"]
    inputs = {
        "rate": {"jobInputType": "literal", "value": "0.5"},
        "file": {"jobInputType": "uri_file", "uri": asset},
        "folder": {"jobInputType": "uri_folder", "uri": f"{STORE}data/"},
    }
    command = "mkdir outputs && echo own > outputs/own.txt && echo ${{inputs.rate}} && cat "
    command += "${{inputs.file}} ${{inputs.folder}}/one.csv > ${{outputs.model}}/two.csv"
    given = {"command": command, "inputs": inputs}
    given |= {"outputs": {"model": {"jobOutputType": "uri_folder"}}}
    assert client.job("bound", **given) == "Completed"
    assert client.blob("ExperimentRun/dcid.bound/user_logs/std_log.txt") == "0.5\n"
    assert client.blob("azureml/bound/model/two.csv") == "1,2\n1,2\n"
    found = client.call("GET", "/jobs/bound")[1]["properties"]["outputs"]
    assert found["model"]["uri"] == f"{STORE}azureml/bound/model/"
    ml = connect(client.emulator.folder, "w")
    ml.jobs.download("bound", download_path=tmp_path, all=True)
    ml.jobs.download("bound", download_path=tmp_path, output_name="model")
    got = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert "named-outputs/model/two.csv" in got
    assert "artifacts/outputs/own.txt" in got
    assert "artifacts/user_logs/std_log.txt" in got


def test_a_job_can_be_streamed(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # to be as before after the test
    gate = client.emulator.folder / "gate"
    os.mkfifo(gate)
    body = {"jobType": "Command", "environmentId": "e", "command": f"echo one; cat {gate}"}
    assert client.call("PUT", "/jobs/streamed", {"properties": body})[0] == 201
    ml = connect(client.emulator.folder, "w")
    show = _job_ops_helper._incremental_print

    def show_and_go_on(*arguments: Any) -> None:
        show(*arguments)
        if client.call("GET", "/jobs/streamed")[1]["properties"]["status"] == "Running":
            gate.write_text("two\n")

    monkeypatch.setattr(_job_ops_helper, "_incremental_print", show_and_go_on)
    ml.jobs.stream("streamed")
    said = capsys.readouterr().out
    assert "RunId: streamed" in said
    assert "one" in said
    assert "Execution Summary" in said
    wait_until(lambda: client.ended("/jobs/streamed"))


def test_append_row_writes_its_file(client: Client, tmp_path: Path) -> None:
    code = client.code("rows", {"batch.py": ECHO.format(answer="[len(body)]")}, tmp_path)
    for name in "abc":
        client.emulator.storage.client.upload_blob(f"rows/{name}.txt", b"1")
    compute = client.put("/computes/cluster", CLUSTER)["id"]
    client.put("/batchEndpoints/rows", {"authMode": "AADToken"})
    properties = {"compute": compute, "miniBatchSize": 2, "outputFileName": "rows.csv"}
    properties |= {"codeConfiguration": {"codeId": code, "scoringScript": "batch.py"}}
    client.put("/batchEndpoints/rows/deployments/one", properties | {"outputAction": "AppendRow"})
    asked = {"deploymentName": "one", "inputData": {"in": {"uri": f"{STORE}rows/"}}}
    status, job = client.call("POST", "/batchEndpoints/rows/jobs", {"properties": asked})
    assert status == 201, job
    wait_until(lambda: client.ended(f"/jobs/{job['name']}"))
    assert client.blob(f"azureml/{job['name']}/score/rows.csv") == "2\n1\n"


SAMPLED = {
    "location": "x",
    "sku": {"capacity": 1},
    "properties": {
        "instanceType": "Standard_DS2_v2",
        "codeConfiguration": {"codeId": "c"},
        "dataCollector": {"collections": {"in": {"samplingRate": 0.5}}},
    },
}


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("GET", "/schedules", None, "schedules_List"),
        ("GET", "/schedules/one", None, "schedules_Get"),
        ("PUT", "/components/a/versions/1", {}, "components_versions_CreateOrUpdate"),
        ("POST", "/serverlessEndpoints/a/listKeys", {}, "serverlessEndpoints_listKeys"),
        ("DELETE", "/featuresets/a", None, "featuresets_Delete"),
        ("PUT", "/jobs/p", {"properties": {"jobType": "Pipeline"}}, "jobType Pipeline"),
        ("PUT", "/jobs/p", {"properties": {"jobType": "AutoML"}}, "jobType AutoML"),
        (
            "PUT",
            "/jobs/p",
            {"properties": {"jobType": "Command", "distribution": {"distributionType": "Mpi"}}},
            "distributionType Mpi",
        ),
        ("PUT", "/onlineEndpoints/scripted/deployments/one", SAMPLED, "samplingRate"),
        (
            "PUT",
            "/onlineEndpoints/mirror",
            {"properties": {"authMode": "Key", "mirrorTraffic": {"blue": 10}}},
            "mirrorTraffic",
        ),
    ],
)
def test_what_is_not_emulated_is_a_501_with_its_name(
    client: Client, method: str, path: str, body: Any, named: str
) -> None:
    if "/scripted/" in path:
        client.endpoint("scripted")
    status, answer = client.call(method, path, body)
    assert (status, answer["error"]["code"]) == (501, "NotImplemented")
    assert named in answer["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        WORKSPACE.replace("MachineLearningServices", "Other"),
        "/subscriptions/s",
        WORKSPACE.replace("/resourceGroups/local", ""),
        f"/history/v1.0{WORKSPACE}/models",
        "/runs/a/details",
        "/models//versions",
        f"{GROUP}/providers/Microsoft.MachineLearningServices/locations/l/usages",
    ],
)
def test_an_unknown_address_is_a_404(client: Client, path: str) -> None:
    status, answer = client.call("GET", path)
    assert status == 404 or "runs_details_Get" in answer["error"]["message"]


POLICIES = f"{GROUP}/providers/Microsoft.Storage/storageAccounts/a/managementPolicies"
RULE = {"name": "r", "type": "Lifecycle", "definition": {"actions": {}}}


@pytest.mark.parametrize(
    ("path", "properties"),
    [
        *(
            ("/jobs/c", {"jobType": "Command", "command": "true", "limits": {limit: given}})
            for limit in ("timeout", "trialTimeout")
            for given in ("soon", "P1M", 3)
        ),
        ("/computes/c", {"computeType": "AmlCompute"}),
        ("/computes/c", {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_Z"}}),
        (f"{POLICIES}/other?api-version=2023-01-01", {"policy": {"rules": [RULE]}}),
        *(
            (
                f"{POLICIES}/default?api-version=2023-01-01",
                {"policy": {"rules": [{key: value for key, value in RULE.items() if key != left}]}},
            )
            for left in RULE
        ),
    ],
)
def test_an_incomplete_setting_is_a_400(client: Client, path: str, properties: Any) -> None:
    assert client.call("PUT", path, {"properties": properties})[0] == 400
    assert client.call("GET", path)[0] == 404


def test_only_datastores_that_exist_have_secrets(client: Client) -> None:
    assert client.call("POST", "/datastores/workspaceblobstore/listSecrets", {})[0] == 200
    assert client.call("POST", "/datastores/other/listSecrets", {})[0] == 404


def test_an_endpoint_that_does_not_exist_has_no_list_of_jobs(client: Client) -> None:
    assert client.call("GET", "/batchEndpoints/absent/jobs")[0] == 404


@pytest.mark.parametrize(
    ("path", "version", "status", "code"),
    [
        ("", "api-version=", 400, "MissingApiVersionParameter"),
        ("", "api-version=2019-01-01", 404, "InvalidResourceType"),
        ("/models/m/versions", "api-version=2099-01-01", 404, "InvalidResourceType"),
        (f"{GROUP}/providers/Microsoft.Insights/autoscalesettings/a", VERSION, 404, ""),
        (
            f"{GROUP}/providers/Microsoft.Storage/storageAccounts/a/managementPolicies/default",
            VERSION,
            404,
            "InvalidResourceType",
        ),
    ],
)
def test_other_versions_of_the_api_are_refused(
    client: Client, path: str, version: str, status: int, code: str
) -> None:
    found, answer = client.call("GET", f"{path}?{version}")
    assert (found, answer["error"]["code"]) == (status, code or "ResourceNotFound")
    if "2099" in version:
        message = answer["error"]["message"]
        assert message.startswith("The resource type 'workspaces' could not be found in")
        assert "for api version '2099-01-01'. The supported api-versions are '20" in message


def test_settings_of_an_endpoints_logs_are_kept_as_azure_monitor_keeps_them(
    tmp_path: Path,
) -> None:
    kinds = ("Console", "Event", "Traffic")
    logs = [{"category": f"AmlOnlineEndpoint{kind}Log", "enabled": True} for kind in kinds]
    setting = {"properties": {"workspaceId": "/a/workspaces/b", "logs": logs}}
    where = "/providers/Microsoft.Insights/diagnosticSettings/digits?api-version="
    path = f"/onlineEndpoints/logged{where}2021-05-01-preview"
    with emulated(tmp_path / "emulator") as client:
        assert client.call("PUT", path, setting)[0] == 404  # there is no endpoint
        client.endpoint("logged")
        other = client.call("PUT", path.replace("2021-05-01-preview", "2022-10-01"), setting)
        assert (other[0], other[1]["error"]["code"]) == (404, "InvalidResourceType")
        wrong = {"properties": setting["properties"] | {"logs": [{"category": "AmlJobLog"}]}}
        assert client.call("PUT", path, wrong)[1]["error"]["message"].endswith("not supported.")
        assert client.call("PUT", path, {"properties": {"logs": logs}})[0] == 400
        status, made = client.call("PUT", path, setting)
        assert (status, made["type"]) == (200, "Microsoft.Insights/diagnosticSettings")
        assert client.call("PUT", path, setting)[0] == 200
        client.endpoint("digits")  # the setting's name is no endpoint's
    with emulated(tmp_path / "emulator") as client:
        assert client.call("GET", path)[1]["properties"]["logs"] == logs
        assert client.idle("/onlineEndpoints/logged") == "Succeeded"
        client.call("DELETE", "/onlineEndpoints/logged")
        client.idle("/onlineEndpoints/logged")
        assert client.call("GET", path)[0] == 200  # it does not go with its endpoint
        assert client.call("DELETE", path)[0] == 200
        assert client.call("DELETE", path)[0] == 204
        assert client.call("GET", path)[0] == 404


def test_contents_are_compared_as_azure_normalises_them(client: Client) -> None:
    path, given = "/environments/normal/versions/1", {"image": "image"}
    made = client.put(path, given | {"condaFile": "name: a\ndependencies: [b, c]\n"})
    assert json.loads(made["properties"]["condaFile"]) == {"name": "a", "dependencies": ["b", "c"]}
    for conda, status in (
        ("dependencies:\n- b\n- c\nname: a", 200),
        ('{"name": "a", "dependencies": ["b", "c"]}', 200),
        ("name: a\ndependencies: [c, b]", 409),
        ("name: [", 400),
        ("name: 2024-01-01", 409),
    ):
        body = {"properties": given | {"condaFile": conda}}
        assert client.call("PUT", path, body)[0] == status, conda
    path = "/models/normal/versions/1"
    client.put(path, {"modelUri": f"{STORE}Folder/A"})
    for uri, status in ((f"{STORE}folder/a/".upper(), 200), (f"{STORE}folder/b", 409)):
        assert client.call("PUT", path, {"properties": {"modelUri": uri}})[0] == status


def test_a_data_container_names_the_type_of_its_latest_version(client: Client) -> None:
    for version, kind in (("1", "uri_file"), ("2", "uri_folder")):
        data = {"dataType": kind, "dataUri": f"{STORE}typed/{version}"}
        client.put(f"/data/typed/versions/{version}", data)
    found = client.call("GET", "/data/typed")[1]["properties"]
    assert (found["latestVersion"], found["dataType"]) == ("2", "uri_folder")


def test_the_present_key_as_the_value_asks_for_a_new_one(client: Client) -> None:
    client.endpoint("renewed")
    path = "/onlineEndpoints/renewed"
    before = client.call("POST", f"{path}/listKeys", {})[1]
    # The SDK sends the present key as the value.
    asked = {"keyType": "Primary", "keyValue": before["primaryKey"]}
    assert client.call("POST", f"{path}/regenerateKeys", asked)[0] == 202
    client.idle(path)
    after = client.call("POST", f"{path}/listKeys", {})[1]
    assert after["primaryKey"] != before["primaryKey"]
    assert after["secondaryKey"] == before["secondaryKey"]


def test_an_archived_job_is_listed_if_asked_for(client: Client) -> None:
    assert client.job("kept", command="echo") == "Completed"
    body = client.call("GET", "/jobs/kept")[1]
    body["properties"]["isArchived"] = True
    assert client.call("PUT", "/jobs/kept", body)[0] == 200
    for view, there in (("ActiveOnly", False), ("ArchivedOnly", True), ("All", True)):
        listed = client.call("GET", f"/jobs?listViewType={view}")[1]["value"]
        assert ("kept" in {one["name"] for one in listed}) == there
    for name, other in (("command", "echo other"), ("environmentId", "f"), ("codeId", "c")):
        changed = {"properties": body["properties"] | {name: other}}
        assert client.call("PUT", "/jobs/kept", changed)[0] == 400, name


def test_an_operation_answers_as_azures_do(client: Client) -> None:
    body = b'{"location": "x", "properties": {"authMode": "key"}}'
    status, answer, headers = client.send("PUT", "/onlineEndpoints/headers", body)
    assert status == 201
    assert answer["kind"] == "Managed"
    assert answer["properties"]["provisioningState"] == "Creating"
    assert answer["properties"]["scoringUri"] is None
    operation = headers["Azure-AsyncOperation"]
    assert answer["properties"]["properties"]["AzureAsyncOperationUri"] == operation
    assert headers["Location"].endswith(f"/onlineEndpoints/headers?{VERSION}")
    assert headers["x-ms-async-operation-timeout"] == "PT30M"
    assert client.idle("/onlineEndpoints/headers") == "Succeeded"
    path = operation.removeprefix(client.emulator.state.url)
    assert client.call("GET", path)[1]["status"] == "Succeeded"
    found = client.call("GET", "/onlineEndpoints/headers")[1]["properties"]
    assert found["scoringUri"].endswith("/headers/score")


def test_keys_tokens_and_their_modes(client: Client, tmp_path: Path) -> None:
    code = client.code("modes", {"score.py": ECHO.format(answer=1)}, tmp_path)
    client.endpoint("modes")
    client.deployment("blue", code, "modes")
    client.endpoint("modes", traffic={"blue": 100})
    before = client.call("POST", "/onlineEndpoints/modes/listKeys", {})[1]
    asked = {"keyType": "Secondary", "keyValue": "mine"}
    assert client.call("POST", "/onlineEndpoints/modes/regenerateKeys", asked)[0] == 202
    client.idle("/onlineEndpoints/modes")
    after = client.call("POST", "/onlineEndpoints/modes/listKeys", {})[1]
    assert after == before | {"secondaryKey": "mine"}
    assert client.call("POST", "/onlineEndpoints/modes/token", {})[0] == 400
    assert client.score("modes") == (200, "1")
    client.endpoint("modes", traffic={"blue": 100}, authMode="AMLToken")
    assert client.call("POST", "/onlineEndpoints/modes/listKeys", {})[0] == 400
    token = client.call("POST", "/onlineEndpoints/modes/token", {})[1]["accessToken"]
    for key, status in ((token, 200), (before["primaryKey"], 401)):
        for method, path in (("POST", "score"), ("GET", "swagger.json")):
            port = client.emulator.router.port
            connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
            body = b"{}" if method == "POST" else None
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            connection.request(method, f"/modes/{path}", body, headers)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            assert answer.status == status


def test_patch_changes_what_it_names_alone(client: Client, tmp_path: Path) -> None:
    code = client.code("patch", {"score.py": ECHO.format(answer=1)}, tmp_path)
    client.endpoint("patched")
    client.deployment("blue", code, "patched")
    path = "/onlineEndpoints/patched"
    assert client.call("PATCH", path, {"tags": {"a": "1"}})[0] == 200
    assert client.idle(path) == "Succeeded"
    assert client.call("GET", path)[1]["tags"] == {"a": "1"}
    path += "/deployments/blue"
    assert client.call("PATCH", path, {"sku": {"name": "Default", "capacity": 2}})[0] == 200
    assert client.idle(path) == "Succeeded"
    found = client.call("GET", path)[1]
    assert found["sku"]["capacity"] == 2
    assert found["properties"]["codeConfiguration"]["codeId"] == code
    assert client.call("PATCH", path, {"properties": {"environmentVariables": {}}})[0] == 400
    assert client.call("PATCH", "/onlineEndpoints/absent", {"tags": {}})[0] == 404


def test_lists_and_containers(client: Client) -> None:
    names = [one["name"] for one in client.call("GET", "/datastores")[1]["value"]]
    assert names == ["workspaceblobstore", "workspaceartifactstore"]
    (default,) = client.call("GET", "/datastores?isDefault=true")[1]["value"]
    assert default["name"] == "workspaceblobstore"
    for version in ("1", "2"):
        properties = {"codeUri": f"{STORE}x", "properties": {"hash_sha256": f"h{version}"}}
        client.put(f"/codes/hashed/versions/{version}", properties)
    (one,) = client.call("GET", "/codes/hashed/versions?hash=h2")[1]["value"]
    assert one["name"] == "2"
    container = client.call("GET", "/codes/hashed")[1]["properties"]
    assert (container["latestVersion"], container["nextVersion"]) == ("2", "3")


def test_what_has_no_effect_is_printed_once(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        client.endpoint("printed", publicNetworkAccess="Enabled")
    line = "accepted, but not emulated: publicNetworkAccess."
    assert capsys.readouterr().err.count(line) == 1


def test_no_proxy_stands_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", os.environ.get("REQUESTS_CA_BUNDLE", ""))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://{LOOPBACK}:9")  # where nothing listens
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("NO_PROXY", "")
    with emulated(tmp_path) as own:
        own.code("proxied", {"a.py": "1"}, tmp_path)
        assert connect(own.emulator.folder, "w").workspaces.get("w").name == "w"
    assert os.environ["no_proxy"] == f"example.org,{LOOPBACK}"
