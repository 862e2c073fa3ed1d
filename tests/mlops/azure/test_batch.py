"""What `digits score --workspace` knows of the code that the batch endpoint runs."""

import warnings

from digits.serving import batch

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.azure import batch as endpoint_batch


def test_both_sides_use_the_same_names() -> None:
    ours = (endpoint_batch.SCRIPT, endpoint_batch.ERROR, endpoint_batch.SUCCESS)
    assert ours == (batch.SCRIPT, batch.ERROR, batch.SUCCESS)
