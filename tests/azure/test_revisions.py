"""What tags record of a model and of the revisions on an endpoint."""

import pytest

from digits.azure.release import pull_request


@pytest.mark.parametrize(
    ("subject", "number"),
    [
        ("Fix issue #5 (#12)", "12"),
        ('Revert "Fix issue #5 (#12)" (#13)', "13"),
        ("Merge pull request #12 from octo/fix-#5", "12"),
        ("See #5", "none"),
        ("Undo (#5) by hand", "none"),
    ],
)
def test_the_pull_request_is_the_one_that_was_merged(subject: str, number: str) -> None:
    assert pull_request(subject) == number
