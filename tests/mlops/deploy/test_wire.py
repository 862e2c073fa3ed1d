"""Whatever call of a command is refused or lost: what is live answers, a second run succeeds.

The calls are those that an undisturbed run makes. Sampled, with a seed, are for each command: of
each kind of call that writes and of each kind that asks for a score one call, and one call each of
a third of the kinds that read; a kind is the method and the path without names. For the first
apply, which writes as the one in place does, it is half of the kinds that write. Half of the calls
are refused, of the others the answer is lost. --all-cases breaks every call; of the same one many
times over, as for the end of an operation, the first and the last.
"""

import contextlib
import math
import random
import re
from collections.abc import Callable

import pytest
from light import Deployable, Emulator, remaining
from wire import Wire, tapped

pytestmark = pytest.mark.prove
KINDS = {"management", "blob", "scoring"}
NAMES = r"(?<=/)(?:[\w-]*[0-9a-f]{8}[\w-]*|\d+|[\w-]+\.\w+|digits)(?=/|$)"  # parts of a path


@pytest.fixture
def seed(request: pytest.FixtureRequest, all_cases: bool) -> str | None:
    """The seed of a test's sample, which differs from one command to the next; None for all."""
    return None if all_cases else request.node.name


def numbers(calls: list[tuple[str, str]], kinds: set[str]) -> list[int]:
    """Return which calls are to be broken."""
    chosen = []
    for number, call in enumerate(calls):
        if call[0] in kinds and not (
            calls[number - 1 : number] == calls[number + 1 : number + 2] == [call]
        ):
            chosen.append(number)
    return chosen


def kind_of(call: tuple[str, str]) -> tuple[str, str, str]:
    """Return what a call has in common with those of the same kind: channel, method, path."""
    method, _, url = call[1].rpartition(" ")
    return call[0], method, re.sub(NAMES, "*", re.sub(r"^\w+://[^/]+", "", url))


def sample(
    calls: list[tuple[str, str]], chosen: list[int], seed: str, writing: float = 1.0
) -> list[int]:
    """Return one number of each kind of call: of a share of those that write or score.

    Of those that read, of a third of that share.
    """
    rng = random.Random(seed)
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for number in chosen:
        kinds.setdefault(kind_of(calls[number]), []).append(number)
    reads = [kind for kind in kinds if kind[1] in ("GET", "HEAD")]
    writes = [kind for kind in kinds if kind not in reads]
    taken = rng.sample(writes, math.ceil(writing * len(writes)))
    taken += rng.sample(reads, math.ceil(writing * len(reads) / 3))
    return sorted(rng.choice(kinds[kind]) for kind in taken)


def attempt(deployable: Deployable, wire: Wire, *command: str) -> tuple[int, str]:
    """Run a command over a wire."""
    with tapped(wire):
        return deployable.attempt(*command)


def disturb(
    prepare: Callable[[], None],
    run: Callable[[Wire], tuple[int, str]],
    check: Callable[[bool, str], None],
    sampled: str | None,
    kinds: set[str] = KINDS,
    writing: float = 1.0,
) -> None:
    """Break calls of `run` in turn, each in one of both ways, after `prepare`; `check` then.

    sampled: the seed of the sample, or None for all calls
    writing: the share of the kinds that write which is sampled
    """
    prepare()
    whole = Wire()
    code, output = run(whole)
    assert code == 0, output
    check(True, output)
    assert {"management", "blob"} <= {kind for kind, _ in whole.calls}
    chosen = numbers(whole.calls, kinds)
    if sampled is not None:
        chosen = sample(whole.calls, chosen, sampled, writing)
    print(f"{len(chosen)} of {len(whole.calls)} calls are broken in turn")
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


def test_a_sample_has_every_kind_of_call_that_writes() -> None:
    host, blob = "https://127.0.0.1:1", "http://127.0.0.1:2"
    calls = [
        ("management", f"{method} {host}/{path}")
        for method, path in (
            ("PUT", "models/digits/versions/1"),
            ("PUT", "models/digits/versions/2"),
            ("PUT", "onlineEndpoints/digits-3aa2a584"),
            ("GET", "onlineEndpoints/digits-3aa2a584"),
            ("GET", "operations/30e49b4d-ad75-43d1-ad6e-82ae4d24cc4f"),
            ("GET", "operations/e15a0c16-93ee-45e2-aa89-0812349f5514"),
        )
    ]
    calls += [("blob", f"PUT {blob}/a/{name}.json") for name in ("answers", "manifest")]
    kinds = [kind_of(calls[number]) for number in sample(calls, list(range(len(calls))), "one")]
    assert len(kinds) == len(set(kinds)) == 4
    assert {kind for kind in kinds if kind[1] == "PUT"} == {
        ("management", "PUT", "/models/*/versions/*"),
        ("management", "PUT", "/onlineEndpoints/*"),
        ("blob", "PUT", "/a/*"),
    }


def test_rollback(deployable: Deployable, emulator: Emulator, seed: str | None) -> None:
    one = deployable.commit("one")[:12]
    deployable.deploy("apply")
    (first,) = deployable.serving(emulator)["traffic"]
    two = deployable.commit("two")[:12]
    deployable.deploy("apply")
    (second,) = deployable.serving(emulator)["traffic"]

    def prepare() -> None:
        if first in deployable.serving(emulator)["traffic"]:
            deployable.deploy("rollback", second, "--wait")

    def check(done: bool, what: str) -> None:
        assert deployable.version(emulator) == (one if done else two), what
        assert list(deployable.serving(emulator)["traffic"].values()) == [100], what
        if not done:
            assert "NOT" not in what
            deployable.deploy("rollback", first, "--wait")
            assert deployable.version(emulator) == one, what

    disturb(prepare, lambda wire: attempt(deployable, wire, "rollback", first), check, seed)


@pytest.mark.parametrize(
    "strategy", ["blue_green", pytest.param("in_place", marks=pytest.mark.prove(minutes=3.5))]
)
def test_apply(deployable: Deployable, emulator: Emulator, strategy: str, seed: str | None) -> None:
    deployable.set(strategy=strategy)
    known = []
    for model in ("first", "second"):  # so that each apply removes what the last one kept
        known.append(deployable.commit(model)[:12])
        deployable.deploy("apply")

    def prepare() -> None:
        known.append(deployable.commit(f"model{len(known)}")[:12])

    def check(done: bool, what: str) -> None:
        assert deployable.version(emulator) == known[-1 if done else -2], what
        assert list(deployable.serving(emulator)["traffic"].values()) == [100], what
        if not done:
            assert "NOT" not in what
            deployable.deploy("apply", "--wait")
            assert deployable.version(emulator) == known[-1], what

    # Each management call of blue_green has its faults in test_faults.py.
    kinds = KINDS if strategy == "in_place" else KINDS - {"management"}
    disturb(prepare, lambda wire: attempt(deployable, wire, "apply"), check, seed, kinds)


def gone(deployable: Deployable, emulator: Emulator) -> bool:
    """Return whether nothing is left but code and what is archived, for Azure deletes neither."""
    return not [place for place in remaining(deployable, emulator) if "/codes/" not in place]


@pytest.mark.prove(minutes=2.5)
def test_the_first_apply(deployable: Deployable, emulator: Emulator, seed: str | None) -> None:
    made: list[str] = []

    def nothing() -> None:
        deployable.deploy("destroy", "--wait")
        assert gone(deployable, emulator)
        made.append(deployable.commit(f"model{len(made)}")[:12])

    def after_apply(done: bool, what: str) -> None:
        if not done:
            assert "NOT" not in what
            deployable.deploy("apply", "--wait")
        assert deployable.version(emulator) == made[-1], what
        assert list(deployable.serving(emulator)["traffic"].values()) == [100], what

    disturb(
        nothing, lambda wire: attempt(deployable, wire, "apply"), after_apply, seed, writing=0.5
    )


@pytest.mark.prove(minutes=3)
def test_destroy(deployable: Deployable, emulator: Emulator, seed: str | None) -> None:
    made: list[str] = []

    def something() -> None:
        if gone(deployable, emulator):
            made.append(deployable.commit(f"model{len(made)}")[:12])
        deployable.deploy("apply", "--wait")

    def after_destroy(done: bool, what: str) -> None:
        if not done:
            deployable.deploy("destroy", "--wait")
        assert gone(deployable, emulator), what

    disturb(something, lambda wire: attempt(deployable, wire, "destroy"), after_destroy, seed)


class Interrupted(Wire):
    """A wire on which Ctrl-C comes after one of the calls that change something."""

    def broken(self, kind: str, line: str) -> bool:
        """Count the calls that change something and are not the lease's."""
        changes = line.startswith(("PUT", "DELETE")) and "/digits-leases/" not in line
        return changes and super().broken(kind, line)


def add_batch(deployable: Deployable, emulator: Emulator, name: str) -> None:
    """Create a batch endpoint with a deployment that has a code of its own."""
    workspace = deployable.endpoint.removesuffix("/onlineEndpoints")
    code = f"{workspace}/codes/batch/versions/1"
    emulator.call("PUT", code, {"properties": {"codeUri": "https://a/b/serving"}})
    path = f"{workspace}/batchEndpoints/{name}"
    emulator.call("PUT", path, {"location": "x", "properties": {"authMode": "AADToken"}})
    asked = {"compute": "cluster", "codeConfiguration": {"codeId": code}}
    made = emulator.call("PUT", f"{path}/deployments/batch", {"location": "x", "properties": asked})
    assert "error" not in made, made


def test_destroy_that_is_interrupted_after_every_step(
    deployable: Deployable, emulator: Emulator
) -> None:
    """Each run gets one call further than the one before; data is deleted before assets."""
    deployable.commit("one")
    deployable.deploy("apply")
    name = deployable.serving(emulator)["name"]
    batch = name.replace("digits-", "digits-batch-")
    add_batch(deployable, emulator, batch)
    kept = [f"modelDataCollector/{name}/rows.jsonl", f"labels/{name}/rows.jsonl"]
    kept.append(f"scoring/{batch}/run/input/a.parquet")
    ended: list[tuple[str, str]] = []  # the call after which each run was interrupted
    further = 1  # calls before the one that is interrupted: the traffic is set in each run
    with emulator.blobs() as container:
        for blob in kept:
            container.upload_blob(blob, b"{}")
        for number in range(99):
            before = remaining(deployable, emulator)
            there = [blob for blob in kept if container.get_blob_client(blob).exists()]
            if any("/deployments/" in path or "/batchendpoints/" in path for path in before):
                assert len(there) == 3  # what costs money goes first, then people's data
            if there:
                assert any("/models/" in path for path in before)
            # One further also where a call changes nothing, such as a deletion that is refused.
            again = ended[-2:-1] == ended[-1:]
            further = further + 1 if again else 1
            wire = Interrupted(min(number, further), "interrupt")
            with contextlib.suppress(KeyboardInterrupt):
                code, output = attempt(deployable, wire, "destroy", "--wait")
                break
            ended.append(wire.calls[-1])
            assert len(remaining(deployable, emulator)) <= len(before)
    print(f"interrupted {len(ended)} times, after {len(set(ended))} calls that differ")
    assert code == 0
    kinds = {kind_of(call)[1:] for call in ended}
    for method, place in (
        ("PUT", "/onlineEndpoints/*"),
        ("DELETE", "/deployments/"),
        ("DELETE", "/batchEndpoints/"),
        *(("DELETE", f"/{blob.partition('/')[0]}/") for blob in kept),
        *(("DELETE", f"/{kind}/") for kind in ("models", "codes", "environments", "data")),
        *(("PUT", f"/{kind}/") for kind in ("environments", "data")),  # archived
        ("DELETE", "/diagnosticSettings/"),
        ("DELETE", "/onlineEndpoints/*"),
    ):
        found = [path for how, path in kinds if how == method and place in path]
        assert found, (method, place, sorted(kinds))
    assert gone(deployable, emulator) and not there
    assert "-model_inputs_outputs/versions/1 (archived)" in output


def paused(deployable: Deployable) -> bool:
    """Return whether `status` says that the endpoint is paused."""
    return ", paused" in deployable.deploy("status")


def test_pause(deployable: Deployable, emulator: Emulator, seed: str | None) -> None:
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")

    def running() -> None:
        if paused(deployable):
            deployable.deploy("resume", "--wait")
        assert deployable.version(emulator) == version

    def after_pause(done: bool, what: str) -> None:
        if not done:
            assert paused(deployable) or deployable.version(emulator) == version, what
            deployable.deploy("pause", "--wait")
        assert "100 %" not in deployable.deploy("status"), what
        assert "succeeded" not in deployable.deploy("status"), what

    disturb(running, lambda wire: attempt(deployable, wire, "pause"), after_pause, seed)


def test_resume(deployable: Deployable, emulator: Emulator, seed: str | None) -> None:
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")

    def stopped() -> None:
        if not paused(deployable):
            deployable.deploy("pause", "--wait")

    def after_resume(done: bool, what: str) -> None:
        if not done:
            assert paused(deployable), what
            deployable.deploy("resume", "--wait")
        assert deployable.version(emulator) == version, what

    disturb(stopped, lambda wire: attempt(deployable, wire, "resume"), after_resume, seed)
