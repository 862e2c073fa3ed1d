"""`digits azure check` on what `connect` made, and on flaws in it; gh and az: see cloud.py."""

import sys
import warnings
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from cloud import PREFIX, Cloud, assignments, credentials, deployed
from clouded import a_cloud  # noqa: F401

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from azureml_emulator import standin
    from mlops.azure import connection
    from mlops.deploy import release
    from mlops.setup import az, check, connect
from core.errors import DigitsError
from mlops.cli import call

needs_scripts = pytest.mark.skipif(sys.platform == "win32", reason="gh and az are scripts here")


@pytest.fixture
def connected(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> Cloud:
    """What `digits azure connect --run --github` leaves."""
    cloud.change(groups={"course": {}})
    az.must(*connect.stack_command("course", PREFIX, "", True))
    stack = az.asked(
        *("az", "stack", "group", "show", "--name", "digits", "--resource-group", "course")
    )
    limits: dict[Any, Any] = {job.environment: None for job in connection.jobs("")}
    limits |= {name: ["main"] for name in connection.protected(list(connection.jobs("")))}
    cloud.change(variables=connect.variables(stack), environments=limits)
    capsys.readouterr()
    return cloud


def found(repository: str | None = "octo/digits") -> dict[str, list[str]]:
    """Return what is found on GitHub and in Azure, with its mend, by state."""
    rows: dict[str, list[str]] = {"ok": [], "wrong": [], "absent": [], "unknown": []}
    for one in check.github(repository):
        rows[one.state].append(f"{one.what} ({one.mend})")
    return rows


@needs_scripts
def test_what_is_in_order_is_said_with_its_subjects(connected: Cloud) -> None:
    rows = found()
    assert rows["wrong"] == rows["absent"] == rows["unknown"] == []
    said = "\n".join(rows["ok"])
    for name, environment in connection.rights().logins.items():
        assert f"subject {PREFIX}:environment:{environment}: of " in said
        assert f"{connection.variable(name)}: subject {PREFIX}:environment:{environment}" in said
    assert "production: of deploy.yml: apply, live.yml: live, rollback.yml: rollback" in said
    assert "AZURE_DEPLOYER_CLIENT_ID: has its 5 roles, each on the right thing" in said
    assert "digits-endpoint: has its 2 roles" in said
    assert "digits-jobs: has its 5 roles" in said
    assert "cluster cpu-cluster" in said


@needs_scripts
def test_a_cluster_that_is_absent_is_a_fault_where_jobs_are_to_run_there(
    connected: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = deployed(connected.state)
    workspace = connection.workspace_id(connected.state["variables"])
    place = f"{workspace}/computes/cpu-cluster"
    assert place in made.resources
    connected.change(deleted=[place])
    rows = found()
    (said,) = rows["absent"]
    assert "cluster cpu-cluster: only `digits score --workspace azure` needs it" in said
    assert "`digits azure connect --run` makes cpu-cluster" in said
    assert rows["wrong"] == []
    settings, task = release.load()
    settings = replace(settings, job=replace(settings.job, compute="cpu-cluster"))
    monkeypatch.setattr(release, "load", lambda: (settings, task))
    rows = found()
    (said,) = rows["wrong"]
    assert "cluster cpu-cluster" in said and rows["absent"] == []


@needs_scripts
def test_a_role_counts_only_on_what_it_is_for(connected: Cloud) -> None:
    rows = assignments(connected.state)
    values = connected.state["variables"]

    def of(identity: str, role: str, place: str) -> dict[str, Any]:
        client = values[connection.variable(identity)]
        (row,) = (
            one
            for one in rows
            if (one["client"], one["roleDefinitionName"]) == (client, role)
            and one["scope"].endswith(place)
        )
        return row

    # The lease and what was collected are in the workspace's own account, not beside `main`.
    own = of("deployer", "Storage Blob Data Contributor", "")
    own["scope"] = own["scope"].replace("digitsml", "digits")
    # The whole account instead of the container `review`: it could write `main`.
    wide = of("reviewer", "Storage Blob Data Contributor", "/containers/review")
    wide["scope"] = wide["scope"].partition("/blobServices")[0]
    rows.remove(of("main", "Reader", "/workspaces/digits"))
    connected.change(roles=rows)
    said = found()["wrong"]
    assert len(said) == 5
    text = "\n".join(said)
    for lack in (
        "AZURE_DEPLOYER_CLIENT_ID: lacks Storage Blob Data Contributor on /",
        "AZURE_REVIEWER_CLIENT_ID: lacks Storage Blob Data Contributor on /",
        "AZURE_MAIN_CLIENT_ID: lacks Reader on /",
    ):
        assert lack in text
    assert f"AZURE_REVIEWER_CLIENT_ID: has Storage Blob Data Contributor on {wide['scope']}" in text
    assert f'--role "Storage Blob Data Contributor" --scope {wide["scope"]}' in text
    assert f"AZURE_DEPLOYER_CLIENT_ID: has Storage Blob Data Contributor on {own['scope']}" in text


@needs_scripts
def test_whom_an_identity_lets_in_is_compared_both_ways(connected: Cloud) -> None:
    trusted = credentials(connected.state)
    deployer = trusted["digits-deployer"]
    deployer[0]["subject"] = f"{PREFIX}:pull_request"
    connected.change(credentials=trusted)
    one, other = found()["wrong"]
    assert f"subject {PREFIX}:environment:production is not among {PREFIX}:pull_request" in one
    assert "az identity federated-credential create --identity-name digits-deployer" in one
    assert f"lets in {PREFIX}:pull_request, which no job of its needs" in other
    assert "federated-credential delete" in other
    # The same as app registrations, which are known by their client's id.
    client = connected.state["variables"]["AZURE_DEPLOYER_CLIENT_ID"]
    connected.change(apps={client: deployer})
    assert "az ad app federated-credential create --id" in found()["wrong"][0]


@needs_scripts
def test_what_github_lacks_is_found(connected: Cloud) -> None:
    state = connected.state
    del state["variables"]["AZURE_TENANT_ID"]
    state["environments"]["production"] = None
    connected.change(variables=state["variables"], environments=state["environments"])
    environment, variable = found()["wrong"]
    assert "environment production: for the default branch alone (any branch" in environment
    assert "gh variable set AZURE_TENANT_ID --body VALUE" in variable


@needs_scripts
def test_subjects_are_told_where_nobody_can_be_asked(cloud: Cloud) -> None:
    cloud.change(gh=False, login=False)
    rows = found()
    said = "\n".join(rows["unknown"])
    assert "repo:octo@OWNER_ID/digits@REPOSITORY_ID" in said
    assert "AZURE_DEPLOYER_CLIENT_ID: not known; subject repo:octo/digits:environment" in said
    assert "subject repo:octo/digits:environment:review-read: of " in "\n".join(rows["ok"])
    other = found(None)
    said = "\n".join(other["unknown"] + other["ok"])
    assert "origin: not on GitHub (git remote add origin, or --repository OWNER/NAME)" in said
    assert "subject repo:OWNER/NAME:environment:production: of deploy.yml: apply" in said
    assert rows["wrong"] == other["wrong"] == []


@needs_scripts
def test_a_job_without_an_environment_has_its_event_as_subject(connected: Cloud) -> None:
    path = connection.WORKFLOWS / "pull-request.yml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "environment: review-read" not in line))
    said = "\n".join(found()["wrong"])
    assert f"subject {PREFIX}:pull_request: of pull-request.yml: review" in said
    assert f"subject {PREFIX}:ref:refs/heads/main: of pull-request.yml: review" in said
    assert "no job has the environment review-read is not among" in said


@needs_scripts
@pytest.mark.slow
def test_this_machine_is_looked_at(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = ("STORAGE_KEY", "USERNAME", "PASSWORD", "TOKEN_CREDENTIALS")
    for name in stray[:-1]:
        monkeypatch.setenv(f"AZURE_{name}", "x")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "prod")
    cloud.change(gh=False, login=False)
    with pytest.raises(DigitsError, match="3 checks failed"):
        call("azure", "check", "--workspace", "local", "--repository", "a/b")
    said = capsys.readouterr().out
    assert f"unset {' '.join(f'AZURE_{name}' for name in stray)}: " in said
    assert "remote main: azure://main, account missing" in said
    assert "subject repo:a/b:environment:production" in said


@pytest.mark.parametrize("choice", ["", "dev", "AzureCliCredential"])
def test_a_choice_of_logins_that_keeps_az_is_no_fault(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setattr(check, "told", lambda *_: None)
    monkeypatch.setenv(check.CHOICE, choice)
    assert "stray variables: none" in [one.what for one in check.here()]
    monkeypatch.setenv(check.CHOICE, "prod")
    assert f"stray variables: {check.CHOICE}" in [one.what for one in check.here()]


def test_variables_that_lead_to_another_workspace_are_found(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in connection.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert list(check.elsewhere()) == []
    kept = {name: name.lower() for name in connection.SETTINGS}
    connection.keep(kept | {"AZURE_STORAGE_ACCOUNT": "digitsabc"})
    assert {one.state for one in check.elsewhere()} == {"ok"}
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", kept["AZURE_SUBSCRIPTION_ID"])
    monkeypatch.setenv("AZURE_ML_WORKSPACE", "another")
    (wrong,) = (one for one in check.elsewhere() if one.state != "ok")
    assert wrong.state == "wrong"
    assert wrong.what.startswith("AZURE_ML_WORKSPACE: another; ")
    assert "unset AZURE_ML_WORKSPACE" in wrong.mend
    connection.WORKSPACE.write_text("{}")
    (wrong,) = check.elsewhere()
    assert wrong.state == "wrong" and "`digits azure connect` writes it anew" in wrong.what


def test_a_stand_in_that_does_not_run_is_no_matter_of_logging_in(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DigitsError, match="checks failed"):
        call("azure", "check", "--workspace", "local")
    assert "`digits local` first" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("strategy", "state"), [("blue_green", "wrong"), ("in_place", "ok")])
def test_a_quota_for_one_revision_alone_is_enough_in_place(
    monkeypatch: pytest.MonkeyPatch, strategy: str, state: str
) -> None:
    settings, task = release.load()
    settings = replace(settings, strategy=strategy)  # type: ignore[arg-type]
    monkeypatch.setattr(release, "load", lambda: (settings, task))
    monkeypatch.setattr(check, "connect", MagicMock())
    monkeypatch.setattr(check, "cores", lambda *_: (2, "standardDSv2Family", 1))
    (found,) = check.quota("azure")
    assert found.state == state
    assert "quota: 4 cores of standardDSv2Family needed for one more revision, 1 free" in found.what


@pytest.mark.parametrize(
    ("cores", "instances", "needed"),
    [(4, 1, 8), (16, 1, 32), (2, 4, 10), (2, 5, 12), (2, 6, 16), (1, 35, 42), (1, 36, 44)],
)
def test_quota_is_taken_for_a_fifth_more_instances_in_whole_ones(
    cores: int, instances: int, needed: int
) -> None:
    assert release.reserved(cores, instances) == needed
    assert standin.reserved(cores, instances) == needed


def test_each_identity_has_its_jobs_and_each_such_job_its_identity() -> None:
    logins = connection.rights().logins
    assert {job.environment for job in connection.jobs("repo:o/r")} == set(logins.values())
    used = " ".join(path.read_text("utf-8") for path in connection.WORKFLOWS.glob("*.yml"))
    for name in connection.variables():
        assert f"vars.{name}" in used
    for path in connection.WORKFLOWS.glob("*.yml"):
        for job in yaml.safe_load(path.read_text("utf-8"))["jobs"].values():
            steps = [step for step in job["steps"] if "azure/login" in step.get("uses", "")]
            for step in steps:
                variable = step["with"]["client-id"].split("vars.")[1].split()[0]
                environments = {
                    place for name, place in logins.items() if connection.variable(name) == variable
                }
                assert environments == {job["environment"]}
