"""`digits doctor` on clones with and without flaws; gh and az are played by scripts."""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Project

with warnings.catch_warnings():  # the SDK's own, of the libraries that it stands on
    warnings.simplefilter("ignore")
    from digits.azure import doctor
from digits.errors import DigitsError

PREFIX = "repo:octo@12/digits@34"
SCRIPT = """#!{python}
import json, sys
answers = json.load(open({answers!r}))
for words, answer in answers.items():
    if all(word in " ".join(sys.argv) for word in words.split()):
        print(json.dumps(answer))
        sys.exit(0)
sys.exit(1)
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A repository that is set up as it should be, and is the current folder."""
    project = Project(tmp_path / "clone")
    shutil.copytree(ROOT / ".github", project.root / ".github")
    (project.root / ".dvc").mkdir()
    for name in ("params.yaml", ".dvc/config"):
        shutil.copyfile(ROOT / name, project.root / name)
    project.git("init", "--quiet")
    project.git("remote", "add", "origin", "git@github.com:octo/digits.git")
    for remote in ("main", "review"):
        project.dvc("remote", "modify", "--local", "--quiet", remote, "account_name", "account")
    variables = [*doctor.VARIABLES, *(row[0] for row in doctor.IDENTITIES)]
    answers: dict[str, Any] = {
        "oidc/customization": {"sub_claim_prefix": PREFIX},
        "variable list": [{"name": name, "value": f"<{name}>"} for name in variables],
    }
    for variable, environment, roles in doctor.IDENTITIES:
        subject = f"{PREFIX}:environment:{environment}"
        answers[f"federated-credential <{variable}>"] = [
            {"subject": subject, "issuer": doctor.ISSUER}
        ]
        answers[f"role <{variable}>"] = [{"roleDefinitionName": role} for role in roles]
    say(project, answers)
    for name in ("gh", "az"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        script = SCRIPT.format(python=sys.executable, answers=str(tmp_path / "answers.json"))
        path.write_text(script)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.chdir(project.root)
    return project


def say(project: Project, answers: dict[str, Any]) -> None:
    (project.root.parent / "answers.json").write_text(json.dumps(answers))


def findings(capsys: pytest.CaptureFixture[str], count: int) -> str:
    """Run it; return what it says is wrong or unknown; fail unless `count` are wrong."""
    if count:
        with pytest.raises(DigitsError, match=f"{count} findings"):
            doctor.main(["--workspace", "local"])
    else:
        doctor.main(["--workspace", "local"])
    return "\n".join(line for line in capsys.readouterr().out.splitlines() if line[:3] != "ok ")


needs_scripts = pytest.mark.skipif(sys.platform == "win32", reason="gh and az are shell scripts")


@needs_scripts
@pytest.mark.slow
def test_a_clone_in_order_and_one_without(
    clone: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings(capsys, 0).count("unknown") == 1  # no stand-in runs, so no quota
    answers = json.loads((clone.root.parent / "answers.json").read_text())
    answers["federated-credential <AZURE_DEPLOYER_CLIENT_ID>"][0]["subject"] = "repo:octo/digits"
    answers["role <AZURE_MAIN_CLIENT_ID>"].pop()
    answers["variable list"] = answers["variable list"][1:]
    say(clone, answers)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "x")
    said = findings(capsys, 4)
    assert f"subject {PREFIX}:environment:production is not among repo:octo/digits" in said
    assert "AZURE_MAIN_CLIENT_ID: lacks" in said
    assert f"gh variable set {doctor.VARIABLES[0]} --body VALUE" in said
    assert "unset AZURE_STORAGE_KEY" in said
    credentials = answers.pop("federated-credential <AZURE_DEPLOYER_CLIENT_ID>")
    managed = "identity federated-credential list --identity-name deployer --resource-group digits"
    answers["identity list <AZURE_DEPLOYER_CLIENT_ID>"] = [
        {"name": "deployer", "resourceGroup": "digits"}
    ]
    answers[managed] = credentials
    say(clone, answers)
    said = findings(capsys, 4)
    assert f"subject {PREFIX}:environment:production is not among repo:octo/digits" in said
    assert "az identity federated-credential create --identity-name deployer" in said
    say(clone, {})
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    said = findings(capsys, 0)
    assert "repo:octo@OWNER_ID/digits@REPOSITORY_ID" in said
    assert "AZURE_DEPLOYER_CLIENT_ID: not known; subject repo:octo/digits:environment" in said


def test_each_identity_has_its_jobs_and_each_such_job_its_identity() -> None:
    assert set(doctor.subjects("repo:o/r")) == {row[1] for row in doctor.IDENTITIES}
    used = " ".join(path.read_text("utf-8") for path in (ROOT / doctor.WORKFLOWS).glob("*.yml"))
    for variable in (*doctor.VARIABLES, *(row[0] for row in doctor.IDENTITIES)):
        assert f"vars.{variable}" in used
    for path in (ROOT / doctor.WORKFLOWS).glob("*.yml"):
        for job in yaml.safe_load(path.read_text("utf-8"))["jobs"].values():
            steps = [step for step in job["steps"] if "azure/login" in step.get("uses", "")]
            for step in steps:
                variable = step["with"]["client-id"].split("vars.")[1].split()[0]
                environments = {row[1] for row in doctor.IDENTITIES if row[0] == variable}
                assert environments == {job["environment"]}
