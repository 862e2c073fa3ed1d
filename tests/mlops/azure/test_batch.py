"""What `digits score --workspace` knows of the code that the batch endpoint runs."""

import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest

from core.errors import DigitsError
from digits.serving import batch

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from mlops.azure import batch as endpoint_batch


def test_both_sides_use_the_same_names() -> None:
    ours = (endpoint_batch.SCRIPT, endpoint_batch.ERROR, endpoint_batch.SUCCESS)
    assert ours == (batch.SCRIPT, batch.ERROR, batch.SUCCESS)


def test_a_blobs_name_leads_nowhere_else(tmp_path: Path) -> None:
    """Whoever writes the container cannot write this machine's files."""
    names = ["job/../outside/_SUCCESS", "job/../outside/part-000000.parquet"]
    container = Mock()
    container.list_blob_names.return_value = names
    container.download_blob.return_value.readall.return_value = b"1"
    with pytest.raises(DigitsError, match="would be written outside"):
        endpoint_batch.fetch(container, "job/", tmp_path / "out")
    assert not (tmp_path / "outside").exists()
