"""`digits azure connect`: make what reviews and deployments need in an Azure subscription.

It deploys .github/azure.json as a deployment stack, which is Azure's own list of what a template
made, and may be run again at any time. Without --run it prints the commands of `az` instead, and
with --github it sets GitHub's variables and environments instead of printing how.
"""

import shlex
from types import SimpleNamespace
from typing import Any

from core.errors import DigitsError
from mlops.azure import connection
from mlops.setup import az

Command = tuple[str, ...]


def group_command(group: str, location: str) -> Command:
    """Return what makes the resource group; its tag lets `digits azure disconnect` remove it."""
    name = ("--name", group, "--location", location)
    return ("az", "group", "create", *name, "--tags", "made-by=digits")


def stack_command(group: str, prefix: str, person: str, cluster: bool) -> Command:
    """Return what deploys the template. What a later template no longer has is left alone."""
    return (
        *("az", "stack", "group", "create", "--name", connection.STACK, "--resource-group", group),
        *("--template-file", connection.TEMPLATE.as_posix()),
        *("--parameters", f"subjectPrefix={prefix}", f"person={person}"),
        f"withCluster={str(cluster).lower()}",
        *("--action-on-unmanage", "detachAll", "--deny-settings-mode", "none", "--yes"),
        *("--output", "json"),
    )


def variables(stack: Any) -> dict[str, str]:
    """Return a stack's outputs, which are named as GitHub's variables.

    Azure may change the case of their first letters.
    """
    outputs = stack.get("properties", stack).get("outputs") or {}
    found = {name.upper(): str(row["value"]) for name, row in outputs.items()}
    wanted = connection.variables()
    missing = [name for name in wanted if not found.get(name)]
    if missing:
        raise DigitsError(f"the stack has no {', '.join(missing)}; run it again with --run")
    return {name: found[name] for name in wanted}


def build(group: str, location: str | None, prefix: str, cluster: bool) -> dict[str, str]:
    """Make what is missing in Azure; return GitHub's variables."""
    az.must("az", "account", "show", "--output", "json")
    if az.found("az", "group", "show", "--name", group, "--output", "json") is None:
        if location is None:
            raise DigitsError(f"there is no group {group}; give --location, to make it")
        az.must(*group_command(group, location))
    person = az.told(*("az", "ad", "signed-in-user", "show", "--query", "id", "--output", "tsv"))
    if not person:
        print("No person is logged in to Azure, or their id is not told: they get no roles.")
    print("This takes three to ten minutes:", flush=True)
    return variables(az.must(*stack_command(group, prefix, person or "", cluster)))


def environments(repository: str) -> list[Command]:
    """Return what makes the environments, those of main limited to the default branch."""
    told = az.told("gh", "api", f"repos/{repository}", "--jq", ".default_branch")
    branch = told or "DEFAULT_BRANCH"  # for a person to fill in: another would lock main out
    found: list[Command] = []
    jobs = list(connection.jobs(""))
    limited = connection.protected(jobs)
    for name in dict.fromkeys(str(job.environment) for job in jobs):
        place = f"repos/{repository}/environments/{name}"
        put = ("gh", "api", "--method", "PUT", place)
        if name not in limited:
            found.append(put)
            continue
        policy = "deployment_branch_policy"
        rules = (f"{policy}[protected_branches]=false", f"{policy}[custom_branch_policies]=true")
        found.append((*put, "-F", rules[0], "-F", rules[1]))
        listed = az.asked("gh", "api", f"{place}/deployment-branch-policies")
        known = [row["name"] for row in (listed or {}).get("branch_policies", ())]
        if branch not in known:
            post = ("gh", "api", "--method", "POST", f"{place}/deployment-branch-policies")
            found.append((*post, "-f", f"name={branch}"))
    return found


def perform(title: str, steps: list[Command], run: bool) -> None:
    """Run commands, or print them for a person to run."""
    print(title)
    for step in steps:
        if run:
            az.must(*step)
        else:
            print(f"  {shlex.join(step)}")


def main(given: SimpleNamespace) -> None:
    """Connect."""
    group, repository = given.resource_group, given.repository or az.origin()
    cluster = not given.without_cluster
    connection.rights()  # can be read, before anything is made
    if repository is None:
        raise DigitsError("origin is not on GitHub; give --repository OWNER/NAME")
    prefix = given.subject_prefix or az.subject_prefix(repository)
    if prefix is None:
        raise DigitsError(
            f"GitHub does not tell how it names the tokens of {repository}, and a guess would lock "
            "the workflows out: `gh auth login`, or give --subject-prefix (repo:OWNER/NAME, or "
            "repo:OWNER@ID/NAME@ID for a repository made or renamed since July 2026)"
        )
    # Before the identities: an environment without a limit gives its rights to every branch.
    title = "GitHub's environments, of which those of main are for the default branch alone:"
    perform(title, environments(repository), given.github)
    if given.run:
        print(f"Azure, resource group {group}:")
        values = build(group, given.location, prefix, cluster)
    else:
        person = "$(az ad signed-in-user show --query id --output tsv)"
        there = az.asked("az", "group", "show", "--name", group, "--output", "json")
        make = given.location and there is None  # it would replace the tags of one that is there
        first = [group_command(group, given.location)] if make else []
        perform(f"Azure, resource group {group}:", first, False)
        step = shlex.join(stack_command(group, prefix, "PERSON", cluster))
        print("  " + step.replace("PERSON", person))
        show = ("az", "stack", "group", "show", "--name", connection.STACK)
        stack = az.asked(*show, "--resource-group", group, "--output", "json")
        if stack is None:
            print("Run these, then this again; or let --run and --github do it.")
            return
        print("The stack is there already; this follows from it.")
        values = variables(stack)
    changed = connection.keep(values)
    print(f"Written: {', '.join(path.as_posix() for path in changed) or 'nothing new'}; commit it.")
    known = az.github_variables(repository) or {}
    where = ("--repo", repository, "--body")
    new = [key for key in values if known.get(key) != values[key]]
    steps: list[Command] = [("gh", "variable", "set", key, *where, values[key]) for key in new]
    perform("GitHub's variables:", steps, given.github)
    print(
        f"Left to you: reviewers of the environment production (https://github.com/{repository}"
        "/settings/environments), or the variable DEPLOY_BY_HAND=true where your plan has none. "
        "Then `digits azure check`."
    )
