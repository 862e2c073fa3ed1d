"""Known causes of errors of Azure, `az` and `gh`, each with its fix."""

import re
from pathlib import Path

from azure.core.exceptions import (
    ClientAuthenticationError,
    ServiceRequestError,
    ServiceResponseError,
)

from core.errors import DigitsError

LOGS = Path(".deploy")  # where the logs of deployments and jobs that failed are saved
# The last line of a traceback in a deployment's log, except those of the inference server itself.
RAISED = re.compile(
    r"^(?!azureml_inference)(?:[\w.]+\.)?\w*(?:Error|Exception|Exit|Iteration)(?:: .*)?$", re.M
)
CAUSES = [  # pattern of an error's text (case is ignored), cause, fix
    (
        "vCPU quota",
        "the quota is too small for a node",
        "pass --without-cluster, or request quota and run this again",
    ),
    (
        "Not enough quota|OutOfQuota|QuotaExceeded",
        "the quota is used up",
        "request more; or change --location, azure.instance_type or azure.strategy",
    ),
    (
        "TasksOperationsNotAllowed",
        "the subscription may not build images in its registry",
        "have a cluster build them: digits azure connect --image-build-compute cpu-cluster",
    ),
    ("ImageBuild", "the image could not be built", "read the build's log; check azure.image"),
    ("ResourceNotReady", "the server never became healthy", "read the saved logs of score.py"),
    ("NameNotAvailable", "the endpoint's name is taken", "change azure.endpoint"),
    ("AuthenticationToken", "the credentials are not accepted", "log in again (`az login`)"),
    (
        "LinkedAuthorizationFailed",
        "the role on an identity is missing",
        "Managed Identity Operator is needed on the identity `digits-endpoint`",
    ),
    (
        "AuthorizationPermissionMismatch",
        "the role on the storage is missing",
        "Storage Blob Data Contributor is needed on the workspace's own storage account; a new "
        "role takes some minutes",
    ),
    (
        "AuthorizationFailure",
        "the storage account rejects access from here",
        "check its firewall, and your role Storage Blob Data Contributor on it",
    ),
    (
        "AuthorizationFailed.*(autoscalesettings|diagnosticSettings)",
        "the role for settings of Azure Monitor is missing",
        "Monitoring Contributor is needed on the resource group (digits azure connect)",
    ),
    (
        "AuthorizationFailed.*managementPolicies",
        "the role to compare azure.collection_days is missing",
        "Reader is needed on the workspace's own storage account (digits azure connect)",
    ),
    (
        "AuthorizationFailed",
        "the role is missing",
        "AzureML Data Scientist is needed on the workspace; to connect or disconnect it, Owner of "
        "the resource group",
    ),
    ("RoleAssignmentExists", "the role exists already", "az role assignment delete --ids"),
    (
        "RoleAssignmentUpdateNotPermitted",
        "roles of a deleted identity still exist",
        "az role assignment list --all shows them without a principalName; "
        "az role assignment delete --ids",
    ),
    ("Conflict.*vault", "a deleted key vault keeps its name", "az keyvault purge --name"),
    ("Conflict", "another operation is under way", "wait for it, then run this again"),
    (r"\(HTTP 40", "GitHub refuses this", "an administrator of the repository has to run this"),
    ("misspelled or not recognized", "this `az` is too old", "az upgrade, to 2.61 or newer"),
    ("Max retries exceeded", "no answer came", "check the network and run this again"),
    ("timed out", "no answer came in time", "run this again: it continues where it stopped"),
]


def known_cause(text: str) -> tuple[str, str] | None:
    """Return the cause and the fix for an error's text, None when it is unknown."""
    for pattern, cause, fix in CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return cause, fix
    return None


def explain_error(error: BaseException) -> str:
    """Return an error's text with its known cause and the fix."""
    if isinstance(error, DigitsError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    text = " ".join((str(error) or repr(error)).split())
    if known := known_cause(text):
        return f"{': '.join(known)} ({text[:300]})"
    if isinstance(error, ClientAuthenticationError):
        return f"the credentials are not accepted: log in again ({text[:300]})"
    if isinstance(error, (ServiceRequestError, ServiceResponseError)):
        return f"the workspace does not answer: is it reachable? ({text[:300]})"
    return f"{text[:400]}; run this again: it continues where it stopped"
