"""`digits azure check` on what connect made, and on faults in it; gh and az: see cloud.py."""

import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import frozen
import pytest
from cloud import PREFIX, Cloud, assignments, credentials, deployed
from clouded import a_cloud  # noqa: F401
from conftest import Project, free_port

from mlops.azure.settings import Params

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from azureml_emulator.services.online_endpoints import reserved_cores
    from mlops import dvc
    from mlops.azure import connection
    from mlops.cli import call
    from mlops.deploy import release
    from mlops.setup import access, az, check
from core.errors import DigitsError

PROBE = dvc.probe
PLAN = {"default_branch": "main", "environments": True}
needs_scripts = pytest.mark.skipif(sys.platform == "win32", reason="gh and az are scripts here")


@pytest.fixture
def connected(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> Cloud:
    """What `digits azure connect` leaves."""
    call("azure", "connect", "--resource-group", "course", "--location", "westeurope")
    connection.save_connection(None)  # as in a clone that never got the commit
    capsys.readouterr()
    return cloud


def found() -> dict[str, list[str]]:
    """Return the findings on GitHub and in Azure with their fixes, by status."""
    rows: dict[str, list[str]] = {"ok": [], "failed": [], "optional": [], "unknown": []}
    for one in check.github(None):
        rows[one.status].append(f"{one.text} ({one.fix})")
    return rows


@needs_scripts
def test_what_is_connected_passes(connected: Cloud) -> None:
    rows = found()
    assert rows["failed"] == rows["optional"] == rows["unknown"] == []
    text = "\n".join(rows["ok"])
    for login in access.load().logins:
        identity = f"digits-{login.identity}"
        subject = f"{PREFIX}:{login.claim(PLAN)}"
        assert f"{identity}: expected to trust {subject} alone (" in text
        assert f"{login.variable}: the client id of {identity}" in text
    assert "digits-deployer: has 6 of 6 roles (" in text
    assert "digits-endpoint: has 3 of 3 roles (" in text
    assert "digits-jobs: has 5 of 5 roles (" in text
    assert "cluster cpu-cluster" in text
    assert "variable ENVIRONMENTS: limited; by plan and visibility: limited" in text


@needs_scripts
def test_a_plan_without_environments_is_compared(cloud: Cloud) -> None:
    """Connected while public, it became private on the plan Free; then it is connected again."""
    connect = ("azure", "connect", "--resource-group", "course", "--location", "westeurope")
    call(*connect)
    branch = {"default_branch": "trunk", "private": True}
    app = {"REVIEW_APP_CLIENT_ID": "app"}
    cloud.change(repository=branch, variables=cloud.state["variables"] | app)
    text = "\n".join(found()["failed"])
    assert "variable ENVIRONMENTS: limited; by plan and visibility: none (digits azure" in text
    assert "no GitHub App: without environments its key is open to every branch (gh" in text
    wanted = {
        "reader": f"{PREFIX}:pull_request",
        "main": f"{PREFIX}:ref:refs/heads/trunk",
        "deployer": f"{PREFIX}:ref:refs/heads/trunk",
    }
    for name, subject in wanted.items():
        assert f"digits-{name}: expected to trust {subject} alone, trusts " in text
    assert "environment production" not in text
    call(*connect)
    variables = cloud.state["variables"]
    assert variables["ENVIRONMENTS"] == "none"
    trusted = {
        name: [row["subject"] for row in rows] for name, rows in credentials(cloud.state).items()
    }
    assert trusted == {f"digits-{name}": [subject] for name, subject in wanted.items()}
    del variables["REVIEW_APP_CLIENT_ID"]
    cloud.change(variables=variables)
    (failed,) = found()["failed"]
    assert failed.startswith("default branch: trunk")
    cloud.change(plan="pro")  # or Team: a private repository has environments there
    assert "by plan and visibility: limited" in "\n".join(found()["failed"])
    call(*connect)
    assert cloud.state["variables"]["ENVIRONMENTS"] == "limited"
    assert cloud.state["environments"]["production"] == ["main", "trunk"]
    (row,) = credentials(cloud.state)["digits-reader"]
    assert row["subject"] == f"{PREFIX}:environment:review-read"


@needs_scripts
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"repository": {"default_branch": "trunk"}}, "default branch: trunk (name it main"),
        ({"repository": {"has_issues": False}}, "issues: False (gh repo edit octo/digits"),
        ({"workflows": []}, "workflows that GitHub knows: 0 (switch Actions on: https://"),
        (
            {"workflows": [{"name": "monitor", "state": "disabled_inactivity"}]},
            "workflows that are off: monitor (gh workflow enable NAME",
        ),
    ],
)
def test_what_a_fork_has_off_is_reported_without_azure_too(
    cloud: Cloud, changed: dict[str, Any], text: str
) -> None:
    cloud.change(**changed)
    (failed,) = found()["failed"]
    assert failed.startswith(text)


@needs_scripts
def test_a_missing_cluster_is_a_fault_only_where_jobs_run_on_it(
    connected: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = deployed(connected.state)
    workspace = connection.workspace_id(connected.state["variables"])
    place = f"{workspace}/computes/cpu-cluster"
    assert place in made.resources
    connected.change(deleted=[place])
    rows = found()
    (text,) = rows["optional"]
    assert "cluster cpu-cluster: only `digits score --workspace azure` needs it" in text
    assert "digits azure connect" in text and "creates cpu-cluster" in text
    assert rows["failed"] == []
    settings = frozen.section(Params, "azure")
    settings = replace(settings, job=replace(settings.job, compute="cpu-cluster"))
    monkeypatch.setattr(check, "load", lambda: settings)
    rows = found()
    (text,) = rows["failed"]
    assert "cluster cpu-cluster" in text and rows["optional"] == []


@needs_scripts
def test_a_role_counts_only_on_what_it_is_for(connected: Cloud) -> None:
    rows = assignments(connected.state)
    clients = {
        row.identity: connected.state["variables"][row.variable] for row in access.load().logins
    }

    def of(identity: str, role: str, place: str) -> dict[str, Any]:
        (row,) = (
            one
            for one in rows
            if (one["client"], one["roleDefinitionName"]) == (clients[identity], role)
            and one["scope"].endswith(place)
        )
        return row

    # The lease and what was collected are in the workspace's own account, not beside `main`.
    own = of("deployer", "Storage Blob Data Contributor", "")
    own["scope"] = own["scope"].replace("digitsml", "digits")
    # The whole account instead of the container `review`: it could read all of it.
    wide = of("reader", "Storage Blob Data Reader", "/containers/review")
    wide["scope"] = wide["scope"].partition("/blobServices")[0]
    rows.remove(of("main", "Reader", "/workspaces/digits"))
    connected.change(roles=rows)
    reader, main, deployer = sorted(found()["failed"], reverse=True)
    text = "digits-reader: has 1 of 2 roles and 1 more than it needs (digits azure connect"
    assert reader.startswith(text)
    assert f"az role assignment delete --ids {wide['id']})" in reader
    assert main.startswith("digits-main: has 3 of 4 roles (digits azure connect")
    assert "delete" not in main
    assert deployer.startswith("digits-deployer: has 5 of 6 roles and 1 more than it needs (")
    assert own["id"] in deployer
    # A role more than it needs is a fault even where it has all that it needs.
    wide["id"] += "-of-its-own"
    connected.change(roles=[*assignments(connected.state | {"roles": None}), wide])
    (text,) = found()["failed"]
    assert text.startswith("digits-reader: has 2 of 2 roles and 1 more than it needs (az role")


@needs_scripts
def test_whom_an_identity_trusts_is_compared_both_ways(connected: Cloud) -> None:
    trusted = credentials(connected.state)
    subject = f"{PREFIX}:environment:production"
    (right,) = trusted["digits-deployer"]
    wrong = right | {"name": "old", "subject": f"{PREFIX}:pull_request"}
    elsewhere = right | {"issuer": "https://example.org"}
    delete = "az identity federated-credential delete --identity-name digits-deployer"
    for rows, missing, extra in (
        ([wrong], True, True),
        ([right, wrong], False, True),
        ([], True, False),
        ([elsewhere], True, False),
    ):
        connected.change(credentials=trusted | {"digits-deployer": rows})
        (text,) = found()["failed"]
        assert f"digits-deployer: expected to trust {subject} alone, trusts " in text
        assert ("digits azure connect" in text) == missing
        assert (delete in text and "--name old" in text) == extra


@needs_scripts
def test_an_identity_that_is_missing_or_another_is_found(connected: Cloud) -> None:
    variables = connected.state["variables"] | {"AZURE_READER_CLIENT_ID": "another"}
    connected.change(variables=variables)
    (text,) = found()["failed"]
    assert text.startswith("AZURE_READER_CLIENT_ID: the client id of digits-reader (digits azure")
    path = access.TEMPLATE  # a later one has an identity more
    path.write_text(path.read_text().replace('"workspace"],', '"workspace", "new"],', 1))
    connected.change(variables=variables | {"AZURE_READER_CLIENT_ID": ""})
    assert len(found()["failed"]) == 1
    path.write_text(path.read_text().replace('{"to": "jobs"', '{"to": "new"'))
    assert "digits-new: has 0 of 5 roles (digits azure connect" in "\n".join(found()["failed"])


@needs_scripts
def test_what_github_lacks_is_found(connected: Cloud) -> None:
    state = connected.state
    del state["variables"]["AZURE_TENANT_ID"]
    state["environments"]["production"] = None
    connected.change(variables=state["variables"], environments=state["environments"])
    variable, environment = found()["failed"]
    assert "environment production: for the default branch alone (any branch" in environment
    assert "variable AZURE_TENANT_ID (digits azure connect" in variable


@needs_scripts
def test_without_an_answer_nothing_is_guessed(connected: Cloud) -> None:
    connected.change(login=False)
    rows = found()
    (text,) = rows["unknown"]
    assert "az account show" in text and "az login" in text
    assert rows["failed"] == []
    variables = connected.state["variables"]
    connected.change(login=True, variables=variables | {"AZURE_SUBSCRIPTION_ID": "another"})
    rows = found()
    (text,) = rows["unknown"]
    assert "az account set --subscription another" in text
    assert rows["failed"] == []
    connected.change(gh=False)
    rows = found()
    assert rows.pop("unknown") == ["GitHub: no answer about octo/digits (gh auth login)"]
    assert not any(rows.values())
    Project(Path()).git("remote", "remove", "origin")
    rows = found()
    text = "origin: not on GitHub (git remote add origin URL, or --repository OWNER/NAME)"
    assert rows.pop("unknown") == [text]
    assert not any(rows.values())


@needs_scripts
@pytest.mark.slow
def test_this_machine_is_checked(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("STORAGE_KEY", "USERNAME", "PASSWORD", "TOKEN_CREDENTIALS")
    for name in names[:-1]:
        monkeypatch.setenv(f"AZURE_{name}", "x")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "prod")
    cloud.change(gh=False, login=False)
    with pytest.raises(DigitsError, match=r"1 check failed\. The fix for each is printed above\."):
        call("azure", "check", *["--repository", "a/b"])
    text = capsys.readouterr().out
    assert f"unset {' '.join(f'AZURE_{name}' for name in names)}\n" in text
    assert re.search(r"optional +remote main: account missing", text)
    assert re.findall(r"^(\w+):$", text, re.M) == ["local", "sharing", "cloud"]
    assert "GitHub: no answer about a/b" in text


@pytest.mark.parametrize("choice", ["", "dev", "AzureCliCredential"])
def test_a_choice_of_logins_that_keeps_az_is_no_fault(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setattr(az, "try_json", lambda *_: None)
    monkeypatch.setenv(check.CHOICE, choice)
    text = "variables that override the login: "
    assert f"{text}none" in [one.text for one in check.machine()]
    monkeypatch.setenv(check.CHOICE, "prod")
    assert f"{text}{check.CHOICE}" in [one.text for one in check.machine()]


def test_variables_that_lead_to_another_workspace_are_found(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in connection.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert list(check.environment()) == []
    kept = {name: name.lower() for name in connection.SETTINGS}
    connection.save_connection(kept | {"AZURE_STORAGE_ACCOUNT": "digitsabc"})
    assert {one.status for one in check.environment()} == {"ok"}
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", kept["AZURE_SUBSCRIPTION_ID"])
    monkeypatch.setenv("AZURE_ML_WORKSPACE", "another")
    (failed,) = (one for one in check.environment() if one.status != "ok")
    assert failed.status == "failed"
    assert failed.text.startswith("AZURE_ML_WORKSPACE: another; ")
    assert "unset AZURE_ML_WORKSPACE" in failed.fix
    connection.WORKSPACE.write_text("{}")
    (failed,) = check.environment()
    assert failed.status == "failed" and failed.text.endswith("digits azure connect")


@pytest.mark.parametrize(
    ("cores", "instances", "needed"),
    [(4, 1, 8), (16, 1, 32), (2, 4, 10), (2, 5, 12), (2, 6, 16), (1, 35, 42), (1, 36, 44)],
)
def test_quota_is_taken_for_a_fifth_more_instances_in_whole_ones(
    cores: int, instances: int, needed: int
) -> None:
    assert release.reserved(cores, instances) == needed
    assert reserved_cores(cores, instances) == needed


@needs_scripts
def test_what_is_not_connected_is_optional(connected: Cloud) -> None:
    connected.change(variables={})
    rows = found()
    (text,) = rows.pop("optional")
    assert text.startswith("GitHub: octo/digits is not connected to Azure, so merges deploy")
    assert rows["failed"] == rows["unknown"] == []


def test_a_remote_that_does_not_answer_is_a_fault(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc, "probe", PROBE)
    rows = (
        "remote.main.url=azure://main\nremote.main.connection_string=AccountName=a;"
        f"BlobEndpoint=http://127.0.0.1:{free_port()}/\nremote.review.url=azure://review\n"
    )
    monkeypatch.setattr(dvc, "run", lambda *words, folder=None: rows)
    main, review = check.sharing()
    assert main.status == "failed" and main.text.startswith("remote main: no answer from http://")
    assert review.status == "optional" and review.text == "remote review: account missing"
