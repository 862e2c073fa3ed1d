"""Scenarios: the real SDK against the stand-in."""

from light import Deployable, a_deployable, a_standin  # noqa: F401


def test_a_first_deployment(deployable: Deployable) -> None:
    deployable.commit("one")
    assert "to be created" in deployable.deploy("plan")
    deployable.deploy("apply")
    assert "100 %  succeeded     model 1  live" in deployable.deploy("status")
    assert "nothing to change" in deployable.deploy("apply")
