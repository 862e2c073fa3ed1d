"""Section `azure` of params.yaml: Azure's own limits."""

from typing import Any

import frozen
import pytest
from ruamel.yaml import YAML

from core import params
from core.errors import DigitsError
from mlops.azure.settings import Params


@pytest.mark.parametrize(
    ("name", "value"),
    [("endpoint", "a--b"), ("endpoint", "1a"), ("instance_count", 51), ("instance_count", 0)],
)
def test_what_azure_does_not_accept_is_refused(name: str, value: Any) -> None:
    values = YAML(typ="safe").load(frozen.text())
    params.section(Params, values, "azure")
    values["azure"][name] = value
    with pytest.raises(DigitsError, match=rf"azure\.{name}"):
        params.section(Params, values, "azure")
