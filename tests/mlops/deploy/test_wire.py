"""Whatever call of a command is refused or lost: what is live answers, a second run mends.

The calls are those that an undisturbed run makes; of the same one many times over, as for the end
of an operation, the first and the last.
"""

from collections.abc import Callable

import pytest
from light import Deployable, StandIn, a_deployable, a_standin  # noqa: F401
from wire import Wire, tapped

pytestmark = pytest.mark.prove
KINDS = {"management", "blob", "scoring"}


def numbers(calls: list[tuple[str, str]], kinds: set[str]) -> list[int]:
    """Return which calls are to be broken."""
    chosen = []
    for number, call in enumerate(calls):
        if call[0] in kinds and not (
            calls[number - 1 : number] == calls[number + 1 : number + 2] == [call]
        ):
            chosen.append(number)
    return chosen


def attempt(deployable: Deployable, wire: Wire, *command: str) -> tuple[int, str]:
    """Run a command over a wire."""
    with tapped(wire):
        return deployable.attempt(*command)


def disturb(
    prepare: Callable[[], None],
    run: Callable[[Wire], tuple[int, str]],
    check: Callable[[bool, str], None],
    kinds: set[str] = KINDS,
) -> None:
    """Break each call of `run` in turn, each in one of both ways, after `prepare`; `check` then."""
    prepare()
    whole = Wire()
    code, output = run(whole)
    assert code == 0, output
    check(True, output)
    assert {"management", "blob"} <= {kind for kind, _ in whole.calls}
    chosen = numbers(whole.calls, kinds)
    missed = 0  # since an operation may end after fewer questions than in the run before
    for place, number in enumerate(chosen):
        wire = Wire(number, ("refuse", "lose")[place % 2])
        prepare()
        code, output = run(wire)
        missed += len(wire.calls) <= number
        what = f"{wire.how} call {number}, {' '.join(whole.calls[number])}: {output}"
        try:
            check(code == 0, what)
        except Exception as error:
            error.add_note(what)
            raise
    assert missed <= len(chosen) / 4


def test_rollback(deployable: Deployable, standin: StandIn) -> None:
    one = deployable.commit("one")[:12]
    deployable.deploy("apply")
    (first,) = deployable.serving(standin)["traffic"]
    two = deployable.commit("two")[:12]
    deployable.deploy("apply")
    (second,) = deployable.serving(standin)["traffic"]

    def prepare() -> None:
        if first in deployable.serving(standin)["traffic"]:
            deployable.deploy("rollback", second, "--wait")

    def check(done: bool, what: str) -> None:
        assert deployable.version(standin) == (one if done else two), what
        assert list(deployable.serving(standin)["traffic"].values()) == [100], what
        if not done:
            assert "NOT" not in what
            deployable.deploy("rollback", first, "--wait")
            assert deployable.version(standin) == one, what

    disturb(prepare, lambda wire: attempt(deployable, wire, "rollback", first), check)


@pytest.mark.parametrize("strategy", ["blue_green", "in_place"])
def test_apply(deployable: Deployable, standin: StandIn, strategy: str) -> None:
    deployable.set(strategy=strategy)
    known = []
    for model in ("first", "second"):  # so that each apply removes what the last one kept
        known.append(deployable.commit(model)[:12])
        deployable.deploy("apply")

    def prepare() -> None:
        known.append(deployable.commit(f"model{len(known)}")[:12])

    def check(done: bool, what: str) -> None:
        assert deployable.version(standin) == known[-1 if done else -2], what
        assert list(deployable.serving(standin)["traffic"].values()) == [100], what
        if not done:
            assert "NOT" not in what
            deployable.deploy("apply", "--wait")
            assert deployable.version(standin) == known[-1], what

    # Each management call of blue_green has its faults in test_faults.py.
    kinds = KINDS if strategy == "in_place" else KINDS - {"management"}
    disturb(prepare, lambda wire: attempt(deployable, wire, "apply"), check, kinds=kinds)


def gone(deployable: Deployable, standin: StandIn) -> bool:
    """Return whether nothing is left but code: no endpoint, and no asset of its deployments."""
    workspace = deployable.endpoint.rpartition("/")[0]
    kinds = ("onlineEndpoints", "models", "environments", "data")
    return not any(standin.call("GET", f"{workspace}/{kind}")["value"] for kind in kinds)


def test_the_first_apply_and_destroy(deployable: Deployable, standin: StandIn) -> None:
    made: list[str] = []

    def nothing() -> None:
        deployable.deploy("destroy", "--wait")
        assert gone(deployable, standin)
        made.append(deployable.commit(f"model{len(made)}")[:12])

    def after_apply(done: bool, what: str) -> None:
        if not done:
            assert "NOT" not in what
            deployable.deploy("apply", "--wait")
        assert deployable.version(standin) == made[-1], what
        assert list(deployable.serving(standin)["traffic"].values()) == [100], what

    def something() -> None:
        if gone(deployable, standin):
            made.append(deployable.commit(f"model{len(made)}")[:12])
        deployable.deploy("apply", "--wait")

    def after_destroy(done: bool, what: str) -> None:
        if not done:
            deployable.deploy("destroy", "--wait")
        assert gone(deployable, standin), what

    disturb(nothing, lambda wire: attempt(deployable, wire, "apply"), after_apply)
    disturb(something, lambda wire: attempt(deployable, wire, "destroy"), after_destroy)


def test_pause_and_resume(deployable: Deployable, standin: StandIn) -> None:
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")

    def paused() -> bool:
        return ", paused" in deployable.deploy("status")

    def running() -> None:
        if paused():
            deployable.deploy("resume", "--wait")
        assert deployable.version(standin) == version

    def stopped() -> None:
        if not paused():
            deployable.deploy("pause", "--wait")

    def after_pause(done: bool, what: str) -> None:
        if not done:
            assert paused() or deployable.version(standin) == version, what
            deployable.deploy("pause", "--wait")
        assert "100 %" not in deployable.deploy("status"), what
        assert "succeeded" not in deployable.deploy("status"), what

    def after_resume(done: bool, what: str) -> None:
        if not done:
            assert paused(), what
            deployable.deploy("resume", "--wait")
        assert deployable.version(standin) == version, what

    disturb(running, lambda wire: attempt(deployable, wire, "pause"), after_pause)
    disturb(stopped, lambda wire: attempt(deployable, wire, "resume"), after_resume)
