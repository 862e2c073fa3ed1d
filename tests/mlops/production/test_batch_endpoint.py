"""What `digits score --workspace` knows of the code that the batch endpoint runs."""

import warnings

from digits.serving import batch

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.production import batch_endpoint


def test_both_sides_use_the_same_names() -> None:
    ours = (batch_endpoint.SCRIPT, batch_endpoint.ERROR, batch_endpoint.SUCCESS)
    assert ours == (batch.SCRIPT, batch.ERROR, batch.SUCCESS)
