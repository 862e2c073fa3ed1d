"""Connect the repository with Azure: from a subscription to reviews and deployments.

It deploys .github/azure.json as a deployment stack, which is Azure's own list of what a template
made, and may be run again at any time. Without --run it prints the commands of `az` instead, and
with --github it sets GitHub's variables and environments instead of printing how.
"""

import shlex
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from core.errors import DigitsError
from mlops.azure import connection
from mlops.setup import access, az

Command = tuple[str, ...]


def group_command(group: str, location: str) -> Command:
    """Return what makes the resource group; its tag lets `digits azure disconnect` remove it."""
    name = ("--name", group, "--location", location)
    return ("az", "group", "create", *name, "--tags", "made-by=digits")


def stack_command(group: str, prefix: str, person: str, cluster: bool, images: str) -> Command:
    """Return what deploys the template. What a later template no longer has is left alone.

    `images` names the cluster that builds images, if the registry may not.
    """
    return (
        *("az", "stack", "group", "create", "--name", access.STACK, "--resource-group", group),
        *("--template-file", access.TEMPLATE.as_posix()),
        *("--parameters", f"subjectPrefix={prefix}", f"person={person}"),
        *(f"withCluster={str(cluster).lower()}", f"imageBuildCompute={images}"),
        *("--action-on-unmanage", "detachAll", "--deny-settings-mode", "none", "--yes"),
    )


def variables(stack: Any) -> dict[str, str]:
    """Return a stack's outputs, which are named as GitHub's variables.

    Azure may change the case of their first letters.
    """
    outputs = stack.get("properties", stack).get("outputs") or {}
    found = {name.upper(): str(row["value"]) for name, row in outputs.items()}
    names = access.load().variables
    missing = [name for name in names if not found.get(name)]
    if missing:
        raise DigitsError(f"The stack has no {', '.join(missing)}. Run this again with --run.")
    return {name: found[name] for name in names}


def build(group: str, location: str | None, prefix: str, cluster: bool, images: str) -> Any:
    """Make what is missing in Azure; return the stack."""
    az.run("az", "account", "show")
    if az.get_or_none("az", "group", "show", "--name", group) is None:
        if location is None:
            raise DigitsError(f"There is no resource group {group}. To make it: give --location")
        az.run(*group_command(group, location))
    person = az.try_json("az", "ad", "signed-in-user", "show", "--query", "id")
    if not person:
        print("Azure does not say which person is logged in: nobody gets a person's roles.")
    print("This takes three to ten minutes:", flush=True)
    return az.run(*stack_command(group, prefix, person or "", cluster, images))


def show(group: str, location: str | None, prefix: str, cluster: bool, images: str) -> Any:
    """Print what `build` would run; return the stack if there is one already."""
    # Made again, a group that exists would lose its tags.
    if location and az.try_json("az", "group", "show", "--name", group) is None:
        print(f"  {shlex.join(group_command(group, location))}")
    person = "$(az ad signed-in-user show --query id --output tsv)"
    command = shlex.join(stack_command(group, prefix, "PERSON", cluster, images))
    print(f"  {command.replace('PERSON', person)}")
    place = ("--name", access.STACK, "--resource-group", group)
    return az.try_json("az", "stack", "group", "show", *place)


def environments(repository: str) -> list[Command]:
    """Return what makes the environments, those of main limited to the default branch."""
    default = az.try_text("gh", "api", f"repos/{repository}", "--jq", ".default_branch")
    branch = default or "DEFAULT_BRANCH"  # to be filled in: another would lock main out
    commands: list[Command] = []
    for name, protected in access.ENVIRONMENTS.items():
        place = f"repos/{repository}/environments/{name}"
        put = ("gh", "api", "--method", "PUT", place)
        if not protected:
            commands.append(put)
            continue
        policy = "deployment_branch_policy"
        rules = (f"{policy}[protected_branches]=false", f"{policy}[custom_branch_policies]=true")
        commands.append((*put, "-F", rules[0], "-F", rules[1]))
        place += "/deployment-branch-policies"
        policies = az.try_json("gh", "api", place) or {}
        if branch not in [row["name"] for row in policies.get("branch_policies", ())]:
            commands.append(("gh", "api", "--method", "POST", place, "-f", f"name={branch}"))
    return commands


def run_or_print(title: str, commands: Iterable[Command], run: bool) -> None:
    """Run commands, or print them for a person to run."""
    print(title)
    for command in commands:
        if run:
            az.run(*command)
        else:
            print(f"  {shlex.join(command)}")


def main(given: SimpleNamespace) -> None:
    """Connect the repository."""
    group, repository = given.resource_group, given.repository or az.origin()
    access.load()  # can be read, before anything is made
    if repository is None:
        raise DigitsError("origin is not on GitHub: give --repository OWNER/NAME")
    prefix = given.subject_prefix or az.subject_prefix(repository)
    if prefix is None:
        raise DigitsError(
            f"GitHub does not say how it names the tokens of {repository}, and a guess would lock "
            "the workflows out. Fix: gh auth login, or --subject-prefix (repo:OWNER/NAME, or "
            "repo:OWNER@ID/NAME@ID for a repository made or renamed since July 2026)"
        )
    # Before the identities: an environment without a limit gives its rights to every branch.
    title = "GitHub's environments, of which those of main are for the default branch alone:"
    run_or_print(title, environments(repository), given.github)
    print(f"Azure, resource group {group}:")
    make = build if given.run else show
    cluster, images = not given.without_cluster, given.image_build_compute
    stack = make(group, given.location, prefix, cluster, images)
    if stack is None:
        print("Run these, then this again; or let --run and --github do it.")
        return
    values = variables(stack)
    changed = connection.save_connection(values)
    files = ", ".join(path.as_posix() for path in changed)
    print(f"Written: {files}; commit it." if files else "Written: nothing new.")
    known = az.github_variables(repository) or {}
    place = ("--repo", repository, "--body")
    new = [key for key in values if known.get(key) != values[key]]
    commands = [("gh", "variable", "set", key, *place, values[key]) for key in new]
    run_or_print("GitHub's variables:", commands, given.github)
    print(
        f"Left to you: reviewers of the environment production (https://github.com/{repository}"
        "/settings/environments), or the variable DEPLOY_BY_HAND=true where your plan has none. "
        "Then: digits azure check"
    )
