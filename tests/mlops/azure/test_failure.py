"""What Azure says when something fails, and the cause that is named for it."""

import pytest
from azure.core.exceptions import HttpResponseError
from controls import FAILURES

from mlops.azure.errors import RAISED, explain_error


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (str(FAILURES["quota"]), "the quota is used up"),
        ("(OutOfQuota) no cores are left", "the quota is used up"),
        ("(AUTHORIZATIONFAILED) the client may not", "the role is missing"),
        (
            "(LinkedAuthorizationFailed) The client 'x' has permission to perform action "
            "'Microsoft.MachineLearningServices/workspaces/onlineEndpoints/write'; however, it "
            "does not have permission to perform action "
            "'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action'",
            "the role on an identity is missing: Managed Identity Operator",
        ),
        (
            "This request is not authorized to perform this operation using this permission.\n"
            "ErrorCode:AuthorizationPermissionMismatch",
            "the role on the storage is missing: Storage Blob Data Contributor",
        ),
        (
            "This request is not authorized to perform this operation.\n"
            "ErrorCode:AuthorizationFailure",
            "the storage account rejects access from here: check its firewall",
        ),
        (str(FAILURES["image"]), "the image could not be built"),
        ("(Conflict) it is being updated", "another operation is under way"),
        ("(Teapot) short and stout", "(Teapot) short and stout; run this again"),
    ],
)
def test_the_known_cause_is_named(said: str, cause: str) -> None:
    assert explain_error(HttpResponseError(said)).startswith(cause)


@pytest.mark.parametrize("line", ["ValueError: " + "x" * 500, "StopIteration", "a.b.FooError: no"])
def test_the_exception_of_a_deployment_is_found_in_its_log(line: str) -> None:
    log = f"Traceback (most recent call last):\n  raise it\n{line}\n2026 workers stop\n"
    assert RAISED.findall(log) == [line]
