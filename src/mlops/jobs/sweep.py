"""`digits sweep`: a hyperparameter search over values of params.yaml, as one sweep job.

Input: the values to try. Output: a DVC experiment for each trial that succeeded; `dvc exp show`
lists them. The sweep continues when this command is interrupted; --attach follows it again.
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

MAX_CONCURRENT_TRIALS = 4  # the size of the cluster and the quota are limits, too
TRIAL = re.compile(r"dcid\.([^/]+_(\d+))/")


def search_space(
    settings: list[str], values: dict[str, Any], stages: dict[str, Any]
) -> dict[str, list[Any]]:
    """Return the values to try for each key; `stages` are those of dvc.lock.

    Raises DigitsError when a key is not in params.yaml, when no stage depends on it, when a stage
    that depends on it cannot run in a job, and when a value has another type. The stages validate
    everything else in their trials.
    """
    found: dict[str, list[Any]] = {}
    npm = results.npm_stages(stages)
    for setting in settings:
        key, _, listed = setting.partition("=")
        known: Any = values
        for part in key.split("."):
            known = known.get(part) if isinstance(known, dict) else None
        try:
            values_to_try = [yaml.safe_load(value) for value in listed.split(",")]
        except yaml.YAMLError:  # for instance for `[32`, if a list is given
            values_to_try = [None]
        if known is None or isinstance(known, dict | list) or None in values_to_try:
            raise DigitsError(
                f"{setting}: {key} is not a single value of {params.PATH}. Write KEY=VALUE,VALUE."
            )
        found[key] = [*found.get(key, ()), *values_to_try]
        for value in values_to_try:
            if "." not in key:
                params.task(values | {key: value})
            elif type(value) is not type(known) and (type(known), type(value)) != (float, int):
                raise DigitsError(
                    f"{setting}: expected a {type(known).__name__} like {known!r} in "
                    f"{params.PATH}, found {value!r}. Correct the value."
                )
        read = {n: row.get("params", {}).get(results.PARAMS, ()) for n, row in stages.items()}
        readers = [
            n for n, keys in read.items() if f"{key}.".startswith(tuple(f"{k}." for k in keys))
        ]
        if not readers:
            raise DigitsError(f"{key}: no stage depends on it, so all trials would be the same")
        raw = next((name for name in readers if name.partition("@")[0] in npm), None)
        if raw and any(value != known for value in values_to_try):
            raise DigitsError(
                f"{setting}: stage {raw} depends on {key}, and a job has no npm packages to run "
                f"it. Try a value here with `dvc exp run -S {key}=VALUE`."
            )
    return found


def defined_stages() -> dict[str, Any]:
    """Return the stages of dvc.lock that are in dvc.yaml."""
    names = dvc.run("stage", "list", "--name-only").split()
    lock = Path(results.LOCK)
    known = dvc.stages(lock.read_text("utf-8") if lock.exists() else "")
    return {name: known[name] for name in names if name in known}


@dataclass
class Trials:
    """The trials of a sweep, read while they run."""

    workspace: Workspace
    sweep: str
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # of successful trials

    def started(self) -> list[str]:
        """Return the names of the trials that have written any output, in order."""
        prefix = job.place(self.sweep) + "_"
        names = job.artifact_store(self.workspace).list_blob_names(name_starts_with=prefix)
        found = {match[1]: int(match[2]) for match in map(TRIAL.search, names) if match}
        return sorted(found, key=lambda name: found[name])

    def more(self, ended: bool) -> Iterator[str]:
        """Yield a line about each trial that has succeeded since the last call."""
        for name in self.started():
            if name not in self.summaries and (summary := job.read_summary(self.workspace, name)):
                self.summaries[name] = summary
                yield f"{name}: {' '.join(summary['set'])}: {json.dumps(summary['metrics'])}"


def experiment(tree: results.Tree, name: str, files: dict[str, bytes]) -> str:
    """Save the results of a trial as a DVC experiment, once; return a line about it."""
    if git.run("for-each-ref", f"refs/exps/*/*/{name}"):
        return f"experiment {name}: exists already"
    tree.fetch(files)
    tree.dvc("checkout", fix=results.ATTACH)
    tree.dvc("exp", "save", "--name", name, *(f"-I{file}" for file in files), fix=results.ATTACH)
    return f"experiment {name}: saved"


def start(
    workspace: Workspace, settings: Params, values_to_try: dict[str, list[Any]], drawn: int | None
) -> str:
    """Submit a sweep over `tried`, or over `drawn` random combinations; return its name."""
    count = len(list(itertools.product(*values_to_try.values())))
    names = {key: key.replace(".", "__") for key in values_to_try}
    words = " ".join(f'"{key}=${{{{inputs.{name}}}}}"' for key, name in names.items())
    metric, goal = target()
    results.upload_inputs(job.remote(workspace))
    with tempfile.TemporaryDirectory() as folder:
        one = job.define(
            workspace, settings, Path(folder), f"--set {words}", dict.fromkeys(names.values(), "")
        )
        node = one(**{names[key]: Choice(values) for key, values in values_to_try.items()})
        sweep = node.sweep(
            primary_metric=metric, goal=goal, sampling_algorithm="grid", identity=one.identity
        )
        if drawn:
            sweep.sampling_algorithm = RandomSamplingAlgorithm(seed=1)
        seconds = int(settings.job.timeout_hours * job.SECONDS_AN_HOUR)
        trials = min(drawn or count, count)
        sweep.set_limits(
            max_total_trials=trials,
            max_concurrent_trials=min(trials, MAX_CONCURRENT_TRIALS),
            timeout=seconds * trials,
            trial_timeout=seconds,
        )
        sweep.name, sweep.experiment_name, sweep.tags = one.name, job.EXPERIMENT, one.tags
        name = job.submit(workspace, sweep)
    print(f"Submitted {name}: {trials} trials.", flush=True)
    return name


def target() -> tuple[str, str]:
    """Return the metric to optimise, the first one of the review's gate, and the goal."""
    for source, metrics in gate.load().gate.items():
        for metric, rule in metrics.items():
            return f"{source}.{metric}", "maximize" if rule.direction == "higher" else "minimize"
    raise DigitsError(f"{params.PATH}: review.gate: has no metric to optimise. Add one.")


def finish(workspace: Workspace, name: str, status: str, trials: Trials) -> None:
    """Save the successful trials as experiments; raise DigitsError when there are none."""
    names = [trial for trial in trials.started() if trial not in trials.summaries]
    failed = [f"{one} failed; its log is in {job.save_log(workspace, one)}" for one in names]
    print("\n".join([f"{len(trials.summaries)} trials succeeded.", *failed]))
    if not trials.summaries:
        raise DigitsError(f"{name} ended as {status}, and no trial succeeded. See the logs.")
    ran = job.commit_of(workspace, name)
    with results.worktree(ran, job.remote(workspace)) as tree:
        for trial in trials.summaries:
            print(experiment(tree, trial, job.read_outputs(workspace, trial, ran)), flush=True)
    print(f"Compare with `dvc exp show --rev {ran[:10]}`; apply one with `dvc exp apply NAME`.")


def main(asked: SimpleNamespace) -> None:
    """Submit a sweep and follow it, or follow or cancel an earlier one."""
    values_to_try = (
        search_space(list(asked.set), params.load(), defined_stages()) if asked.set else {}
    )
    with job.session(asked) as (workspace, settings):
        if asked.cancel:
            job.cancel(workspace, asked.cancel)
            return
        name = asked.attach or start(workspace, settings, values_to_try, asked.random)
        trials = Trials(workspace, name)
        finish(workspace, name, job.follow(workspace, name, trials.more), trials)
