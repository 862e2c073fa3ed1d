"""What went wrong on Azure, in words: the known cause and the mend."""

import re
from pathlib import Path

from azure.core.exceptions import (
    ClientAuthenticationError,
    ServiceRequestError,
    ServiceResponseError,
)

from core.errors import DigitsError

LOGS = Path(".deploy")  # where the logs of deployments and jobs that failed are saved
CAUSES = [  # a pattern of an error's text, in any case; the cause, the mend
    (
        "Not enough quota|OutOfQuota",
        "the quota is used up",
        "ask for more, a smaller azure.instance_type, or in_place",
    ),
    ("ImageBuild", "the image could not be built", "see the build's log; is azure.image right?"),
    ("ResourceNotReady", "the server never became healthy", "read the saved logs: score.py's init"),
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
        "the storage account lets nobody in from here",
        "see its firewall, and Storage Blob Data Contributor on it",
    ),
    (
        "AuthorizationFailed",
        "the role is missing",
        "AzureML Data Scientist is needed on the workspace",
    ),
    ("Conflict", "another operation is under way", "wait for it, then run this again"),
    ("timed out", "no answer came in time", "run this again: it goes on where it stopped"),
]


def explained(error: BaseException) -> str:
    """Return an error with its known cause and the mend."""
    if isinstance(error, DigitsError):
        return str(error)
    text = " ".join((str(error) or repr(error)).split())
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    for mark, cause, mend in CAUSES:
        if re.search(mark, text, re.IGNORECASE):
            return f"{cause}: {mend} ({text[:300]})"
    if isinstance(error, ClientAuthenticationError):
        return f"the credentials are not accepted: log in again ({text[:300]})"
    if isinstance(error, (ServiceRequestError, ServiceResponseError)):
        return f"the workspace does not answer: is it reachable? ({text[:300]})"
    return f"{text[:400]}; run this again: it goes on where it stopped"
