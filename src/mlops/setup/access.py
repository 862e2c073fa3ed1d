"""Access rights in Azure, from the ARM template: identities, their logins and their roles."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import DigitsError
from mlops.azure.connection import REMOTES

TEMPLATE = Path(".github/azure.json")
# GitHub's environments, and whether they are for the default branch alone. review-lock has the key
# of the GitHub App and no identity in Azure.
ENVIRONMENTS = {"review-read": False, "review-lock": True, "production": True}
MADE = "made-by=digits"  # the tag of a resource group that `digits azure connect` made
STACK = "digits"  # the deployment stack: Azure's own list of what a template made
# The template's lists of roles, in the order of the table in SETUP.md.
GRANTS = ("foundations", "grants", "groupGrants", "personal")


@dataclass(frozen=True)
class Login:
    """An identity that GitHub's jobs use to log in."""

    identity: str
    subject: str  # the job's claim in GitHub's token: its environment or the branch {0}
    unlimited: str  # the same where the plan has no environments

    def claim(self, facts: dict[str, Any]) -> str:
        """Return the claim in a repository: see az.repository_facts."""
        claim = self.subject if facts["environments"] else self.unlimited
        return claim.format(facts["default_branch"])

    @property
    def variable(self) -> str:
        """GitHub's variable with the identity's client id."""
        return f"AZURE_{self.identity.upper()}_CLIENT_ID"


@dataclass(frozen=True)
class Grant:
    """A role that an identity or a person has on the resource with a key of `scopes`."""

    to: str
    role: str
    on: str


@dataclass(frozen=True)
class Access:
    """The template's identities and their roles."""

    identities: tuple[str, ...]
    logins: tuple[Login, ...]
    grants: tuple[Grant, ...]
    variables: tuple[str, ...]  # the outputs, which are named as GitHub's variables

    def roles(self, identity: str, scopes: dict[str, str]) -> set[tuple[str, str]]:
        """Return an identity's roles, each with the id of its resource, in lower case."""
        of = (grant for grant in self.grants if grant.to == identity)
        return {(grant.role, scopes[grant.on].lower()) for grant in of}


def load() -> Access:
    """Read the template; raise DigitsError when it is invalid."""
    try:
        template = json.loads(TEMPLATE.read_text("utf-8"))
        values = template["variables"]
        return Access(
            tuple(values["identities"]),
            tuple(Login(**row) for row in values["logins"]),
            tuple(Grant(**row) for name in GRANTS for row in values[name]),
            tuple(template["outputs"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DigitsError(
            f"{TEMPLATE}: expected identities, logins, {', '.join(GRANTS)} and outputs, found "
            f"{error!r}. In the project's root: git checkout {TEMPLATE}"
        ) from None


def scopes(account: str, workspace: str) -> dict[str, str]:
    """Return the resource ids that roles are assigned on, by the template's naming rules.

    Takes the name of the account that has the containers, and the workspace's id.
    """
    group = workspace.partition("/providers/")[0]
    providers = f"{group}/providers"
    accounts = f"{providers}/Microsoft.Storage/storageAccounts"
    containers = f"{accounts}/{account}/blobServices/default/containers"
    return {
        "group": group,
        **{name: f"{containers}/{name}" for name in REMOTES},
        "storage": f"{accounts}/{account.replace('digits', 'digitsml', 1)}",
        "workspace": workspace,
        "endpoint": f"{providers}/Microsoft.ManagedIdentity/userAssignedIdentities/digits-endpoint",
        "registry": f"{providers}/Microsoft.ContainerRegistry/registries/{account}",
        "vault": f"{providers}/Microsoft.KeyVault/vaults/{account.replace('digits', 'digits-', 1)}",
        "insights": f"{providers}/Microsoft.Insights/components/digits",
    }
