"""What tags record of a model and of the revisions on an endpoint."""

import dataclasses
from types import SimpleNamespace

import frozen
import pytest

from mlops.azure import revisions
from mlops.azure.revisions import DeploymentSpec
from mlops.azure.settings import RECORDED, Params
from mlops.deploy.release import TAG_LENGTH, pull_request

CODE = "0f3e96b8-7239-4796-a627-dc32eea668b3:1"
SPEC = DeploymentSpec("1", CODE, "a8b2ca75f9d8", "Standard_DS2_v2", 1, 5.0, 1, ("model_inputs",), 1)
FULL = DeploymentSpec(
    *("1000", f"{CODE}00", "a8b2ca75f9d8", "Standard_ND96amsr_A100_v4", 100, 179.9876543, 1000),
    collect=("model_inputs", "model_outputs", "model_inputs_outputs", "request", "response"),
    order=10_000,
    scale=(100, 30, 70, 720),
)


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


def put(endpoint: SimpleNamespace, spec: DeploymentSpec, name: str, previous: str | None) -> None:
    """Let a revision go live, as `deploy` does."""
    changed = {**endpoint.tags, **revisions.tags(endpoint, name, spec)}
    changed |= {"live": name, "previous": previous}
    endpoint.tags = {tag: value for tag, value in changed.items() if value is not None}


def test_the_records_of_live_and_previous_outlive_older_and_younger_ones() -> None:
    endpoint = SimpleNamespace(tags={})
    for order in range(revisions.KEPT):
        spec = dataclasses.replace(SPEC, order=order)
        put(endpoint, spec, f"r{order}", f"r{order - 1}" if order else None)
    put(endpoint, revisions.known(endpoint)["r0"], "r0", "r9")  # rolled back to the oldest
    assert len(revisions.known(endpoint)) == revisions.KEPT
    put(endpoint, dataclasses.replace(SPEC, order=10), "r10", "r0")
    assert set(revisions.known(endpoint)) == {"r0", *(f"r{order}" for order in range(2, 11))}


@pytest.mark.parametrize("spec", [SPEC, FULL])
def test_a_record_is_read_as_it_was_written(spec: DeploymentSpec) -> None:
    tags = revisions.tags(SimpleNamespace(tags={}), "r1", spec)
    assert revisions.known(SimpleNamespace(tags=tags)) == {"r1": spec}


def test_what_params_allow_fits_into_a_tag() -> None:
    settings = frozen.section(Params, "azure")
    longest = (*FULL.collect, "x" * (RECORDED - len(FULL.type) - sum(map(len, FULL.collect)) - 18))
    full = dataclasses.replace(settings, instance_type=FULL.type, collections=longest)
    spec = dataclasses.replace(FULL, collect=full.collections)
    (record,) = revisions.tags(SimpleNamespace(tags={}), "r1", spec).values()
    assert record and TAG_LENGTH - 20 < len(record) <= TAG_LENGTH
    with pytest.raises(ValueError, match="too long for the record"):
        dataclasses.replace(full, collections=(*longest, "y"))
