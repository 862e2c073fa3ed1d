"""`digits sweep`: a search over values of params.yaml as one sweep job, a trial each.

Each trial that ended well becomes a DVC experiment, restored from the run cache: `dvc exp show`
lists them. The sweep goes on when this command is stopped; --attach looks again.
"""

import copy
import importlib.util
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from azure.ai.ml.sweep import Choice, RandomSamplingAlgorithm

from core import params
from core.console import hidden_stderr
from core.errors import DigitsError
from mlops import dvc
from mlops.azure.workspace import Workspace
from mlops.deploy import release
from mlops.jobs import job, results

PIPELINE = Path("dvc.yaml")
AT_A_TIME = 4  # trials; a cluster's size and the quota bound them, too
TRIAL = re.compile(r"dcid\.([^/]+_(\d+))/")


def space(settings: list[str], values: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the values to try of each key.

    Raises DigitsError for what params.yaml has not, and for what no trial could run with.
    """
    found: dict[str, list[Any]] = {}
    for setting in settings:
        key, _, listed = setting.partition("=")
        known: Any = values
        for part in key.split("."):
            known = known.get(part) if isinstance(known, dict) else None
        try:
            tried = [yaml.safe_load(value) for value in listed.split(",")]
        except yaml.YAMLError:  # as of [32, when somebody writes a list
            tried = [None]
        if known is None or isinstance(known, dict | list) or None in tried:
            raise DigitsError(
                f"{setting}: {key} is no single value of {params.PATH}; write KEY=VALUE,VALUE"
            )
        found[key] = [*found.get(key, ()), *tried]
        for value in tried:
            check(key, value, values)
        if (stage := raw_stage(key, values)) and any(value != known for value in tried):
            raise DigitsError(
                f"{setting}: stage {stage} makes other digits with another {key}, and a job has no "
                f"npm packages to run it; `dvc exp run -S {key}=VALUE` here tries one value"
            )
    return found


def raw_stage(key: str, values: dict[str, Any]) -> str | None:
    """Return the stage of dvc.yaml that reads npm's packages and this key, None without one."""
    stages = yaml.safe_load(PIPELINE.read_text("utf-8"))["stages"]
    for name in job.RAW:
        stage = stages.get(name, {})
        if "foreach" in stage and not values[name]:
            continue  # `foreign: []`: no script, no stage
        for listed in stage.get("do", stage).get("params", ()):
            block = str(listed).partition("${")[0].rstrip(".")  # foreign.${key} is any script's
            if f"{key}.".startswith(f"{block}."):
                return name
    return None


def check(key: str, value: Any, values: dict[str, Any]) -> None:
    """Raise DigitsError for a value that the stage would refuse, as each trial then would."""
    changed = copy.deepcopy(values)
    *place, last = key.split(".")
    block = changed
    for part in place:
        block = block[part]
    block[last] = value
    if not place:
        params.task(changed)
        return
    stage = place[0]
    module = f"digits.pipeline.{stage}"
    if importlib.util.find_spec(module) is None:
        raise DigitsError(f"{key}: no stage reads it, so every trial would be the same")
    with hidden_stderr():  # TensorFlow's notes
        kind = importlib.import_module(module).Params
    params.section(kind, changed, ".".join(place[: 1 + (stage == "foreign")]))


@dataclass
class Trials:
    """The trials of a sweep, as their outputs come."""

    workspace: Workspace
    sweep: str
    made: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)  # dvc.lock, account

    def begun(self) -> list[str]:
        """Return the names of the trials that have written something, in order."""
        prefix = job.place(self.sweep) + "_"
        names = job.kept(self.workspace).list_blob_names(name_starts_with=prefix)
        found = {match[1]: int(match[2]) for match in map(TRIAL.search, names) if match}
        return sorted(found, key=lambda name: found[name])

    def more(self, ended: bool) -> Iterator[str]:
        """Yield a line about each trial that has ended well since."""
        for name in self.begun():
            if name not in self.made and (left := job.left(self.workspace, name)):
                self.made[name] = left
                yield f"{name}: {' '.join(left[1]['set'])}: {json.dumps(left[1]['metrics'])}"

    def failed(self) -> Iterator[str]:
        """Save the logs of the trials that left nothing; yield a line about each."""
        for name in self.begun():
            if name not in self.made:
                yield f"{name} ended badly; its log is in {job.save_log(self.workspace, name)}"


def experiment(name: str, settings: list[str]) -> str:
    """Make a DVC experiment of what a trial made, once; return a line about it."""
    if release.git("for-each-ref", f"refs/exps/*/*/{name}"):
        return f"experiment {name}: there already"
    done = subprocess.run(
        dvc.command("exp", "run", "--temp", "--name", name, *(f"-S{one}" for one in settings)),
        env=dvc.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    if done.returncode:
        raise DigitsError(f"dvc exp run {name}: {done.stdout.strip()[-1000:]}; run --attach again")
    ran = re.findall(r"Running stage '(.+?)'", done.stdout)
    return f"experiment {name}: {' '.join(settings)}" + (f" (ran {', '.join(ran)})" if ran else "")


def start(
    workspace: Workspace,
    settings: release.Params,
    tried: dict[str, list[Any]],
    drawn: int | None,
) -> str:
    """Submit a sweep over `tried`, of which `drawn` at random, if given; return its name."""
    count = len(list(itertools.product(*tried.values())))
    names = {key: key.replace(".", "__") for key in tried}
    words = " ".join(f'"{key}=${{{{inputs.{name}}}}}"' for key, name in names.items())
    lines = job.other_bytes(settings, tried.get("train.batch_size"))
    print("".join(f"{line}\n" for line in lines), end="")
    results.offer(job.RAW, job.remote(workspace))
    with tempfile.TemporaryDirectory() as folder:
        one = job.define(
            workspace, settings, Path(folder), f"--set {words}", dict.fromkeys(names.values(), "")
        )
        node = one(**{names[key]: Choice(values) for key, values in tried.items()})
        sweep = node.sweep(
            primary_metric=job.METRIC,
            goal="maximize",
            sampling_algorithm="grid",
            identity=one.identity,
        )
        if drawn:
            sweep.sampling_algorithm = RandomSamplingAlgorithm(seed=1)
        seconds = int(settings.job.timeout_hours * job.SECONDS_AN_HOUR)
        trials = min(drawn or count, count)
        sweep.set_limits(
            max_total_trials=trials,
            max_concurrent_trials=min(trials, AT_A_TIME),
            timeout=seconds * trials,
            trial_timeout=seconds,
        )
        sweep.name, sweep.experiment_name, sweep.tags = one.name, job.EXPERIMENT, one.tags
        name = job.submit(workspace, sweep)
    print(f"{name} is submitted: {trials} trials.", flush=True)
    return name


def finish(workspace: Workspace, name: str, status: str, trials: Trials) -> None:
    """Fetch what the trials made and make experiments of it; raise DigitsError when none did."""
    ran = job.commit_of(workspace, name)
    if ran != release.git("rev-parse", "HEAD").strip():
        raise DigitsError(f"{name} ran commit {ran[:10]}; check that out, then --attach {name}")
    try:
        release.refuse_dirty()  # for experiments take along what is not committed
    except DigitsError as error:
        raise DigitsError(f"{error}; then --attach {name}") from None
    bad = list(trials.failed())
    print("\n".join([f"{len(trials.made)} trials ended well.", *bad]))
    if not trials.made:
        raise DigitsError(f"{name} ended as {status}, and no trial ended well; see the logs")
    results.fetch([lock for lock, _ in trials.made.values()], job.remote(workspace))
    for trial, (_, account) in trials.made.items():
        print(experiment(trial, account["set"]), flush=True)
    print("`dvc exp show` compares them, `dvc exp apply NAME` takes one.")


def main(asked: SimpleNamespace) -> None:
    """Submit a sweep and follow it, or look at one, or cancel it."""
    tried = space(list(asked.set), params.load())
    with job.session(asked) as (workspace, settings):
        if asked.cancel:
            job.cancel(workspace, asked.cancel)
            return
        name = asked.attach or start(workspace, settings, tried, asked.random)
        trials = Trials(workspace, name)
        finish(workspace, name, job.follow(workspace, name, trials.more), trials)
