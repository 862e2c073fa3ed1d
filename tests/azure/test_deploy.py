"""Scenarios: the real SDK against the stand-in."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from light import Deployable, StandIn, a_deployable, a_standin  # noqa: F401

RATE = 60  # requests a second of the client; 50 at least must have been answered

pytestmark = pytest.mark.slow


@contextmanager
def client(deployable: Deployable, standin: StandIn) -> Iterator[list[list]]:
    """Ask the endpoint all the time from another process; fill the list with its answers."""
    place = deployable.serving(standin)
    program = Path(__file__).with_name("client.py")
    command = [sys.executable, str(program), place["url"], place["key"], str(RATE)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    answers: list[list] = []
    try:
        yield answers
        output, _ = process.communicate(timeout=60)
        answers += [json.loads(line) for line in output.splitlines()]
    finally:
        process.kill()
        process.wait()


def check(answers: list[list], old: str, new: str, begun: float, ended: float) -> None:
    """Fail on a lost request, a wrong answer, or one of the wrong model."""
    assert {(status, digit) for _, status, _, digit in answers} == {(200, "3")}
    before = {version for asked, _, version, _ in answers if asked < begun}
    during = {version for asked, _, version, _ in answers if begun <= asked <= ended}
    after = {version for asked, _, version, _ in answers if asked > ended}
    assert before == {old[:12]}
    assert during <= {old[:12], new[:12]}
    assert after == {new[:12]}
    rate = len(answers) / (answers[-1][0] - answers[0][0])
    assert rate >= 50, f"only {rate:.0f} requests/s"


def test_a_first_deployment(deployable: Deployable, standin: StandIn) -> None:
    version = deployable.commit("one")
    plan = deployable.deploy("plan")
    assert "to be created" in plan
    assert "2.4 cores" in plan
    assert "unknown; set azure.price_an_hour" in plan
    assert standin.call("GET", deployable.endpoint)["value"] == []
    deployable.deploy("apply")
    assert deployable.version(standin) == version[:12]
    assert "100 %  succeeded     model 1  live" in deployable.deploy("status")
    assert "nothing to change" in deployable.deploy("plan")
    assert "nothing to change" in deployable.deploy("apply")
    (model,) = standin.call(
        "GET", deployable.endpoint.replace("onlineEndpoints", "models/digits/versions")
    )["value"]
    tags = model["properties"]["tags"]
    assert tags["commit"] == deployable.git("rev-parse", "HEAD").strip()
    assert tags["pull_request"] == "12"
    assert tags["data.training.npz"] == "0" * 32


def test_the_second_and_its_rollback_under_load(deployable: Deployable, standin: StandIn) -> None:
    deployable.set(step_seconds="1.0", price_an_hour="0.5")
    one = deployable.commit("one")
    deployable.deploy("apply")
    two = deployable.commit("two")
    assert "24.00, the old revision's kept" in deployable.deploy("plan")
    for command, old, new in (("apply", one, two), ("rollback", two, one)):
        with client(deployable, standin) as answers:
            time.sleep(1)  # traffic of the old alone, before and of the new alone, after
            begun = time.time()
            deployable.deploy(command)
            ended = time.time()
            time.sleep(1)
        check(answers, old, new, begun, ended)
        shares = deployable.serving(standin)["traffic"]
        assert list(shares.values()) == [100]


def test_new_code_alone_is_a_new_revision(deployable: Deployable, standin: StandIn) -> None:
    version = deployable.commit("one")[:12]
    deployable.deploy("apply")
    score = deployable.root / "serving" / "score.py"
    score.write_text(score.read_text().replace('["version"][:12]', '["version"][:9]'))
    deployable.commit("one")
    deployable.deploy("apply")
    assert deployable.version(standin) == version[:9]
    deployable.deploy("rollback")
    assert deployable.version(standin) == version
    deployable.deploy("pause")
    deployable.deploy("resume")
    assert deployable.version(standin) == version


def test_a_bad_model_gets_no_traffic(deployable: Deployable, standin: StandIn) -> None:
    good = deployable.commit("good")
    deployable.deploy("apply")
    before = deployable.serving(standin)
    deployable.commit("bad", right=False)
    output = deployable.deploy("apply", code=1)
    assert "0 of 10 digits right" in output
    assert "was removed" in output
    deployable.commit("dead")
    output = deployable.deploy("apply", code=1)
    assert "never became healthy" in output
    logs = [path.read_text("utf-8") for path in (deployable.root / ".deploy").glob("*.log")]
    assert any("this model cannot be loaded" in log for log in logs)
    assert deployable.serving(standin) == before
    assert deployable.version(standin) == good[:12]


def test_pause_resume_destroy(deployable: Deployable, standin: StandIn) -> None:
    version = deployable.commit("one")
    deployable.deploy("apply")
    place = deployable.serving(standin)
    deployable.deploy("pause")
    assert standin.call("GET", f"{deployable.endpoint}/{place['name']}/deployments")["value"] == []
    assert "paused" in deployable.deploy("status")
    deployable.deploy("resume")
    assert deployable.version(standin) == version[:12]
    assert deployable.serving(standin) == place
    deployable.deploy("destroy")
    assert standin.call("GET", deployable.endpoint)["value"] == []
    assert not list((standin.folder / "deployments").glob(f"*{deployable.workspace}*"))
    servers = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert deployable.workspace not in servers
    assert "absent" in deployable.deploy("status")


def test_in_place(deployable: Deployable, standin: StandIn) -> None:
    # All cores of the region but two are taken: nothing fits beside what is live.
    deployable.set(strategy="in_place", instance_count="7")
    one = deployable.commit("one")
    deployable.deploy("apply")
    two = deployable.commit("two")
    assert "no service while it is replaced" in deployable.deploy("plan")
    assert "No service from now" in deployable.deploy("apply")
    assert deployable.version(standin) == two[:12]
    assert len(standin.call("GET", place(deployable, standin))["value"]) == 1
    deployable.commit("dead")
    assert "was deployed again" in deployable.deploy("apply", code=1)
    assert deployable.version(standin) == two[:12]
    deployable.deploy("rollback", revision(deployable, "model 1"))
    assert deployable.version(standin) == one[:12]


def place(deployable: Deployable, standin: StandIn) -> str:
    return f"{deployable.endpoint}/{deployable.serving(standin)['name']}/deployments"


def revision(deployable: Deployable, model: str) -> str:
    """Return the name of the revision that `status` lists with a model."""
    (line,) = (line for line in deployable.deploy("status").splitlines() if model in line)
    return line.split()[0]


def test_what_is_refused(deployable: Deployable) -> None:
    deployable.commit("one")
    answers = deployable.root / "data" / "package" / "answers.json"
    before = answers.read_text()
    answers.write_text(before + " ")
    assert "its bytes are not those of dvc.lock" in deployable.deploy("apply", code=1)
    answers.write_text(before)
    (deployable.root / "new.txt").write_text("new")
    assert "the tree is dirty (?? new.txt)" in deployable.deploy("apply", code=1)
    (deployable.root / "new.txt").unlink()
    deployable.commit("low", accuracy=0.9)
    assert "gate         failed: mnist accuracy 0.9 is below" in deployable.deploy("plan")
    assert "mnist accuracy 0.9 is below its floor 0.99" in deployable.deploy("apply", code=1)
    deployable.commit("high", accuracy=0.998)
    deployable.commit("one", accuracy=0.994)
    assert "mnist accuracy is worse by 0.004" in deployable.deploy("apply", code=1)
    deployable.commit("one", accuracy=0.995)
    assert "no endpoint" in deployable.deploy("rollback", code=1)
    deployable.deploy("apply")
    assert "no previous revision" in deployable.deploy("rollback", code=1)
    assert "no such revision" in deployable.deploy("rollback", "r0", code=1)
    assert "not paused" in deployable.deploy("resume", code=1)
