"""Sweeps: one job for each point of a search space."""

import copy
import itertools
import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from azureml_emulator.services import jobs
from azureml_emulator.services.deployments import duration
from azureml_emulator.state import Json, RefusedError, State, need

DRAWN: dict[str, Callable[..., Any]] = {  # draws a value, by expression of a search space
    "choice": lambda draw, values: draw.choice(values),
    "randint": lambda draw, upper: draw.randrange(upper),
    "uniform": lambda draw, low, high: draw.uniform(low, high),
    "loguniform": lambda draw, low, high: math.exp(draw.uniform(low, high)),
    "normal": lambda draw, mu, sigma: draw.gauss(mu, sigma),
    "lognormal": lambda draw, mu, sigma: math.exp(draw.gauss(mu, sigma)),
}
DRAWN |= {
    f"q{kind}": lambda draw, a, b, q, of=DRAWN[kind]: round(of(draw, a, b) / q) * q
    for kind in ("uniform", "loguniform", "normal", "lognormal")
}


def check(properties: Json) -> None:
    """Refuse a sweep that Azure would refuse."""
    sampling = properties.get("samplingAlgorithm", {}).get("samplingAlgorithmType")
    need(properties, "searchSpace", "limits.maxTotalTrials", "samplingAlgorithm")
    for name, (kind, _) in properties["searchSpace"].items():
        if kind not in DRAWN or (sampling == "Grid" and kind != "choice"):
            raise RefusedError(400, "UserError", f"{name}: {sampling} sampling takes no {kind}.")


def points(asked: Json) -> list[tuple[Any, ...]]:
    """Return the values of a sweep's trials: all combinations in order, or drawn at random."""
    space, sampling = asked["searchSpace"].values(), asked["samplingAlgorithm"]
    draw = random.Random(sampling.get("seed"))
    if any(kind != "choice" for kind, _ in space):
        trials = range(asked["limits"]["maxTotalTrials"])
        return [tuple(DRAWN[kind](draw, *given) for kind, given in space) for _ in trials]
    found = list(itertools.product(*(given[0] for _, given in space)))
    if sampling["samplingAlgorithmType"] == "Random":
        draw.shuffle(found)
    return found


def sweep(state: State, key: str) -> None:
    """Run a sweep's trials, as many at once as its limits allow: jobs NAME_0, NAME_1, ..."""
    body = state.resources[key]
    asked, limits, keys = body["properties"], body["properties"]["limits"], []
    for number, values in enumerate(points(asked)[: limits["maxTotalTrials"]]):
        trial = copy.deepcopy(asked["trial"]) | {"jobType": "Command", "sweep": key}
        trial |= {"inputs": asked["inputs"], "properties": {}, "tags": {}}
        trial["limits"] = {"timeout": limits.get("trialTimeout")}
        for name, value in zip(asked["searchSpace"], values, strict=True):
            mark = f"${{{{search_space.{name}}}}}"
            trial["command"] = trial["command"].replace(mark, str(value))
        keys.append(f"{key}_{number}")
        place = f"{body['id']}_{number}"
        trial |= jobs.described(state, place) | {"status": "NotStarted"}
        own = {name: one for name, one in asked["outputs"].items() if name != "default"}
        trial["outputs"] = jobs.given_outputs(place.split("/")[-1], {"outputs": own})
        state.resources.setdefault(keys[-1], state.stored(place, {"properties": trial}, None))
    if jobs.set_status(state, key, "Running"):
        return
    # After its timeout a sweep is cancelled with all its trials: learn.microsoft.com/azure/
    # machine-learning/how-to-tune-hyperparameters, "Set limits for your sweep job".
    seconds = duration(limits["timeout"]) if limits.get("timeout") else threading.TIMEOUT_MAX
    ending = threading.Timer(seconds, jobs.cancel, (state, "", f"{key}/cancel", {}))
    ending.daemon = True
    ending.start()
    with ThreadPoolExecutor(limits.get("maxConcurrentTrials") or 1) as machines:
        list(machines.map(lambda trial: jobs.run(state, trial), keys))
    ending.cancel()
    if not state.closed:
        well = any(state.resources[trial]["properties"]["status"] == "Completed" for trial in keys)
        jobs.set_status(state, key, "Completed" if well else "Failed")


jobs.BEGIN["Sweep"], jobs.CHECKS["Sweep"] = sweep, check
