"""Connect the repository with Azure: from a subscription to reviews and deployments.

It deploys .github/azure.json as a deployment stack, which is Azure's own list of what a template
made, and writes the stack's outputs into GitHub's variables and the repository. It may be run again
at any time; SETUP.md has the same commands to run by hand.
"""

from types import SimpleNamespace
from typing import Any

from core.errors import DigitsError
from mlops.azure import connection
from mlops.azure.settings import load
from mlops.setup import access, az


def limit_environments(repository: str, branch: str) -> None:
    """Create GitHub's environments; restrict those of main to the default branch."""
    for name, protected in access.ENVIRONMENTS.items():
        place = f"repos/{repository}/environments/{name}"
        put = ("gh", "api", "--method", "PUT", place)
        if not protected:
            az.run(*put)
            continue
        policy = "deployment_branch_policy"
        rules = (f"{policy}[protected_branches]=false", f"{policy}[custom_branch_policies]=true")
        az.run(*put, "-F", rules[0], "-F", rules[1])
        place += "/deployment-branch-policies"
        if branch not in [row["name"] for row in az.run("gh", "api", place)["branch_policies"]]:
            az.run("gh", "api", "--method", "POST", place, "-f", f"name={branch}")


def deploy_stack(group: str, prefix: str, *more: str) -> dict[str, str]:
    """Deploy the template; return its outputs, which are named as GitHub's variables.

    `more` are parameters of the template, NAME=VALUE. Resources that a later template lacks are not
    deleted. Azure may change the case of the outputs' first letters.
    """
    person = az.try_json("az", "ad", "signed-in-user", "show", "--query", "id")
    if not person:
        print("Azure does not report who is logged in, so no person gets roles.")
    days = load().collection_days or 0
    print("This takes three to ten minutes:", flush=True)
    stack: Any = az.run(
        *("az", "stack", "group", "create", "--name", access.STACK, "--resource-group", group),
        *("--template-file", access.TEMPLATE.as_posix()),
        *("--parameters", f"subjectPrefix={prefix}", f"person={person or ''}"),
        *(f"collectionDays={days}", *more),
        *("--action-on-unmanage", "detachAll", "--deny-settings-mode", "none", "--yes"),
    )
    outputs = (stack or {}).get("properties", stack or {}).get("outputs") or {}
    found = {name.upper(): str(row["value"]) for name, row in outputs.items()}
    names = access.load().variables
    if missing := [name for name in names if not found.get(name)]:
        raise DigitsError(f"The stack has no {', '.join(missing)}. Run this again.")
    return {name: found[name] for name in names}


def main(given: SimpleNamespace) -> None:
    """Connect the repository."""
    group, repository = given.resource_group, given.repository or az.origin()
    access.load()  # fail early if it is invalid
    if repository is None:
        raise DigitsError("origin is not on GitHub: give --repository OWNER/NAME")
    prefix = az.subject_prefix(repository)
    if prefix is None:
        raise DigitsError(
            f"GitHub: no answer on how it names the tokens of {repository}. Fix: gh auth login"
        )
    az.run("az", "account", "show")
    facts = az.repository_facts(repository)
    # Before the identities: an environment without a limit gives its rights to every branch.
    if facts["environments"]:
        limit_environments(repository, facts["default_branch"])
    else:
        print("A private repository on the plan Free has no environments: the branch is trusted.")
    if az.get_or_none("az", "group", "show", "--name", group) is None:
        if given.location is None:
            raise DigitsError(f"There is no resource group {group}. To make it: give --location")
        place = ("--name", group, "--location", given.location)
        az.run("az", "group", "create", *place, "--tags", access.MADE)
    cluster = f"withCluster={str(not given.without_cluster).lower()}"
    images = f"imageBuildCompute={given.image_build_compute}"
    jobs = (f"branch={facts['default_branch']}", f"environments={facts['environments']}".lower())
    values = deploy_stack(group, prefix, cluster, images, *jobs)
    files = ", ".join(path.as_posix() for path in connection.save_connection(values))
    print(f"Written: {files}; commit it." if files else "Written: nothing new.")
    known = az.github_variables(repository) or {}
    for name, value in values.items():
        if known.get(name) != value:
            az.run("gh", "variable", "set", name, "--repo", repository, "--body", value)
    print(
        f"Next, add reviewers to the environment production (https://github.com/{repository}"
        "/settings/environments), or set the variable DEPLOY_BY_HAND=true if your plan has none. "
        "Then: digits azure check"
    )
