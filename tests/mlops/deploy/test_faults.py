"""Whatever call fails, and whenever `apply` is killed: live traffic is untouched, apply succeeds.

The faults are made from the calls that an undisturbed `apply` was recorded to make. Sampled, with a
seed: of each kind of call (method and path) one call that fails, of each kind that writes one whose
answer is lost (for one that reads that is the same), and a kill in each sixth of the time that
`apply` takes. --all-cases disturbs every call in both ways and kills 20 times.
"""

import random
import re
import subprocess
import time
from typing import Any

import pytest
from light import Deployable, Emulator

SAMPLE, SOME_KILLS, ALL_KILLS = 2, 6, 20
UNLIKE = [  # what differs from one run to the next
    (r"/deployments/r[0-9a-f]{10}", r"/deployments/r[0-9a-f]{10}"),
    (r"/autoscalesettings/[^/]+", r"/autoscalesettings/[^/]+"),
    (r"/versions/[^/]+", r"/versions/[^/]+"),
    (r"/codes/[^/]+", r"/codes/[^/]+"),
    (r"/data/[^/]+", r"/data/[^/]+"),
    (r"/mfeOperationsStatus/[^/]+", r"/mfeOperationsStatus/"),
]


def all_faults(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a fault for each call; of the questions after one operation, for the first."""
    seen: dict[tuple[str, str], int] = {}
    operations = set()
    faults = []
    for call in calls:
        path = call["path"]
        pattern = path
        for found, general in UNLIKE:
            pattern = re.sub(found, lambda _, general=general: general, pattern)  # type: ignore[misc]
        if not pattern.endswith("/"):
            pattern += "$"
        key = (call["method"], pattern)
        skip = seen.get(key, 0)
        seen[key] = skip + 1
        if "/mfeOperationsStatus/" in path:
            if path in operations:
                continue
            operations.add(path)
        faults.append({"method": key[0], "path": pattern, "skip": skip, "times": 1})
    return faults


def sampled(faults: list[dict[str, Any]], seed: str) -> list[dict[str, Any]]:
    """Return one fault of each kind of call."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for fault in faults:
        kinds.setdefault((fault["method"], fault["path"]), []).append(fault)
    rng = random.Random(seed)
    return [rng.choice(alike) for alike in kinds.values()]


def again(fault: dict[str, Any]) -> bool:
    """Return whether a fault hits a question that was asked before."""
    return fault["method"] == "GET" and fault["skip"] > 0


def recorded(deployable: Deployable, emulator: Emulator) -> list[dict[str, Any]]:
    """Deploy thrice; return the faults of the third deployment, which removes the first."""
    for model in ("first", "second"):
        deployable.commit(model)
        deployable.deploy("apply")
    emulator.faults()
    deployable.commit("third")
    deployable.deploy("apply")
    faults = all_faults(emulator.calls())
    assert len(faults) > 30
    return faults


def disturb(
    deployable: Deployable, emulator: Emulator, faults: list[dict[str, Any]], kinds: tuple[str, ...]
) -> None:
    """With each fault in turn: apply fails and leaves what was live, or succeeds; then it does."""
    known = deployable.version(emulator)
    number = missed = 0
    for fault in faults:
        for kind in kinds:
            number += 1
            version = deployable.commit(f"{kind}{number}")[:12]
            emulator.faults(fault | {"do": kind})
            code, output = deployable.attempt("apply")
            struck = emulator.struck()
            missed += not struck
            emulator.faults()
            what = f"{kind} {fault}: {output}"
            # While an operation is under way there may be fewer questions than there were.
            assert struck or again(fault), what
            if code:
                assert deployable.version(emulator) == known, what
                assert list(deployable.serving(emulator)["traffic"].values()) == [100], what
                assert "NOT" not in output, what
                deployable.deploy("apply")
            assert deployable.version(emulator) == version, what
            assert list(deployable.serving(emulator)["traffic"].values()) == [100], what
            known = version
    print(f"{number} calls were disturbed in turn, {missed} of them were not made")
    assert missed <= number / 4


@pytest.mark.slow(minutes=0.5)
def test_a_sample_of_calls_that_fail(deployable: Deployable, emulator: Emulator) -> None:
    faults = recorded(deployable, emulator)
    faults = [fault for fault in faults if not again(fault)]
    chosen = random.Random(1).sample(faults, SAMPLE)
    disturb(deployable, emulator, chosen[: SAMPLE // 2], ("fail",))
    disturb(deployable, emulator, chosen[SAMPLE // 2 :], ("lose",))


@pytest.mark.prove(minutes=2.5)
@pytest.mark.parametrize("kind", ["fail", "lose"])
def test_every_kind_of_call_that_fails(
    deployable: Deployable, emulator: Emulator, kind: str, all_cases: bool
) -> None:
    faults = recorded(deployable, emulator)
    if not all_cases:
        faults = sampled(faults, kind)
        if kind == "lose":
            faults = [fault for fault in faults if fault["method"] != "GET"]
        assert len(faults) >= {"fail": 15, "lose": 5}[kind]
    disturb(deployable, emulator, faults, (kind,))


def begun(deployable: Deployable, emulator: Emulator) -> "subprocess.Popen[str]":
    """Start `apply` in a process of its own; return once it has made its first call."""
    emulator.faults()  # forgets the calls so far
    process = deployable.begun("apply")
    while not emulator.calls() and process.poll() is None:
        time.sleep(0.02)
    return process


def kill(deployable: Deployable, emulator: Emulator, times: int) -> None:
    """Kill `apply` at random moments; each time a second one makes the new model live.

    The moments lie between its first call and its end, one in each of `times` equal parts: before
    its first call it has done nothing.
    """
    moment = random.Random(2)
    deployable.commit("first")
    deployable.person("apply")
    known = deployable.commit("second")[:12]
    process = begun(deployable, emulator)
    start = time.monotonic()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    whole = time.monotonic() - start
    for number in range(times):
        version = deployable.commit(f"killed{number}")[:12]
        process = begun(deployable, emulator)
        try:
            process.communicate(timeout=(number + moment.random()) / times * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        assert deployable.version(emulator) in (known, version)
        deployable.deploy("apply", "--wait")
        assert deployable.version(emulator) == version
        assert list(deployable.serving(emulator)["traffic"].values()) == [100]
        known = version


@pytest.mark.prove(minutes=3)
def test_the_apply_after_a_killed_one_succeeds(
    deployable: Deployable, emulator: Emulator, all_cases: bool
) -> None:
    kill(deployable, emulator, ALL_KILLS if all_cases else SOME_KILLS)


@pytest.mark.prove
def test_who_waits_for_an_answer_in_vain_can_stop(
    deployable: Deployable, emulator: Emulator
) -> None:
    version = deployable.commit("first")[:12]
    deployable.deploy("apply")
    before = deployable.serving(emulator)
    deployable.commit("second")
    traffic = {"method": "PUT", "path": "/onlineEndpoints/[^/]+$", "times": 1}
    emulator.faults(traffic | {"do": "hang", "seconds": 3600})
    process = deployable.begun("apply")
    while not emulator.struck() and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert f"traffic was returned to {next(iter(before['traffic']))}" in said
    assert deployable.serving(emulator) == before
    assert deployable.version(emulator) == version


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("quota", "quota is used up"),
        pytest.param("image", "image could not be built", marks=pytest.mark.prove),
        pytest.param("unhealthy", "healthy", marks=pytest.mark.prove),
    ],
)
def test_a_deployment_that_fails_names_its_cause(
    deployable: Deployable, emulator: Emulator, kind: str, said: str
) -> None:
    known = deployable.commit("first")[:12]
    deployable.deploy("apply")
    deployable.commit("second")
    emulator.faults({"do": kind})
    assert said in deployable.deploy("apply", code=1)
    assert deployable.version(emulator) == known
