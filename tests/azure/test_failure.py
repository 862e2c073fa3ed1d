"""What Azure says when something fails, and the cause that is named for it."""

import pytest
from azure.core.exceptions import HttpResponseError

from digits.azure.failure import explained
from digits.azure.standin import FAILURES


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (str(FAILURES["quota"]), "the quota is used up"),
        ("(OutOfQuota) no cores are left", "the quota is used up"),
        ("(AUTHORIZATIONFAILED) the client may not", "the role is missing"),
        (str(FAILURES["image"]), "the image could not be built"),
        ("(Teapot) short and stout", "(Teapot) short and stout; run this again"),
    ],
)
def test_the_known_cause_is_named(said: str, cause: str) -> None:
    assert explained(HttpResponseError(said)).startswith(cause)
