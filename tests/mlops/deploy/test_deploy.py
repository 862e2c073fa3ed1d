"""Scenarios: the real SDK against the emulator."""

import io
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jwt
import pytest
from azure.core.exceptions import ResourceNotFoundError
from conftest import ROOT
from emulated import wait_until
from light import Deployable, Emulator, remaining
from wire import Wire, tapped

from core.errors import DigitsError
from mlops.azure import assets, endpoint
from mlops.azure.manager import LOG_ANALYTICS
from mlops.azure.settings import IN_FLIGHT
from mlops.deploy import lease, smoke
from mlops.deploy.rollout import Deployer

FORBIDDEN = {"status": 403, "code": "AuthorizationFailed"}
RATE = 60  # requests a second of the client; 50 at least must have been answered

pytestmark = pytest.mark.slow


@contextmanager
def client(deployable: Deployable, emulator: Emulator) -> Iterator[list[list]]:
    """Ask the endpoint all the time from another process; each answer appears in the list.

    It keeps as many requests in flight as the deployment lets through.
    """
    place = deployable.serving(emulator)
    (live,) = place["traffic"]
    found = emulator.call("GET", f"{deployable.endpoint}/{place['name']}/deployments/{live}")
    settings = found["properties"]["requestSettings"]
    limit = IN_FLIGHT * settings["maxConcurrentRequestsPerInstance"] * found["sku"]["capacity"]
    program = ROOT / "tests" / "support" / "client.py"
    command = [sys.executable, str(program), place["url"], place["key"], str(RATE), str(limit)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdin and process.stdout
    answers: list[list] = []

    def read(lines: Iterable[str]) -> None:
        for line in lines:
            answers.append(json.loads(line))

    reader = threading.Thread(target=read, args=[process.stdout])
    reader.start()
    try:
        yield answers
        process.stdin.close()
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def wait_for_answers(answers: list[list], since: float) -> None:
    """Wait until some requests that were asked later than `since` have their answers."""
    wait_until(lambda: sum(asked > since for asked, *_ in list(answers)) >= RATE)


def check(answers: list[list], old: str, new: str, begun: float, ended: float) -> None:
    """Fail on a request without an answer in the end, a wrong answer, or one of a wrong model."""
    assert {(status, digit) for _, status, _, digit, _ in answers} == {(200, "3")}
    print(f"{sum(busy for *_, busy in answers)} answers 429 for {len(answers)} requests")
    before = {version for asked, _, version, *_ in answers if asked < begun}
    during = {version for asked, _, version, *_ in answers if begun <= asked <= ended}
    after = {version for asked, _, version, *_ in answers if asked > ended}
    assert before == {old[:12]}
    assert during <= {old[:12], new[:12]}
    assert after == {new[:12]}
    assert len(answers) >= 200  # so that each step of the traffic was asked


def test_a_first_deployment(deployable: Deployable, emulator: Emulator) -> None:
    version = deployable.commit("one")
    plan = deployable.deploy("plan")
    assert "to be created" in plan
    assert "quota        4 cores of" in plan
    assert "size         Azure's minimum" in plan
    assert "unknown; set azure.price_an_hour" in plan
    assert emulator.call("GET", deployable.endpoint)["value"] == []
    deployable.deploy("apply")
    assert deployable.version(emulator) == version[:12]
    assert "100 %  succeeded     model 1  live" in deployable.deploy("status")
    assert "nothing to change" in deployable.deploy("plan")
    assert "nothing to change" in deployable.deploy("apply")
    path = f"{deployable.endpoint}/{deployable.serving(emulator)['name']}"
    (identity,) = emulator.call("GET", path)["identity"]["userAssignedIdentities"]
    assert identity.endswith(
        "/resourceGroups/local/providers/Microsoft.ManagedIdentity/"
        "userAssignedIdentities/digits-endpoint"
    )
    (name,) = deployable.serving(emulator)["traffic"]
    deployment = emulator.call("GET", f"{path}/deployments/{name}")
    assert deployment["properties"]["appInsightsEnabled"] is True
    env = deployment["properties"]["environmentVariables"]
    assert env["APP_INSIGHTS_LOG_RESPONSE_ENABLED"] == "false"  # answers are nobody's log
    for tags in (deployment["tags"], emulator.call("GET", path)["tags"]):
        assert endpoint.COST.items() <= tags.items()
    setting = emulator.call("GET", logging(deployable, emulator))["properties"]
    group = deployable.endpoint.split("/providers/")[0]
    assert setting["workspaceId"] == f"{group}/providers/{LOG_ANALYTICS}"
    assert {(log["category"], log["enabled"]) for log in setting["logs"]} == {
        (f"AmlOnlineEndpoint{kind}Log", True) for kind in ("Console", "Event", "Traffic")
    }
    (model,) = emulator.call(
        "GET", deployable.endpoint.replace("onlineEndpoints", "models/digits/versions")
    )["value"]
    tags = model["properties"]["tags"]
    assert tags["commit"] == deployable.git("rev-parse", "HEAD").strip()
    assert tags["pull_request"] == "12"
    assert tags["data.training.npz"] == "0" * 32
    deployable.commit("two")
    emulator.faults({"do": "fail", "path": "/usages$", "status": 403})
    assert "quota        unknown: " in deployable.deploy("plan")
    emulator.faults()


def logging(deployable: Deployable, emulator: Emulator) -> str:
    """Return the path of the setting that says where an endpoint's logs go."""
    name = deployable.serving(emulator)["name"]
    return f"{deployable.endpoint}/{name}/providers/Microsoft.Insights/diagnosticSettings/digits"


@pytest.mark.prove
@pytest.mark.parametrize("status", [403, 404])
def test_an_endpoint_without_log_analytics_is_deployed_and_says_so(
    deployable: Deployable, emulator: Emulator, status: int
) -> None:
    """As where somebody has no role for it, or brought a workspace without the template."""
    refused = {"do": "fail", "path": "diagnosticSettings", "code": "AuthorizationFailed"}
    emulator.faults(refused | {"status": status})
    deployable.commit("one")
    said = deployable.deploy("apply")
    cause = "not found" if status == 404 else "Azure Monitor is missing: Monitoring Contributor is"
    assert re.search(f"logs do not go to Log Analytics: .*{cause}", said), said
    said = deployable.deploy("destroy")
    emulator.faults()
    left = "diagnosticSettings/digits of the endpoint (the role for settings of Azure Monitor"
    assert (left in said) == (status == 403)
    assert emulator.call("GET", deployable.endpoint)["value"] == []


@pytest.mark.slow(minutes=0.4)
def test_the_second_and_its_rollback_under_load(deployable: Deployable, emulator: Emulator) -> None:
    deployable.set(step_seconds="1.0", price_an_hour="0.5")
    one = deployable.commit("one")
    deployable.deploy("apply")
    two = deployable.commit("two")
    assert "24.00, including the old revision kept" in deployable.deploy("plan")
    for command, old, new in (("apply", one, two), ("rollback", two, one)):
        with client(deployable, emulator) as answers:
            wait_for_answers(answers, 0)  # of the old alone
            begun = time.time()
            deployable.deploy(command)
            ended = time.time()
            wait_for_answers(answers, ended)  # of the new alone
        check(answers, old, new, begun, ended)
        shares = deployable.serving(emulator)["traffic"]
        assert list(shares.values()) == [100]


@pytest.mark.prove
def test_new_code_alone_is_a_new_revision(deployable: Deployable, emulator: Emulator) -> None:
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")
    score = deployable.root / "serving" / "score.py"
    score.write_text(score.read_text().replace('["version"][:12]', '["version"][:9]'))
    deployable.commit("one")
    deployable.deploy("apply")
    assert deployable.version(emulator) == version[:9]
    deployable.deploy("rollback")
    assert deployable.version(emulator) == version
    deployable.deploy("pause")
    deployable.deploy("resume")
    assert deployable.version(emulator) == version


def test_a_bad_model_gets_no_traffic(deployable: Deployable, emulator: Emulator) -> None:
    good = deployable.commit("good")
    deployable.deploy("apply")
    before = deployable.serving(emulator)
    deployable.commit("bad", right=False)
    output = deployable.deploy("apply", code=1)
    assert "0 of 10 answers correct" in output
    assert "was removed" in output
    deployable.commit("dead")
    output = deployable.deploy("apply", code=1)
    assert "never became healthy" in output
    assert "; RuntimeError: this model cannot be loaded; its logs are in .deploy" in output
    assert "light good" in deployable.deploy("logs")
    assert "r0 is not deployed. Deployed: r" in deployable.deploy("logs", "r0", code=1)
    logs = [path.read_text("utf-8") for path in (deployable.root / ".deploy").glob("*.log")]
    assert any("this model cannot be loaded" in log for log in logs)
    assert deployable.serving(emulator) == before
    assert deployable.version(emulator) == good[:12]


@pytest.mark.prove
def test_pause_resume_destroy(deployable: Deployable, emulator: Emulator) -> None:
    version = deployable.commit("one")
    deployable.deploy("apply")
    place = deployable.serving(emulator)
    deployable.deploy("pause")
    assert emulator.call("GET", f"{deployable.endpoint}/{place['name']}/deployments")["value"] == []
    assert "paused" in deployable.deploy("status")
    deployable.commit("two")
    assert "traffic      100 %" in deployable.deploy("plan")
    deployable.deploy("resume")
    assert deployable.version(emulator) == version[:12]
    assert deployable.serving(emulator) == place
    deployable.deploy("destroy")
    assert emulator.call("GET", deployable.endpoint)["value"] == []
    assert not list((emulator.folder / "deployments").glob(f"*{deployable.workspace}*"))
    servers = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert deployable.workspace not in servers
    assert "absent" in deployable.deploy("status")


@pytest.mark.prove
def test_in_place(deployable: Deployable, emulator: Emulator) -> None:
    # It takes 18 of the region's 24 cores: nothing fits beside what is live.
    deployable.set(strategy="in_place", instance_count="7")
    one = deployable.commit("one")
    deployable.deploy("apply")
    two = deployable.commit("two")
    assert "no service while it is replaced" in deployable.deploy("plan")
    assert "No service until" in deployable.deploy("apply")
    assert deployable.version(emulator) == two[:12]
    assert len(emulator.call("GET", place(deployable, emulator))["value"]) == 1
    deployable.commit("dead")
    assert "was deployed again" in deployable.deploy("apply", code=1)
    assert deployable.version(emulator) == two[:12]
    deployable.deploy("rollback", revision(deployable, "model 1"))
    assert deployable.version(emulator) == one[:12]


def place(deployable: Deployable, emulator: Emulator) -> str:
    return f"{deployable.endpoint}/{deployable.serving(emulator)['name']}/deployments"


def revision(deployable: Deployable, model: str) -> str:
    """Return the name of the revision that `status` lists with a model."""
    (line,) = (line for line in deployable.deploy("status").splitlines() if model in line)
    return line.split()[0]


@pytest.mark.prove
def test_autoscale_goes_with_its_deployment(deployable: Deployable, emulator: Emulator) -> None:
    deployable.set(autoscale="{most: 3, cpu_percent: [30, 70], minutes: 5}")
    deployable.commit("one")
    plan = deployable.deploy("plan")
    assert "1 to 3 x Standard_DS2_v2" in plan
    assert "quota        4 cores of standardDSv2Family needed, 8 under load" in plan
    deployable.deploy("apply")
    (name,) = deployable.serving(emulator)["traffic"]
    setting = emulator.call("GET", scaling(deployable, emulator, name))["properties"]
    assert setting["targetResourceUri"].endswith(f"/deployments/{name}")
    (profile,) = setting["profiles"]
    assert profile["capacity"] == {"minimum": "1", "default": "1", "maximum": "3"}
    deployable.deploy("pause")
    assert "error" in emulator.call("GET", scaling(deployable, emulator, name))
    deployable.deploy("resume")
    assert emulator.call("GET", scaling(deployable, emulator, name))["properties"] == setting
    deployable.set(autoscale="null")
    deployable.deploy("apply")
    (fixed,) = deployable.serving(emulator)["traffic"]
    assert "error" in emulator.call("GET", scaling(deployable, emulator, fixed))
    emulator.faults({"do": "fail", "path": "autoscalesettings"} | FORBIDDEN)
    deployable.set(autoscale="{most: 4, cpu_percent: [30, 70], minutes: 5}")
    refused = deployable.deploy("apply", code=1)
    assert "settings of Azure Monitor is missing: Monitoring Contributor is needed" in refused
    assert "may leave an autoscale setting in Azure Monitor: " in refused
    emulator.faults()
    assert list(deployable.serving(emulator)["traffic"]) == [fixed]


def scaling(deployable: Deployable, emulator: Emulator, name: str) -> str:
    group = deployable.endpoint.split("/providers/")[0]
    setting = f"{deployable.serving(emulator)['name']}-{name}"
    return f"{group}/providers/Microsoft.Insights/autoscalesettings/{setting}"


def test_the_rule_of_the_storage_account_must_be_that_of_params(
    deployable: Deployable, emulator: Emulator
) -> None:
    """The template makes the rule, so the deployer compares it and changes nothing."""
    deployable.set(collection_days="7")
    deployable.commit("one")
    assert "model_inputs_outputs, kept until destroy" in deployable.deploy("plan")  # no template
    deployable.deploy("apply")
    group = deployable.endpoint.split("/providers/")[0]
    account = f"{group}/providers/Microsoft.Storage/storageAccounts/devstoreaccount1"
    path = f"{account}/managementPolicies/default"

    def rule(days: int, prefix: str, **more: Any) -> dict[str, Any]:
        delete = {"daysAfterModificationGreaterThan": days}
        filters = {"blobTypes": ["blockBlob", "appendBlob"], "prefixMatch": [prefix]}
        definition = {"actions": {"baseBlob": {"delete": delete}}, "filters": filters}
        return {"name": prefix, "type": "Lifecycle", "definition": definition} | more

    def put(*rules: dict[str, Any]) -> None:
        emulator.call("PUT", path, {"properties": {"policy": {"rules": list(rules)}}})

    other = rule(3, "azureml/other/")
    for known in ([rule(8, "azureml/modelDataCollector/", enabled=True), other], [other]):
        put(*known)
        before = emulator.call("GET", path)
        deployable.set(collection_days="7" if known[1:] else "3")
        for command in ("plan", "apply"):
            if known[1:]:
                refused = deployable.deploy(command, code=1)
                assert "apply will refuse" in refused or command == "apply"
                assert "azure.collection_days is 7" in refused and "after 8 days" in refused
                assert "digits azure connect" in refused
            else:  # on the emulator no rule is none that differs
                deployable.deploy(command)
        assert emulator.call("GET", path) == before
    put(rule(7, "azureml/modelDataCollector/", enabled=True), other)
    deployable.set(collection_days="7")
    assert "model_inputs_outputs, kept 7 days" in deployable.deploy("plan")
    assert "nothing to change" in deployable.deploy("apply")
    put(rule(7, "azureml/modelDataCollector/", enabled=False))
    deployable.set(collection_days="null")
    assert "kept until destroy" in deployable.deploy("plan")
    emulator.faults({"do": "fail", "path": "managementpolicies"} | FORBIDDEN)
    refused = deployable.deploy("plan", code=1)
    assert "the role to compare azure.collection_days is missing: Reader is" in refused
    emulator.faults()
    deployable.deploy("destroy")
    emulator.call("DELETE", path)


@pytest.mark.prove
def test_who_may_call_it_changes_in_the_open(deployable: Deployable, emulator: Emulator) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    path = f"{deployable.endpoint}/{deployable.serving(emulator)['name']}"
    deployable.set(public_access="false")
    assert "enabled -> public access disabled" in deployable.deploy("plan")
    assert "access is now disabled" in deployable.deploy("apply")
    properties = emulator.call("GET", path)["properties"]
    assert properties["publicNetworkAccess"].lower() == "disabled"
    assert list(properties["traffic"].values()) == [100]
    deployable.set(auth_mode="aml_token")
    assert "key -> aml_token: apply will refuse" in deployable.deploy("plan", code=1)
    assert "was created with key, which its clients rely on" in deployable.deploy("apply", code=1)
    deployable.set(auth_mode="key", identity="null")
    assert "identity     digits-endpoint -> None" in deployable.deploy("plan", code=1)
    assert "azure.identity is None" in deployable.deploy("apply", code=1)
    deployable.set(auth_mode="aml_token")
    deployable.deploy("destroy")
    deployable.deploy("apply")
    assert emulator.call("GET", path)["properties"]["authMode"] == "AMLToken"


@pytest.mark.parametrize(
    "auth_mode", ["aml_token", pytest.param("aad_token", marks=pytest.mark.prove)]
)
def test_a_token_that_expires_during_a_deployment_is_renewed(
    deployable: Deployable, emulator: Emulator, auth_mode: str
) -> None:
    deployable.set(auth_mode=auth_mode)
    deployable.commit("one")
    authorise = endpoint.Target.authorise
    expired: list[str] = []

    def late(target: endpoint.Target) -> dict[str, str]:
        headers = authorise(target)
        if not expired:
            token = headers["Authorization"].removeprefix("Bearer ")
            claims = jwt.decode(token, options={"verify_signature": False}) | {"exp": 1}
            key = (emulator.folder / "signing.key").read_text()
            expired.append(jwt.encode(claims, key))
            headers["Authorization"] = f"Bearer {expired[0]}"
        return headers

    with patch.object(endpoint.Target, "authorise", late):
        deployable.deploy("apply")
    assert expired
    assert list(deployable.serving(emulator)["traffic"].values()) == [100]


def test_apply_ends_a_pause_that_failed(deployable: Deployable, emulator: Emulator) -> None:
    deployable.set(auth_mode="aad_token")
    deployable.commit("one")
    deployable.deploy("apply")
    emulator.faults({"method": "DELETE", "path": "/deployments/", "do": "fail", "times": 1})
    deployable.deploy("pause", code=1)
    assert deployable.serving(emulator)["traffic"] == {}
    emulator.faults()
    assert "nothing to change" not in deployable.deploy("plan")
    assert "is live with all traffic" in deployable.deploy("apply")
    assert list(deployable.serving(emulator)["traffic"].values()) == [100]
    assert "paused" not in deployable.deploy("status")


class FirstFile(Wire):
    """A wire that refuses the first file of the model alone."""

    def broken(self, kind: str, line: str) -> bool:
        """Return whether a call is its upload."""
        return line.startswith("PUT") and line.endswith("/answers.json")


def test_a_model_that_came_without_its_first_file(deployable: Deployable) -> None:
    deployable.commit("one")
    with tapped(FirstFile()):
        code, output = deployable.attempt("apply")
    assert code == 1
    assert "AuthorizationFailure" in output
    assert "is live with all traffic" in deployable.deploy("apply")


@pytest.mark.slow(minutes=0.3)
def test_destroy_leaves_nothing(deployable: Deployable, emulator: Emulator) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    deployable.commit("two")
    deployable.deploy("apply")
    deployable.commit("three")
    emulator.faults({"do": "unhealthy"})  # it is registered, and never live
    deployable.deploy("apply", code=1)
    emulator.faults()
    name = deployable.serving(emulator)["name"]
    workspace = deployable.endpoint.removesuffix("/onlineEndpoints")

    def versions(kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = emulator.call("GET", f"{workspace}/{kind}/digits/versions")[
            "value"
        ]
        return found

    models = versions("models")
    *uploads, shared = (model["properties"]["modelUri"].split("/paths/")[1] for model in models)
    assert len(models) == 3
    theirs = {"modelUri": models[-1]["properties"]["modelUri"], "tags": {"endpoint": "another"}}
    emulator.call("PUT", f"{workspace}/models/digits/versions/9", {"properties": theirs})
    with emulator.blobs() as container:
        container.upload_blob(f"modelDataCollector/{name}/r/rows.jsonl", b"{}")
        container.upload_blob(f"labels/{name}/rows.jsonl", b"{}")
        said = deployable.deploy("destroy")
        assert "environments/digits/versions/" in said and "(archived)" in said
        (code,) = re.findall(r"codes/(\S+) \(of a job, or of a revision never live\)", said)
        for prefix in (*uploads, f"modelDataCollector/{name}/", f"labels/{name}/"):
            assert not list(container.list_blob_names(name_starts_with=prefix)), prefix
        assert list(container.list_blob_names(name_starts_with=shared))
        assert not list(container.list_blob_names(name_starts_with=f"digits-leases/{name}"))
    left = remaining(deployable, emulator)
    assert {path.split("/")[-4] for path in left} == {"codes", "models"}  # never live; another's
    assert {path.split("/")[-3] for path in left if "/codes/" in path} == {code.lower()}
    assert [model["name"] for model in versions("models")] == ["9"]
    emulator.call("DELETE", f"{workspace}/models/digits/versions/9")


@pytest.mark.prove
@pytest.mark.parametrize("status", [400, 403, 412])
def test_what_azure_does_not_delete_is_archived_and_listed(
    deployable: Deployable, emulator: Emulator, status: int
) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    emulator.faults({"do": "fail", "method": "DELETE", "path": "/models/", "status": status})
    said = deployable.deploy("destroy")
    emulator.faults()
    assert re.search(r"models/digits/versions/\d+ \(archived\)", said), said
    assert emulator.call("GET", deployable.endpoint)["value"] == []


@pytest.mark.prove
def test_a_live_deployment_that_failed_is_made_anew(
    deployable: Deployable, emulator: Emulator
) -> None:
    version = deployable.commit("one")
    deployable.deploy("apply")
    (live,) = deployable.serving(emulator)["traffic"]
    asked = smoke.check
    deployed: list[str] = []

    def deployments(target: endpoint.Target) -> dict[str, str]:
        return found(target) | ({} if deployed else {live: "failed"})

    def check(*given: Any) -> list[Any]:
        if not deployed:
            raise DigitsError("no answer")
        return asked(*given)

    def create(target: endpoint.Target, *given: Any) -> None:
        made(target, *given)
        deployed.append(given[0])

    found, made = endpoint.Target.deployments, endpoint.Target._create
    with (
        patch.object(endpoint.Target, "deployments", deployments),
        patch.object(smoke, "check", check),
        patch.object(endpoint.Target, "_create", create),
    ):
        said = deployable.deploy("apply")
    assert f"Redeploying {live}: its state is failed (no answer)" in said
    assert deployed == [live]
    assert deployable.version(emulator) == version[:12]


@pytest.mark.prove
def test_while_what_is_live_is_made_anew_the_previous_revision_serves(
    deployable: Deployable, emulator: Emulator
) -> None:
    one = deployable.commit("one")
    deployable.deploy("apply")
    deployable.commit("two")
    deployable.deploy("apply")
    (live,) = deployable.serving(emulator)["traffic"]
    found, asked = endpoint.Target.deployments, smoke.check

    def deployments(target: endpoint.Target) -> dict[str, str]:
        known = found(target)
        return known | ({live: "failed"} if live in known else {})

    def check(target: endpoint.Target, name: str, *given: Any) -> list[Any]:
        if name == live:
            raise DigitsError("no answer")
        return asked(target, name, *given)

    with (
        patch.object(endpoint.Target, "deployments", deployments),
        patch.object(smoke, "check", check),
    ):
        said = deployable.deploy("apply", code=1)
    assert "serves meanwhile" in said and "traffic was returned to" in said
    assert deployable.version(emulator) == one[:12]


@pytest.mark.prove
def test_what_the_endpoint_answers_is_what_the_deployment_answered(
    deployable: Deployable, emulator: Emulator
) -> None:
    one = deployable.commit("one")
    deployable.deploy("apply")
    deployable.commit("two")
    asked = endpoint.Target.ask

    def ask(target: endpoint.Target, *given: Any) -> endpoint.Answer:
        answer = asked(target, *given)
        if len(given) == 1:  # by traffic, not by name
            answer.body["predictions"][0]["digit"] = "none"
        return answer

    with patch.object(endpoint.Target, "ask", ask):
        said = deployable.deploy("apply", code=1)
    assert "answered 'none' to a request that it answered" in said
    assert deployable.version(emulator) == one[:12]


def test_an_endpoint_that_is_busy_is_asked_again(
    deployable: Deployable, emulator: Emulator
) -> None:
    deployable.set(requests_at_a_time="2")
    version = deployable.commit("one")
    asked: list[str] = []
    opened = urllib.request.OpenerDirector.open

    def busy(opener: Any, request: Any, *rest: Any, **options: Any) -> Any:
        asked.append(request.full_url)
        if len(asked) in (1, 3, 4):
            raise urllib.error.HTTPError(request.full_url, 429, "busy", {}, io.BytesIO())  # type: ignore[arg-type]
        return opened(opener, request, *rest, **options)

    with (
        patch.object(urllib.request.OpenerDirector, "open", busy),
        patch.object(endpoint, "BUSY_SECONDS", (0.01, 0.01)),
    ):
        deployable.deploy("apply")
    assert deployable.version(emulator) == version[:12]
    servers = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    mine = [line for line in servers.splitlines() if deployable.workspace in line]
    assert mine and all("--worker_count 2" in line for line in mine)


@pytest.mark.prove
def test_a_revision_that_fell_and_fails_again_gets_no_traffic(
    deployable: Deployable, emulator: Emulator
) -> None:
    version = deployable.commit("one")
    deployable.deploy("apply")
    name = fallen(deployable, emulator)
    deployable.set(smoke="{digits: 10, accuracy: 0.9, latency_seconds: 1.0e-9}")
    said = deployable.deploy("apply", "--wait", code=1)
    assert "the slowest answer took" in said and f"{name} was removed" in said
    assert deployable.serving(emulator)["traffic"] == {}
    deployable.set(smoke="{digits: 10, accuracy: 0.9, latency_seconds: 5.0}")
    deployable.deploy("apply")
    assert deployable.version(emulator) == version[:12]


def fallen(deployable: Deployable, emulator: Emulator) -> str:
    """Take down what is live, as an in_place apply that was killed has; return its name."""
    serving = deployable.serving(emulator)
    path = f"{deployable.endpoint}/{serving['name']}"
    found = emulator.call("GET", path)
    found["properties"]["traffic"] = {}
    emulator.call("PUT", path, found)
    (name,) = serving["traffic"]
    emulator.call("DELETE", f"{path}/deployments/{name}")
    return str(name)


@pytest.mark.prove
@pytest.mark.parametrize("states", [["failed"] * 99, ["scaling"] * 3])
def test_what_is_live_keeps_its_traffic_in_whatever_state(
    deployable: Deployable, emulator: Emulator, states: list[str]
) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    (live,) = deployable.serving(emulator)["traffic"]
    found = endpoint.Target.deployments

    def deployments(target: endpoint.Target) -> dict[str, str]:
        known = found(target)
        return known | ({live: states.pop()} if live in known and states else {})

    version = deployable.commit("two")
    emulator.faults()
    with patch.object(endpoint.Target, "deployments", deployments):
        deployable.deploy("apply")
    path = f"{deployable.endpoint}/{deployable.serving(emulator)['name']}"
    puts = [call for call in emulator.calls() if call["method"] == "PUT" and call["path"] == path]
    shares = [call["request"]["properties"]["traffic"] for call in puts]
    assert len(shares) >= 3 and all(sum(some.values()) == 100 for some in shares)
    assert deployable.version(emulator) == version[:12]


@pytest.mark.prove
def test_in_place_goes_back_to_what_a_killed_run_took_down(
    deployable: Deployable, emulator: Emulator
) -> None:
    version = deployable.commit("one")
    deployable.deploy("apply")
    name = fallen(deployable, emulator)
    deployable.commit("bad", right=False)
    deployable.set(strategy="in_place")
    said = deployable.deploy("apply", "--wait", code=1)
    assert f"{name} was deployed again" in said
    assert deployable.version(emulator) == version[:12]


@pytest.mark.prove
def test_a_restoration_that_fails_is_made_good_by_the_next_apply(
    deployable: Deployable, emulator: Emulator
) -> None:
    version = deployable.commit("one")
    deployable.deploy("apply")
    name = fallen(deployable, emulator)
    good = deployable.git("rev-parse", "HEAD").strip()
    deployable.commit("bad", right=False)
    emulator.faults({"do": "unhealthy", "path": f"/deployments/{name}"})
    said = deployable.deploy("apply", "--wait", code=1)
    emulator.faults()
    assert f"FAILED: {name} was deployed again" in said
    assert deployable.serving(emulator)["traffic"] == {}
    deployable.git("checkout", "--quiet", good)
    deployable.commit("one")
    deployable.deploy("apply")
    assert deployable.version(emulator) == version[:12]


@pytest.mark.prove
def test_rollback_to_what_is_not_deployed_needs_no_room_for_three(
    deployable: Deployable, emulator: Emulator
) -> None:
    deployable.set(instance_count="4")
    versions = []
    for model in ("one", "two", "three"):
        versions.append(deployable.commit(model))
        deployable.deploy("apply")
    deployable.deploy("rollback", revision(deployable, "model 1"))
    assert deployable.version(emulator) == versions[0][:12]
    deployable.deploy("pause")
    deployable.deploy("resume")
    emulator.faults({"do": "unhealthy"})
    assert "; its logs are in .deploy/r" in deployable.deploy("rollback", code=1)
    emulator.faults()
    deployable.deploy("rollback")  # a pause forgets nothing
    assert deployable.version(emulator) == versions[2][:12]


@pytest.mark.prove
def test_a_rollback_that_waited_goes_to_no_revision_that_was_not_meant(
    deployable: Deployable, emulator: Emulator
) -> None:
    for model in ("one", "two"):
        deployable.commit(model)
        deployable.deploy("apply")
    before = deployable.serving(emulator)
    held = lease.held

    @contextmanager
    def waits(*given: Any) -> Iterator[Any]:
        path = f"{deployable.endpoint}/{before['name']}"
        found = emulator.call("GET", path)
        found["tags"] |= {"live": "another", "previous": found["tags"]["live"]}
        emulator.call("PUT", path, found)
        with held(*given) as still:
            yield still

    with patch.object(lease, "held", waits):
        said = deployable.deploy("rollback", code=1)
    assert "another replaced" in said
    assert deployable.serving(emulator)["traffic"] == before["traffic"]


def test_destroy_asks_for_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    deployer = Deployer(SimpleNamespace(name="digits-1"), None, False)  # type: ignore[arg-type]
    for typed in ("", "y", "digits-2"):
        with (
            patch("builtins.input", return_value=typed),
            pytest.raises(DigitsError, match="Nothing was deleted"),
        ):
            deployer.destroy(yes=False)
    assert "collected data, labels" in capsys.readouterr().out


def test_what_others_use_is_known_though_it_is_in_no_tag() -> None:
    place = "/subscriptions/s/x/models/digits/versions/{}"
    plain = SimpleNamespace(model=place.format(1), environment=None, code_configuration=None)
    other = SimpleNamespace(model=place.format(2))
    names: dict[str, list[Any]] = {"digits-1": [], "digits-2": [other]}
    models = [
        SimpleNamespace(name="digits", version=str(3 + number), tags=tags)
        for number, tags in enumerate(
            ({"endpoint": "digits-1"}, {"endpoint": "digits-2"}, {"endpoint": "digits-3"}, None)
        )
    ]

    def nothing(name: str = "") -> list[Any]:
        if name:
            raise ResourceNotFoundError("no container")
        return []

    client: Any = SimpleNamespace(
        models=SimpleNamespace(list=lambda name: models),
        environments=SimpleNamespace(list=nothing),
        data=SimpleNamespace(list=nothing),
        online_endpoints=SimpleNamespace(
            list=lambda: [SimpleNamespace(name=name, tags={}) for name in names]
        ),
        online_deployments=SimpleNamespace(list=lambda name: names[name]),
        batch_endpoints=SimpleNamespace(list=lambda: [SimpleNamespace(name="batch")]),
        batch_deployments=SimpleNamespace(list=lambda _: [plain]),
    )
    found = assets.used(client, "digits-1")
    assert {one for one in found if one != "None"} == {
        "models/digits/versions/1",
        "models/digits/versions/2",
        "models/digits/versions/4",
    }
    assert assets.registered(client, "digits-1") == {"models/digits/versions/3"}


@pytest.mark.prove
def test_a_model_of_a_commit_that_git_does_not_know_is_registered_again(
    deployable: Deployable, emulator: Emulator
) -> None:
    deployable.commit("one")
    deployable.deploy("apply")
    models = deployable.endpoint.replace("onlineEndpoints", "models/digits/versions")
    (model,) = emulator.call("GET", models)["value"]
    model["properties"]["tags"]["commit"] = "f" * 40
    emulator.call("PUT", f"{models}/1", model)
    deployable.set(instance_count="2")
    deployable.deploy("apply")
    known = emulator.call("GET", models)["value"]
    assert {one["name"] for one in known} == {"1", "2"}


def test_what_is_refused(deployable: Deployable) -> None:
    deployable.commit("one")
    answers = deployable.root / "data" / "package" / "answers.json"
    before = answers.read_text()
    answers.write_text(before + " ")
    assert "differs from dvc.lock" in deployable.deploy("apply", code=1)
    answers.write_text(before)
    cache = answers.parent / "__pycache__"  # as of somebody who loaded the model where it stands
    cache.mkdir()
    (cache / "one.pyc").touch()
    assert "to be created" in deployable.deploy("plan")
    assert not cache.exists()
    (deployable.root / "new.txt").write_text("new")
    assert "uncommitted changes (new.txt)" in deployable.deploy("apply", code=1)
    (deployable.root / "new.txt").unlink()
    deployable.commit("low", accuracy=0.9)
    assert "gate         failed: mnist accuracy 0.9 is below" in deployable.deploy("plan")
    assert "mnist accuracy 0.9 is below its limit 0.99" in deployable.deploy("apply", code=1)
    deployable.commit("high", accuracy=0.998)
    deployable.commit("one", accuracy=0.994)
    assert "mnist accuracy is worse by 0.004" in deployable.deploy("apply", code=1)
    deployable.commit("one", accuracy=0.995)
    assert "no endpoint" in deployable.deploy("rollback", code=1)
    deployable.deploy("apply")
    for model in ("worse", "as bad as its parent, not as what is live"):
        deployable.commit(model, accuracy=0.991)
        assert "gate         failed: mnist accuracy is worse by 0.004" in deployable.deploy("plan")
        assert "mnist accuracy is worse by 0.004" in deployable.deploy("apply", code=1)
    assert "no previous revision" in deployable.deploy("rollback", code=1)
    assert "no such revision" in deployable.deploy("rollback", "r0", code=1)
    assert "not paused" in deployable.deploy("resume", code=1)
