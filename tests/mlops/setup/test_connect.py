"""`digits azure connect` and `disconnect`, and the checks after each; az and gh: see cloud.py."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import configobj
import pytest
from arm import Deployment
from cloud import PREFIX, Cloud, deployed, options
from clouded import a_cloud  # noqa: F401
from conftest import ROOT, Project

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from mlops.azure import connection, workspace
    from mlops.azure.settings import load
    from mlops.cli import call
    from mlops.setup import access, check, disconnect
    from mlops.setup import az as commands
from core.errors import DigitsError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gh and az are scripts here")
GROUP = ["--resource-group", "course"]
RUN = [*GROUP, "--location", "westeurope"]
PERSON = "33333333-0000-0000-0000-000000000000"


def files() -> tuple[str, str | None]:
    """Return what the repository says of Azure."""
    path = connection.WORKSPACE
    return connection.DVC.read_text(), path.read_text() if path.exists() else None


def not_ok() -> list[str]:
    """Return the checks of GitHub and Azure that did not pass."""
    return [one.text for one in check.github("octo/digits") if one.status != "ok"]


@pytest.mark.slow
def test_from_nothing_to_ready_and_back(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files()
    assert not_ok()
    cloud.change(calls=[])
    call("azure", "connect", *RUN)
    out = capsys.readouterr().out
    assert len(cloud.calls("az")) == 5  # as SETUP.md has it
    assert cloud.calls("group", "create", "--location")
    values = cloud.state["variables"]
    assert set(values) == set(access.load().variables)
    assert json.loads(connection.WORKSPACE.read_text()) == {
        "subscription_id": values["AZURE_SUBSCRIPTION_ID"],
        "resource_group": "course",
        "workspace_name": "digits",
    }
    assert connection.load_connection() == {name: values[name] for name in workspace.SETTINGS}
    assert files()[0].count(f"account_name = {values['AZURE_STORAGE_ACCOUNT']}") == 2
    assert cloud.state["environments"]["production"] == ["main"]
    assert cloud.state["environments"]["review-read"] is None
    limits = [call for call in cloud.state["calls"] if "POST" in call]
    stack = cloud.state["calls"].index(cloud.calls("stack", "create")[0])
    assert all(cloud.state["calls"].index(call) < stack for call in limits)
    assert "add reviewers to the environment production" in out
    capsys.readouterr()
    call("azure", "check")  # raises for what is wrong
    said = [line for line in capsys.readouterr().out.splitlines() if "unknown" in line[:10]]
    assert said == []

    written = files()
    call("azure", "connect", *RUN)  # again: nothing new
    assert len(cloud.calls("variable", "set", "AZURE_TENANT_ID")) == 1
    assert "nothing new" in capsys.readouterr().out
    assert files() == written and cloud.state["environments"]["production"] == ["main"]
    assert len(cloud.calls("az", "group", "create", "--tags")) == 1

    monkeypatch.setattr("builtins.input", lambda _: "yes")
    with pytest.raises(DigitsError, match="Nothing was deleted"):
        call("azure", "disconnect", *GROUP)  # that is not its name
    assert cloud.state["stack"] and files() == written
    for endpoint in ("digits-1234", "batch-1234"):
        cloud.change(endpoints=[endpoint])
        with pytest.raises(DigitsError, match="digits deploy destroy"):
            call("azure", "disconnect", *GROUP, "--yes")
    assert cloud.state["stack"]
    for question in ("stack group show", "resource show"):
        cloud.change(endpoints=[], fail={question: "Max retries exceeded"})
        with pytest.raises(DigitsError, match="check the network and run this again"):
            call("azure", "disconnect", *GROUP, "--yes")
        assert cloud.state["stack"] and files() == written
    place = connection.workspace_id(values)
    (vault,) = disconnect.of_type(disconnect.VAULT, deployed(cloud.state)[0].resources)
    others = [vault.replace("/course/", "/other/"), f"{vault.rpartition('/')[0]}/digits-payroll"]
    cloud.change(vaults=others)
    for step, deleted in (
        ("resource delete", [place]),
        ("keyvault purge", [place, vault]),
        ("stack group delete", [place, vault]),
    ):
        cloud.change(endpoints=[], fail={step: "(Busy) something else goes on"})
        with pytest.raises(DigitsError, match="run it again: it continues where it stopped"):
            call("azure", "disconnect", *GROUP, "--yes")
        assert cloud.state["deleted"] == deleted and cloud.state["stack"] and files() == written
    assert cloud.state["groups"]
    assert cloud.state["purged"] == [vault.rpartition("/")[2]]
    out = capsys.readouterr().out
    assert "/providers/Microsoft.MachineLearningServices/workspaces/digits\n" in out
    cloud.change(fail={}, variables=cloud.state["variables"] | {"DEPLOY_BY_HAND": "true"})
    call("azure", "disconnect", *GROUP, "--yes")
    assert files() == before
    assert (cloud.state["groups"], cloud.state["stack"]) == ({}, None)
    assert cloud.state["variables"] == {"DEPLOY_BY_HAND": "true"}  # not made by connect
    assert cloud.state["purged"] == [vault.rpartition("/")[2]]
    call("azure", "disconnect", *GROUP, "--yes")  # again: there is nothing
    assert "nothing" in capsys.readouterr().out


def by_hand(first: str, **values: str) -> list[list[str]]:
    """Return the commands of SETUP.md's block that begins so, with values for its names."""
    text = (ROOT / ".github" / "SETUP.md").read_text("utf-8")
    block = text[text.index(f"    {first}") :].partition("\n\n")[0].replace("\\\n", "")
    for name in sorted(values, key=len, reverse=True):
        block = re.sub(rf"\b{re.escape(name)}\b", values[name], block)
    block = block.replace("$(az ad signed-in-user show --query id --output tsv)", PERSON)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def settled(call: list[str]) -> tuple[str, dict[str, set[str]]]:
    """Return a command's words and options, whose order does not matter."""
    words, given = options(call)
    return words, {name: set(values) for name, values in given.items()}


def changing(cloud: Cloud) -> list[tuple[str, dict[str, set[str]]]]:
    """Return the calls of `az` that change something."""
    verbs = ("create", "delete", "purge", "wait")
    calls = [call for call in cloud.calls("az") if not {"get", "list-deleted"} & set(call)]
    return [settled(one) for one in calls if set(verbs) & set(one)]


def run_by_hand(commands: list[list[str]], programs: set[str]) -> None:
    """Run the commands of some programs in a shell, as somebody would type them."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for words in commands:
        if words[0] in programs:
            line = shlex.join(words).replace("'>'", ">")
            subprocess.run(["bash", "-ec", line], check=True, env=env)


@pytest.mark.slow
def test_setup_shows_by_hand_what_connect_and_disconnect_do(cloud: Cloud) -> None:
    before = files()
    group = ["--resource-group", "digits"]
    call("azure", "connect", *group, "--location", "westeurope")
    values, written = cloud.state["variables"], files()
    days = str(load().collection_days)
    names = {"PREFIX": PREFIX, "DAYS": days, "OWNER/NAME": "octo/digits"} | values
    commands = by_hand("az group create", **names)
    ours, theirs = changing(cloud), [settled(one) for one in commands if one[0] == "az"]
    asked = [given.pop("--parameters") for _, given in (ours[1], theirs[1])]
    assert ours == theirs
    template = json.loads(access.TEMPLATE.read_text())["parameters"]
    more = dict(one.split("=") for one in asked[0] - asked[1])
    assert asked[1] < asked[0]
    assert more == {
        name: str(template[name]["defaultValue"]).lower() if name == "withCluster" else ""
        for name in ("withCluster", "imageBuildCompute")
    }
    (variable,) = (one for one in commands if one[0] == "gh")
    shown = {
        " ".join(variable).replace("NAME", name).replace("VALUE", values[name]) for name in values
    }
    assert shown == {" ".join(one) for one in cloud.calls("gh", "variable", "set")}
    connection.save_connection(None)
    assert files() == before
    run_by_hand(commands, {"dvc", "mkdir", "echo"})
    config, workspace_file = files()
    assert configobj.ConfigObj(config.splitlines()) == configobj.ConfigObj(written[0].splitlines())
    assert json.loads(workspace_file or "") == json.loads(written[1] or "")

    cloud.change(calls=[])
    resources = disconnect.resources("digits")
    (place,) = disconnect.of_type(disconnect.WORKSPACE, resources)
    (vault,) = disconnect.of_type(disconnect.VAULT, resources)
    names |= {"WORKSPACE": place, "VAULT": vault}
    commands = by_hand("az rest --method delete", **names)
    call("azure", "disconnect", *group, "--yes")
    name = vault.rpartition("/")[2]
    theirs = [
        settled([word.replace("NAME", name) for word in one]) for one in commands if one[0] == "az"
    ]
    assert changing(cloud) == theirs
    (variable,) = (one for one in commands if one[0] == "gh")
    shown = {" ".join(variable).replace("NAME", name) for name in values}
    assert shown == {" ".join(one) for one in cloud.calls("gh", "variable", "delete")}
    connection.save_connection(values)
    run_by_hand(commands, {"dvc", "rm"})
    config, workspace_file = files()
    assert configobj.ConfigObj(config.splitlines()) == configobj.ConfigObj(before[0].splitlines())
    assert workspace_file is None


def test_the_template_gets_the_days_that_params_has(cloud: Cloud) -> None:
    call("azure", "connect", *RUN)
    (created,) = cloud.calls("stack", "create")
    assert f"collectionDays={load().collection_days}" in created
    made, _ = deployed(cloud.state)
    (policy,) = (row for row in made.resources.values() if row["type"].endswith("Policies"))
    (rule,) = policy["properties"]["policy"]["rules"]
    assert rule["definition"]["actions"]["baseBlob"]["delete"] == {
        "daysAfterModificationGreaterThan": load().collection_days
    }


def test_a_group_that_was_there_stays_with_its_tags(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.change(groups={"course": {"owner": "somebody"}})
    call("azure", "connect", *RUN)
    call("azure", "disconnect", *GROUP, "--yes")
    assert cloud.state["groups"] == {"course": {"owner": "somebody"}}
    assert "The group course is kept. Other resources in it: none." in capsys.readouterr().out


def test_another_groups_name_removes_nothing(cloud: Cloud) -> None:
    call("azure", "connect", *RUN)
    before = cloud.state["variables"]
    strangers = "/subscriptions/s/resourceGroups/typo/providers/Microsoft.KeyVault/vaults"
    cloud.change(groups=cloud.state["groups"] | {"typo": {}}, vaults=[f"{strangers}/digits-x"])
    typo = ["--resource-group", "typo", "--yes"]
    with pytest.raises(DigitsError, match=r"config.json: connected with the resource group course"):
        call("azure", "disconnect", *typo)
    connection.save_connection(None)  # as in a clone that never got the commit
    with pytest.raises(DigitsError, match=r"GitHub: connected with .*Give --resource-group course"):
        call("azure", "disconnect", *typo)
    assert cloud.state["stack"] and cloud.state["variables"] == before
    cloud.change(gh=False)  # now nothing tells: but there is nothing, and no name is guessed
    call("azure", "disconnect", *typo)
    assert cloud.state["stack"] and cloud.state["purged"] == []
    assert set(cloud.state["groups"]) == {"course", "typo"}
    cased = before | {"AZURE_RESOURCE_GROUP": "Course"}  # Azure's names know no case
    cloud.change(gh=True, variables=cased)
    call("azure", "disconnect", *[*GROUP, *typo[2:]])
    assert (cloud.state["stack"], cloud.state["variables"]) == (None, {})


def test_another_subscription_and_a_refused_purge_are_reported(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    call("azure", "connect", *RUN)
    written = connection.WORKSPACE.read_text()
    connection.WORKSPACE.write_text(written.replace(Deployment.subscription, "another"))
    with pytest.raises(DigitsError, match="az account set --subscription another"):
        call("azure", "disconnect", *GROUP, "--yes")
    connection.WORKSPACE.write_text(written)
    cloud.change(fail={"keyvault purge": "(AuthorizationFailed) not you"})
    call("azure", "disconnect", *GROUP, "--yes")
    assert "keeps its name, because you may not purge it" in capsys.readouterr().out
    assert cloud.state["groups"] == {} and not connection.WORKSPACE.exists()


def test_answers_are_json_whatever_the_code_page_and_the_settings_of_az(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    az = tmp_path / "az"
    answer = '{"id": "1", "tenant": "Universit\\344t"}'
    az.write_text(f"#!/bin/sh\n[ $AZURE_CORE_OUTPUT = json ] && printf '{answer}'\n")
    az.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("AZURE_CORE_OUTPUT", "table")
    for ask in (commands.run, commands.get_or_none, commands.try_json):
        assert ask("az", "account", "show") == {"id": "1", "tenant": "Universit\ufffdt"}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("(AuthorizationFailed) ... roleAssignments/write", "Owner"),
        ("(RoleAssignmentExists) The role exists, ID 1", "exists already"),
        (
            "(RoleAssignmentUpdateNotPermitted) Tenant ID, application ID, principal ID, and scope "
            "are not allowed to be updated.",
            "deleted identity still exist.*principalName; az role assignment delete --ids",
        ),
        ("(ConflictError) A vault with the same name", "keyvault purge"),
        (
            "(DeploymentStackDeploymentFailed) One or more resources could not be deployed. Code: "
            "BadRequest Message: The specified subscription has a total vCPU quota of 0 and cannot "
            "accomodate for at least 1 requested managed compute node which maps to 4 vCPUs.",
            "--without-cluster",
        ),
        ("(SomethingNew) nobody knows", "run it again"),
        ("'stack' is misspelled or not recognized", "az upgrade"),
        ("Please run 'az login' to setup account.", "az login"),
    ],
)
def test_a_failure_of_az_is_reported_with_cause_and_fix(
    cloud: Cloud, text: str, cause: str
) -> None:
    cloud.change(fail={"account show": text})
    with pytest.raises(DigitsError, match=cause) as caught:
        commands.run("az", "account", "show")
    assert text in str(caught.value)


def test_a_connection_that_failed_wrote_nothing_and_goes_on(cloud: Cloud) -> None:
    before = files()
    cloud.change(fail={"stack group create": "(QuotaExceeded) ..."})
    with pytest.raises(DigitsError, match="the quota is used up"):
        call("azure", "connect", *RUN)
    assert files() == before and cloud.state["variables"] == {}
    cloud.change(fail={})
    call("azure", "connect", *GROUP)
    assert files() != before


def test_a_cluster_builds_images_where_the_registry_may_not(cloud: Cloud) -> None:
    cloud.change(fail={"stack group create": "(TasksOperationsNotAllowed) ..."})
    with pytest.raises(DigitsError, match="--image-build-compute cpu-cluster"):
        call("azure", "connect", *RUN)
    cloud.change(fail={})
    call("azure", "connect", *RUN, "--image-build-compute", "cpu-cluster")
    made, _ = deployed(cloud.state)
    (workspace,) = (
        row for row in made.resources.values() if row["type"].endswith("Services/workspaces")
    )
    assert workspace["properties"]["imageBuildCompute"] == "cpu-cluster"


def test_without_quota_for_a_node_all_but_the_cluster_is_made(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    call("azure", "connect", *RUN, "--without-cluster")
    assert "withCluster=false" in capsys.readouterr().out
    made, _ = deployed(cloud.state)
    assert not [place for place in made.resources if "/computes/" in place]
    assert len([call for call in cloud.calls("az") if "create" in call]) == 2
    assert set(cloud.state["variables"]) == set(access.load().variables)
    call("azure", "check")  # raises for what is wrong
    call("azure", "connect", *RUN)  # there is quota now
    made, _ = deployed(cloud.state)
    assert [place for place in made.resources if place.endswith("/computes/cpu-cluster")]


def test_what_is_not_known_is_not_guessed(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DigitsError, match="give --location"):
        call("azure", "connect", *GROUP)
    cloud.change(gh=False)
    given = ("--repository", "octo/digits")
    with pytest.raises(
        DigitsError, match=r"no answer on how it names the tokens of octo/digits\. Fix: gh"
    ):
        call("azure", "connect", *RUN, *given)
    assert not cloud.calls("stack", "create")
    cloud.change(gh=True)
    call("azure", "connect", *RUN, *given)
    (created,) = cloud.calls("stack", "create")
    assert f"subjectPrefix={PREFIX}" in created
    Project(Path()).git("remote", "set-url", "origin", "https://example.org/digits.git")
    with pytest.raises(DigitsError, match="--repository"):
        call("azure", "connect", *GROUP)
    (cloud.bin / "az").unlink()
    monkeypatch.setenv("PATH", str(cloud.bin))
    with pytest.raises(DigitsError, match=r"az: not found\. Install it, then: az login"):
        call("azure", "connect", *GROUP, *given)


def test_a_damaged_repository_is_reported(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    call("azure", "connect", *RUN)
    connection.WORKSPACE.write_text("{}")
    with pytest.raises(DigitsError, match=r"config\.json: expected .* digits azure connect"):
        workspace.connect("azure")
    connection.DVC.write_text("[core]\n")
    with pytest.raises(
        DigitsError, match=r"config: expected the remotes main and review, .* git checkout"
    ):
        call("azure", "connect", *GROUP)
    access.TEMPLATE.write_text("{")
    made = len(cloud.calls("az"))
    with pytest.raises(DigitsError, match=r"git checkout .github.azure\.json"):
        call("azure", "connect", *GROUP)
    assert len(cloud.calls("az")) == made


def test_the_workspace_is_where_the_repository_says(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DigitsError, match=r"AZURE_ML_WORKSPACE: not set; `digits azure connect`"):
        workspace.connect("azure")
    call("azure", "connect", *RUN)
    assert workspace.connect("azure").client.workspace_name == "digits"
    monkeypatch.setenv("AZURE_ML_WORKSPACE", "mine")  # goes first, as in a workflow
    found = workspace.connect("azure").client
    assert (found.workspace_name, found.resource_group_name) == ("mine", "course")
    named = workspace.connect("theirs")
    assert (named.client.workspace_name, named.kind) == ("theirs", "theirs")


def test_the_endpoints_of_a_class_are_listed_and_deleted(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = dict.fromkeys((*connection.SETTINGS, "AZURE_STORAGE_ACCOUNT"), "x")
    connection.save_connection(values)
    names = ["ml101-ana-1234", "ml101-ben-batch-1234", "digits-1234"]
    cloud.change(endpoints=names)
    with pytest.raises(DigitsError, match="would name every endpoint"):
        call("azure", "endpoints", "--prefix", "", "--delete", "--yes")
    call("azure", "endpoints", "--prefix", "ml101")
    assert capsys.readouterr().out.splitlines()[-2:] == names[:2]
    monkeypatch.setattr("builtins.input", lambda _: "no")
    with pytest.raises(DigitsError, match="Nothing was deleted"):
        call("azure", "endpoints", "--prefix", "ml101", "--delete")
    assert cloud.state["endpoints"] == names
    monkeypatch.setattr("builtins.input", lambda _: "ml101")
    call("azure", "endpoints", "--prefix", "ml101", "--delete")
    assert cloud.state["endpoints"] == ["digits-1234"]
    capsys.readouterr()
    call("azure", "endpoints", "--prefix", "ml101", "--delete")
    assert capsys.readouterr().out.endswith("No endpoint begins with ml101.\n")
