"""`digits sweep`: a search over values of params.yaml as one sweep job, a trial each.

Each trial that ended well becomes a DVC experiment, saved in a temporary git worktree: `dvc exp
show` lists them. The sweep goes on when this command is stopped; --attach looks again.
"""

import itertools
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from azure.ai.ml.sweep import Choice, RandomSamplingAlgorithm

from core import params
from core.errors import DigitsError
from mlops import dvc, git
from mlops.azure.settings import Params
from mlops.azure.workspace import Workspace
from mlops.jobs import job, results
from mlops.review import gate

AT_A_TIME = 4  # trials; a cluster's size and the quota bound them, too
TRIAL = re.compile(r"dcid\.([^/]+_(\d+))/")


def space(
    settings: list[str], values: dict[str, Any], stages: dict[str, Any]
) -> dict[str, list[Any]]:
    """Return the values to try of each key; `stages` are those of dvc.lock.

    Raises DigitsError for a key that is not in params.yaml, that no stage reads or that a stage
    reads which no job can run, and for a value of another type. Other bounds are for the stages
    to check, in their trials.
    """
    found: dict[str, list[Any]] = {}
    npm = results.npm_stages(stages)
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
            if "." not in key:
                params.task(values | {key: value})
            elif type(value) is not type(known) and (type(known), type(value)) != (float, int):
                raise DigitsError(
                    f"{setting}: {key} is {value!r}: expected a {type(known).__name__} like "
                    f"{known!r} in {params.PATH}; correct the value"
                )
        readers = [name for name, stage in stages.items() if reads(stage, key)]
        if not readers:
            raise DigitsError(f"{key}: no stage reads it, so every trial would be the same")
        raw = next((name for name in readers if name.partition("@")[0] in npm), None)
        if raw and any(value != known for value in tried):
            raise DigitsError(
                f"{setting}: stage {raw} has another result with another {key}, and a job has no "
                f"npm packages to run it; `dvc exp run -S {key}=VALUE` here tries one value"
            )
    return found


def defined_stages() -> dict[str, Any]:
    """Return the stages of dvc.lock that dvc.yaml still has."""
    names = dvc.run("stage", "list", "--name-only").split()
    lock = Path(results.LOCK)
    known = results.stages(lock.read_text("utf-8") if lock.exists() else "")
    return {name: known[name] for name in names if name in known}


def reads(stage: dict[str, Any], key: str) -> bool:
    """Return whether a stage of dvc.lock depends on a key of params.yaml."""
    tracked = stage.get("params", {}).get(results.PARAMS, ())
    return any(f"{key}.".startswith(f"{name}.") for name in tracked)


@dataclass
class Trials:
    """The trials of a sweep, as their outputs come."""

    workspace: Workspace
    sweep: str
    made: dict[str, dict[str, Any]] = field(default_factory=dict)  # a summary each, by name

    def begun(self) -> list[str]:
        """Return the names of the trials that have written something, in order."""
        prefix = job.place(self.sweep) + "_"
        names = job.kept(self.workspace).list_blob_names(name_starts_with=prefix)
        found = {match[1]: int(match[2]) for match in map(TRIAL.search, names) if match}
        return sorted(found, key=lambda name: found[name])

    def more(self, ended: bool) -> Iterator[str]:
        """Yield a line about each trial that has ended well since."""
        for name in self.begun():
            if name not in self.made and (summary := job.read_summary(self.workspace, name)):
                self.made[name] = summary
                yield f"{name}: {' '.join(summary['set'])}: {json.dumps(summary['metrics'])}"

    def failed(self) -> Iterator[str]:
        """Save the logs of the trials that left nothing; yield a line about each."""
        for name in self.begun():
            if name not in self.made:
                yield f"{name} ended badly; its log is in {job.save_log(self.workspace, name)}"


def experiment(tree: results.Tree, name: str, files: dict[str, bytes]) -> str:
    """Save what a trial left as a DVC experiment, once; return a line about it."""
    if git.run("for-each-ref", f"refs/exps/*/*/{name}"):
        return f"experiment {name}: there already"
    tree.fetch(files)
    tree.dvc("checkout", fix=results.ATTACH)
    tree.dvc("exp", "save", "--name", name, *(f"-I{file}" for file in files), fix=results.ATTACH)
    return f"experiment {name}: saved"


def start(
    workspace: Workspace,
    settings: Params,
    tried: dict[str, list[Any]],
    drawn: int | None,
) -> str:
    """Submit a sweep over `tried`, of which `drawn` at random, if given; return its name."""
    count = len(list(itertools.product(*tried.values())))
    names = {key: key.replace(".", "__") for key in tried}
    words = " ".join(f'"{key}=${{{{inputs.{name}}}}}"' for key, name in names.items())
    print(job.note_on_nodes(settings), end="")
    metric, goal = target()
    results.upload_inputs(job.remote(workspace))
    with tempfile.TemporaryDirectory() as folder:
        one = job.define(
            workspace, settings, Path(folder), f"--set {words}", dict.fromkeys(names.values(), "")
        )
        node = one(**{names[key]: Choice(values) for key, values in tried.items()})
        sweep = node.sweep(
            primary_metric=metric,
            goal=goal,
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


def target() -> tuple[str, str]:
    """Return the metric that a sweep improves, the first of the review's gate, and the goal."""
    for source, metrics in gate.load().gate.items():
        for metric, rule in metrics.items():
            return f"{source}.{metric}", "maximize" if rule.direction == "higher" else "minimize"
    raise DigitsError(f"{params.PATH}: review.gate: names no metric to improve; add one")


def finish(workspace: Workspace, name: str, status: str, trials: Trials) -> None:
    """Make experiments of what the trials left; raise DigitsError when no trial ended well."""
    bad = list(trials.failed())
    print("\n".join([f"{len(trials.made)} trials ended well.", *bad]))
    if not trials.made:
        raise DigitsError(f"{name} ended as {status}, and no trial ended well; see the logs")
    ran = job.commit_of(workspace, name)
    with results.worktree(ran, job.remote(workspace)) as tree:
        for trial in trials.made:
            files = job.read_outputs(workspace, trial, ran)
            print(experiment(tree, trial, files), flush=True)
    print(f"`dvc exp show --rev {ran[:10]}` compares them, `dvc exp apply NAME` takes one.")


def main(asked: SimpleNamespace) -> None:
    """Submit a sweep and follow it, or look at one, or cancel it."""
    tried = space(list(asked.set), params.load(), defined_stages()) if asked.set else {}
    with job.session(asked) as (workspace, settings):
        if asked.cancel:
            job.cancel(workspace, asked.cancel)
            return
        name = asked.attach or start(workspace, settings, tried, asked.random)
        trials = Trials(workspace, name)
        finish(workspace, name, job.follow(workspace, name, trials.more), trials)
