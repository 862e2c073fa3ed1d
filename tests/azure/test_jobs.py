"""`digits train` on the stand-in, by the real SDK over the wire."""

import pytest
from jobs_project import Trainable, a_trainable, wait_for  # noqa: F401
from light import StandIn, a_standin  # noqa: F401

pytestmark = pytest.mark.slow


def test_what_a_job_made_is_restored_here(trainable: Trainable) -> None:
    trainable.commit(32)
    said = trainable.digits("train")
    print(said)
    assert "training on ten digits" in said
    assert "New: train" in said
    output = trainable.dvc("repro")
    assert trainable.stages_run(output) == []
    assert "Stage 'train' is cached" in output
    assert "'batch_size': 32" in (trainable.root / "data/model/model.txt").read_text()
