"""The ARM template, checked as far as that goes without Azure.

Its expressions are evaluated and everything that it names must exist; types, versions and
properties are compared with what Azure's SDK, as locked, has of them.
"""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frozen
import pytest
import yaml
from arm import Deployment, named
from cloud import PREFIX
from conftest import ROOT

from mlops.azure.settings import Params

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    import azure.ai.ml
    from azure.ai.ml._restclient.arm_ml_service import models
    from azure.ai.ml._restclient.arm_ml_service._configuration import (
        MachineLearningServicesMgmtClientConfiguration as Configuration,
    )

    from mlops.azure import collected, connection, endpoint
    from mlops.setup import access, check

SDK = Path(azure.ai.ml.__file__).parent / "_arm_deployments" / "arm_templates"
# From Azure's list of built-in roles; the same in every subscription.
BUILT_IN = {
    "Contributor": "b24988ac-6180-42a0-ab88-20f7382dd24c",
    "Key Vault Administrator": "00482a5a-887f-4fb3-b363-3b7fe8e74483",
    "Monitoring Contributor": "749f88d5-cbae-40b8-bcfc-e573ddc772fa",
    "Reader": "acdd72a7-3385-48ef-bd42-f606fba81ae7",
    "Storage Blob Data Reader": "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1",
    "Storage Blob Data Contributor": "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
    "Storage Queue Data Contributor": "974c5e8b-45b9-4653-ba55-5f855dd0fb88",
    "Storage Table Data Contributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
    "AzureML Metrics Writer (preview)": "635dd51f-9968-44d3-b7fb-6d9a6bd613ae",
    "AzureML Data Scientist": "f6c7c914-8db3-469d-8ca1-694a8f32e121",
    "Managed Identity Operator": "f1a07417-d97a-45cb-824c-7a7467783830",
    "AcrPull": "7f951dda-4ed3-4680-a7ca-43fe172d538d",
}
WORKFLOWS = ROOT / ".github" / "workflows"
PLAN = {"default_branch": "main", "environments": True}
PLACES = {
    "group": "the resource group",
    "vault": "the key vault",
    "insights": "Application Insights",
    "main": "container `main`",
    "review": "container `review`",
    "storage": "the workspace's own storage account",
    "workspace": "the workspace",
    "registry": "the container registry",
    "endpoint": "the identity `digits-endpoint`",
}
# What each type of resource may have at its top.
KEYS = {"type", "apiVersion", "name", "location", "properties", "kind", "sku", "identity", "scope"}
KEYS |= {"copy", "condition", "dependsOn", "tags"}


@dataclass(frozen=True)
class Job:
    """A job that asks GitHub for an OIDC token."""

    name: str  # WORKFLOW: JOB
    environment: str | None
    subject: str
    in_pull_requests: bool  # a pull request can start it


def jobs(prefix: str, folder: Path = WORKFLOWS) -> Iterator[Job]:
    """Yield the jobs that ask for a token, with the token's subjects.

    With an environment the subject is that, whatever the event; without, it is the event
    `pull_request`, or the branch.
    """
    for path in sorted(folder.glob("*.yml")):
        workflow = yaml.safe_load(path.read_text("utf-8"))
        events = set(workflow[True])  # YAML's `on`
        in_pull_requests = "pull_request" in events
        for name, job in workflow["jobs"].items():
            if job["permissions"].get("id-token") != "write":
                continue
            label, environment = f"{path.name}: {name}", job.get("environment")
            if isinstance(environment, dict):
                environment = environment["name"]
                # empty where the variable ENVIRONMENTS says that the plan has none
                if chosen := re.search("vars.ENVIRONMENTS != 'none' && '([^']+)'", environment):
                    environment = chosen[1]
            if environment:
                subject = f"{prefix}:environment:{environment}"
                yield Job(label, environment, subject, in_pull_requests)
                continue
            if in_pull_requests:
                yield Job(label, None, f"{prefix}:pull_request", True)
            if events - {"pull_request"}:
                yield Job(label, None, f"{prefix}:ref:refs/heads/main", False)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return json.loads((ROOT / access.TEMPLATE).read_text("utf-8"))


@pytest.fixture(scope="module")
def made(template: dict[str, Any]) -> Deployment:
    """What a person's deployment makes; it fails where a name leads nowhere."""
    deployment = Deployment(template, {"subjectPrefix": PREFIX, "person": "someone"})
    deployment.run()
    return deployment


def of(made: Deployment, kind: str) -> dict[str, dict[str, Any]]:
    """Return the resources of a type by name."""
    found = {row["name"]: row for row in made.resources.values() if row["type"].endswith(kind)}
    assert found, kind
    return found


def test_every_expression_names_something_that_exists(
    template: dict[str, Any], made: Deployment
) -> None:
    assert len(made.resources) == 19 + 3 + 6 + 20 + 1 + 6
    used = json.dumps(template)
    for kind in ("parameters", "variables"):
        for name in template[kind]:
            assert f"{kind}('{name}')" in used, f"{kind}: {name} is of no use"
    nobody = Deployment(template, {"subjectPrefix": PREFIX})
    nobody.run()
    assert len(nobody.resources) == len(made.resources) - 6
    small = Deployment(
        template, {"subjectPrefix": PREFIX, "person": "someone", "withCluster": False}
    )
    assert small.run().keys() == template["outputs"].keys()
    (left_out,) = set(made.resources) - set(small.resources)
    assert left_out.endswith("/computes/cpu-cluster")
    for part in template["resources"]:
        assert set(part) <= KEYS


def test_a_wrong_name_is_seen(template: dict[str, Any]) -> None:
    """The check itself: damage the template, and it must be found."""
    text = json.dumps(template)
    for old, new in (
        ("variables('vault')]\"", "variables('vaults')]\""),
        ("'digits-{0}', variables('identities')", "'digit-{0}', variables('identities')"),
        ("'Microsoft.Insights/components', 'digits'", "'Microsoft.Insights/components', 'other'"),
        ('"on": "registry"', '"on": "registries"'),
        ('"dependsOn": ["identities"]', '"dependsOn": ["persons"]'),
        ("variables('account'), 'default', 'review')", "variables('account'), 'review')"),
        ('"identities", "containers", "accounts", ', '"identities", "accounts", '),
    ):
        assert old in text, old
        damaged = Deployment(json.loads(text.replace(old, new)), {"subjectPrefix": PREFIX})
        with pytest.raises((AssertionError, KeyError)):
            damaged.run()


def test_storage_takes_no_keys_and_shows_nothing(made: Deployment) -> None:
    accounts = of(made, "/storageAccounts")
    assert len(accounts) == 2
    for name, account in accounts.items():
        assert re.fullmatch("[a-z0-9]{3,24}", name)
        assert account["properties"] == {
            "allowSharedKeyAccess": False,
            "allowBlobPublicAccess": False,
            "minimumTlsVersion": "TLS1_2",
            "supportsHttpsTrafficOnly": True,
        }
    containers = of(made, "/containers")
    data: set[str] = set()
    own: set[str] = set()
    for name in containers:
        (own if name.startswith("digitsml") else data).add(name.split("/")[2])
    assert (data, own) == ({"main", "review"}, {"review"})
    for container in containers.values():
        assert container["properties"] == {"publicAccess": "None"}
    assert re.fullmatch("[a-z][a-z0-9-]{2,23}", next(iter(of(made, "/vaults"))))
    assert re.fullmatch("[a-z0-9]{5,50}", next(iter(of(made, "/registries"))))


def test_the_workspace_cannot_reach_what_is_reviewed(made: Deployment) -> None:
    (workspace,) = of(made, "MachineLearningServices/workspaces").values()
    properties = workspace["properties"]
    (place,) = (name for name in of(made, "/containers") if name.endswith("/main"))
    assert properties["storageAccount"].rsplit("/", 1)[1] != place.split("/")[0]
    assert properties["systemDatastoresAuthMode"] == models.SystemDatastoresAuthMode.IDENTITY


def test_the_workspace_runs_as_an_identity_that_has_its_roles_before_it_is_made(
    made: Deployment,
) -> None:
    """The one arrangement of which Microsoft lists the roles, also on what is brought along.

    https://learn.microsoft.com/azure/machine-learning/how-to-identity-based-service-authentication
    """
    (workspace,) = of(made, "MachineLearningServices/workspaces").values()
    assert workspace["identity"]["type"] == models.ManagedServiceIdentityType.USER_ASSIGNED
    primary = workspace["properties"]["primaryUserAssignedIdentity"]
    assert set(workspace["identity"]["userAssignedIdentities"]) == {
        primary,
        primary.replace("digits-workspace", "digits-jobs"),  # as which serverless jobs run
    }
    grants = access.load().grants
    assert {(one.role, one.on) for one in grants if one.to == "workspace"} == {
        *(("Contributor", on) for on in ("storage", "vault", "registry", "insights", "workspace")),
        ("Storage Blob Data Contributor", "storage"),
        ("Key Vault Administrator", "vault"),
    }
    principal = made.f_reference(primary, "2024-11-30")["principalId"]
    own = {
        place
        for place, row in made.resources.items()
        if row.get("properties", {}).get("principalId") == principal
    }
    assert len(own) == 7
    # That on the workspace itself can only follow.
    assert len(own & set(workspace["needs"])) == 6


@pytest.mark.parametrize(("days", "enabled", "after"), [(0, False, 1), (30, True, 30)])
def test_collected_rows_are_deleted_by_a_rule_of_the_template(
    template: dict[str, Any], days: int, enabled: bool, after: int
) -> None:
    made = Deployment(template, {"subjectPrefix": PREFIX, "collectionDays": days})
    made.run()
    (policy,) = of(made, "/managementPolicies").values()
    (rule,) = policy["properties"]["policy"]["rules"]
    workspace = next(one for one in made.resources if "LearningServices/workspaces/" in one)
    container = f"azureml-blobstore-{made.f_reference(workspace, connection.API)['workspaceId']}"
    assert rule["enabled"] is enabled
    delete = rule["definition"]["actions"]["baseBlob"]["delete"]
    assert delete == {"daysAfterModificationGreaterThan": after}
    folder = collected.ROWS.partition("{")[0]
    assert rule["definition"]["filters"]["prefixMatch"] == [f"{container}/{folder}"]
    assert policy["name"].startswith("digitsml")


def test_the_workspace_is_as_the_sdk_knows_it(made: Deployment) -> None:
    (workspace,) = of(made, "MachineLearningServices/workspaces").values()
    version = Configuration(object(), "subscription").api_version  # type: ignore[arg-type]
    assert workspace["apiVersion"] == version == connection.API
    fields = models.WorkspaceProperties()._attr_to_rest_field
    writable = {one._rest_name for one in fields.values() if one._visibility != ["read"]}
    assert set(workspace["properties"]) <= writable
    assert "workspaceId" not in writable


def names(model: Any) -> list[str]:
    """Return what one of the SDK's models may be given, as it is named on the wire."""
    fields = model({})._attr_to_rest_field.values()
    return [one._rest_name for one in fields if one._visibility != ["read"]]


def test_costs_can_be_grouped_and_logs_go_to_log_analytics(made: Deployment) -> None:
    untagged = {row["type"] for row in made.resources.values() if row.get("tags") != endpoint.COST}
    assert not {kind for kind in untagged if kind.count("/") == 1} - {
        "Microsoft.Authorization/roleAssignments",
        "Microsoft.Insights/diagnosticSettings",
    }
    (setting,) = of(made, "/diagnosticSettings").values()
    assert setting["properties"]["workspaceId"] in made.resources
    assert setting["scope"] in made.resources


def test_the_cluster_is_as_the_sdk_knows_it(made: Deployment) -> None:
    (cluster,) = of(made, "/computes").values()
    (identity,) = cluster["identity"]["userAssignedIdentities"]
    assert identity.endswith("/digits-jobs")
    assert identity in made.resources
    settings = frozen.section(Params, "azure")
    assert cluster["name"].rsplit("/", 1)[1] == settings.batch.compute
    size = cluster["properties"]["properties"]
    assert set(size) <= set(names(models.AmlComputeProperties))
    assert set(size["scaleSettings"]) <= set(names(models.ScaleSettings))
    assert size["scaleSettings"]["minNodeCount"] == 0
    assert size["scaleSettings"]["maxNodeCount"] >= settings.batch.instances
    assert cluster["apiVersion"] == connection.API


def test_types_and_properties_are_those_of_the_sdks_own_templates(made: Deployment) -> None:
    known: dict[str, set[str]] = {}

    def look(value: Any) -> None:
        if isinstance(value, dict) and "apiVersion" in value:
            known.setdefault(value["type"], set()).update(value.get("properties", {}))
        for part in value.values() if isinstance(value, dict) else value:
            if isinstance(part, (dict, list)):
                look(part)

    for path in SDK.glob("*.json"):
        look(json.loads(path.read_text("utf-8")))
    # Not in the SDK's: compared with the published types of these versions once, by hand.
    new = {
        "Microsoft.Storage/storageAccounts": {"allowSharedKeyAccess"},
        "Microsoft.Storage/storageAccounts/blobServices/containers": {"publicAccess"},
        "Microsoft.Storage/storageAccounts/managementPolicies": {"policy"},
        "Microsoft.KeyVault/vaults": {"softDeleteRetentionInDays"},
        "Microsoft.OperationalInsights/workspaces": {"sku", "retentionInDays"},
        "Microsoft.ContainerRegistry/registries": {"adminUserEnabled"},
        "Microsoft.Insights/diagnosticSettings": {"workspaceId", "logs"},
        "Microsoft.MachineLearningServices/workspaces/computes": set(names(models.AmlCompute)),
        "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials": {
            "issuer",
            "subject",
            "audiences",
        },
    }
    for row in made.resources.values():
        kind = row["type"]
        assert kind in known or kind in new
        unknown = set(row.get("properties", {})) - known.get(kind, set()) - new.get(kind, set())
        assert not unknown, f"{kind} has no {unknown}"
        assert re.fullmatch(r"20\d\d-\d\d-\d\d(-preview)?", row["apiVersion"])


def test_roles_are_the_built_in_ones_and_each_is_on_what_is_meant(made: Deployment) -> None:
    assert made.f_variables("roles") == BUILT_IN
    rows = of(made, "/roleAssignments")
    grants = access.load().grants
    assert len(rows) == len(grants)
    places = access.scopes(
        account=made.f_variables("account"),
        workspace=connection.workspace_id(
            {
                "AZURE_SUBSCRIPTION_ID": made.subscription,
                "AZURE_RESOURCE_GROUP": made.name,
                "AZURE_ML_WORKSPACE": made.f_variables("workspace"),
            }
        ),
    )
    assert places == made.f_variables("scopes")
    identities = {
        made.f_reference(place, row["version"])["principalId"]: row["name"]
        for place, row in made.resources.items()
        if row["type"].endswith("/userAssignedIdentities")
    }
    found = {
        (
            identities.get(row["properties"]["principalId"], "digits-person"),
            row["properties"]["roleDefinitionId"].rsplit("/", 1)[1],
            row.get("scope", made.group),
        )
        for row in rows.values()
    }
    wanted = {(f"digits-{one.to}", BUILT_IN[one.role], places[one.on]) for one in grants}
    assert found == wanted
    for row in rows.values():
        person = row["properties"]["principalId"] == "someone"
        assert row["properties"]["principalType"] == ("User" if person else "ServicePrincipal")
        assert person <= (row.get("scope", made.group) != made.group)


def test_only_main_writes_main_and_no_pull_request_deploys() -> None:
    """The trust of it all: what the review's identities may, whatever else changes."""
    grants = {(one.to, one.role, one.on) for one in access.load().grants}
    writers = {to for to, role, on in grants if on == "main" and "Contributor" in role}
    assert writers == {"main", "person"}
    assert {role for to, role, _ in grants if to == "reader"} == {"Storage Blob Data Reader"}
    # Whoever deploys reads the retention rule and cannot change it.
    theirs = {role for to, role, on in grants if (to, on) == ("deployer", "storage")}
    assert theirs == {"Storage Blob Data Contributor", "Reader"}
    opened = {job.subject for job in jobs("") if job.in_pull_requests}
    logins = access.load().logins
    assert [login.identity for login in logins if f":{login.claim(PLAN)}" in opened] == ["reader"]
    # A pull request's job may name any environment, unless that is for the default branch alone.
    named = {name for name, protected in access.ENVIRONMENTS.items() if not protected}
    assert [job.environment for job in jobs("") if job.in_pull_requests] == sorted(named)


def test_the_cluster_may_do_what_batches_ask_of_it(made: Deployment) -> None:
    """Azure's driver of batches needs queues and tables of an account that takes no keys.

    https://learn.microsoft.com/azure/machine-learning/how-to-disable-local-auth-storage
    """
    (cluster,) = of(made, "/computes").values()
    (place,) = cluster["identity"]["userAssignedIdentities"]
    identity = made.resources[place]["name"].removeprefix("digits-")
    grants = access.load().grants
    has = {one.role for one in grants if (one.to, one.on) == (identity, "storage")}
    assert has == {f"Storage {kind} Data Contributor" for kind in ("Blob", "Queue", "Table")}


def test_credentials_are_what_the_workflows_ask_for(
    template: dict[str, Any], made: Deployment
) -> None:
    credentials = of(made, "/federatedIdentityCredentials")
    subjects = {row["properties"]["subject"] for row in credentials.values()}
    assert subjects == {job.subject for job in jobs(PREFIX)}
    assert f"{PREFIX}:environment:production" in subjects
    for row in credentials.values():
        assert row["properties"]["issuer"] == check.ISSUER
        assert row["properties"]["audiences"] == ["api://AzureADTokenExchange"]
    (part,) = (one for one in template["resources"] if one["type"].endswith("IdentityCredentials"))
    assert (part["copy"]["mode"], part["copy"]["batchSize"]) == ("serial", 1)  # one at a time


def test_the_outputs_are_githubs_variables(template: dict[str, Any], made: Deployment) -> None:
    clients = [login.variable for login in access.load().logins]
    names = ["AZURE_STORAGE_ACCOUNT", "AZURE_TENANT_ID", *connection.SETTINGS, *clients]
    names.append("ENVIRONMENTS")
    assert list(template["outputs"]) == names
    values = Deployment(template, {"subjectPrefix": PREFIX}).run()
    assert len(set(values.values())) == len(values)
    assert not any(named(value) for value in values.values())


def test_the_table_in_setup_is_the_templates() -> None:
    found = access.load()
    lines = ["| who | logs in from | role | on |", "|---|---|---|---|"]
    subjects = {login.identity: login.claim(PLAN) for login in found.logins}
    for grant in found.grants:
        kind, _, name = subjects.get(grant.to, "").partition(":")
        kind = "branch" if kind == "ref" else kind
        place = f"{kind} `{name.removeprefix('refs/heads/')}`" if kind else "Azure"
        who = f"`digits-{grant.to}`"
        if grant.to == "person":
            who, place = "a person who connects", "`az login`"
        lines.append(f"| {who} | {place} | {grant.role} | {PLACES[grant.on]} |")
    table = "\n".join(lines) + "\n"
    assert table in (ROOT / ".github" / "SETUP.md").read_text("utf-8"), table


def test_each_identity_has_its_jobs_and_each_such_job_its_identity() -> None:
    variables = {login.claim(PLAN): login.variable for login in access.load().logins}
    subjects = {job.name: job.subject.removeprefix("repo:o/r:") for job in jobs("repo:o/r")}
    assert set(subjects.values()) == set(variables)
    used = " ".join(path.read_text("utf-8") for path in WORKFLOWS.glob("*.yml"))
    for name in access.load().variables:
        assert f"vars.{name}" in used
    for path in WORKFLOWS.glob("*.yml"):
        for name, job in yaml.safe_load(path.read_text("utf-8"))["jobs"].items():
            for step in job["steps"]:
                client = step.get("with", {}).get("client-id", "")
                if "AZURE_" in client:
                    assert f"vars.{variables[subjects[f'{path.name}: {name}']]} " in client


def test_a_job_without_an_environment_has_its_event_as_subject(tmp_path: Path) -> None:
    text = (WORKFLOWS / "pull-request.yml").read_text("utf-8")
    lines = [
        line for line in text.splitlines() if not re.search("environment: .*review-read", line)
    ]
    (tmp_path / "pull-request.yml").write_text("\n".join(lines))
    found = {job.subject for job in jobs(PREFIX, tmp_path) if job.name.endswith(": review")}
    assert found == {f"{PREFIX}:pull_request", f"{PREFIX}:ref:refs/heads/main"}
