"""Measure the variance of metrics between seeds: `make noise`.

Input: params.yaml and the splits of stage prepare, which are the same for all seeds. Output:
data/noise.json, in git, with the spread of each metric of each source, and the configuration. The
seeds differ in the initial weights, the order of digits and the augmentation. A difference between
two models of less than about three standard deviations may be noise.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from core import params
from core.errors import DigitsError
from core.files import sha256, write_text

PREPARED, NOISE = Path("data", "prepared"), Path("data", "noise.json")
SOURCE = Path(__file__).resolve().parents[2] / "src"


def metrics_of(values: dict[str, Any], seed: int) -> dict[str, dict[str, float]]:
    """Train and evaluate with another seed, in a folder of its own; return metrics.json."""
    pools = {
        name: (PREPARED / f"{name}.npz").resolve() for name in ("training", "validation", "test")
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, params.PATH)
        path.write_text(yaml.safe_dump(values | {"seed": seed}, allow_unicode=True), "utf-8")
        model, out = Path(folder, "model"), Path(folder, "evaluation")
        train: list[str | Path] = [
            "--training",
            pools["training"],
            "--validation",
            pools["validation"],
        ]
        train += ["--out", model, "--curves", model / "curves.csv"]
        evaluate = ["--model", model, "--test", pools["test"], "--out", out]
        for stage, arguments in (("train", train), ("evaluate", evaluate)):
            command = [sys.executable, str(SOURCE), stage, *map(str, arguments)]
            env = os.environ | {"DVC_ROOT": str(Path.cwd()), "DVC_EXP_NAME": f"noise-seed-{seed}"}
            if code := subprocess.run(command, cwd=folder, env=env).returncode:
                raise DigitsError(f"seed {seed}: stage {stage} ended with code {code}; see above")
        return json.loads((out / "metrics.json").read_text("utf-8"))


def spread(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean, sample standard deviation, least and most of each metric of each source."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for source, metrics in runs[0].items():
        for metric in metrics:
            row = np.array([run[source][metric] for run in runs])
            figures = {
                "mean": row.mean(),
                "deviation": row.std(ddof=1),
                "least": row.min(),
                "most": row.max(),
            }
            rounded = {name: round(float(figure), 6) for name, figure in figures.items()}
            found.setdefault(source, {})[metric] = rounded
    return found


def main(arguments: list[str]) -> None:
    """Train each seed, write the spread, print that of the accuracy."""
    parser = argparse.ArgumentParser(prog="make noise", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from params.yaml's on")
    count = parser.parse_args(arguments).seeds
    if count < 2:
        parser.error(f"--seeds is {count}: a spread needs 2 at least")
    values = params.load()
    task = params.task(values)
    seeds = list(range(task.seed, task.seed + count))
    runs = []
    for seed in seeds:
        runs.append(metrics_of(values, seed))
        figures = ", ".join(f"{name} {row['accuracy']:.4f}" for name, row in runs[-1].items())
        print(f"seed {seed}: {figures}", flush=True)
    found = spread(runs)
    noise = {
        "seeds": seeds,
        "trained": {
            "epochs": task.epochs,
            "train": values["train"],
            "data": {name: sha256(PREPARED / name) for name in ("training.npz", "test.npz")},
        },
        "metrics": found,
    }
    write_text(NOISE, json.dumps(noise, indent=2, ensure_ascii=False) + "\n")
    for source, metrics in found.items():
        row = metrics["accuracy"]
        print(
            f"{source:22} accuracy {row['mean']:.4f} on average, deviation {row['deviation']:.4f}, "
            f"{row['least']:.4f} to {row['most']:.4f}"
        )
    print(f"written to {NOISE}")
