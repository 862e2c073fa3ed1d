"""`digits COMMAND ...`: what people and workflows run; stages do not go through it.

A command is a module with `main(arguments)`; its name and module stand here.
"""

import sys

from core import console

COMMANDS = {
    "params": "core.params",  # check params.yaml
    "noise": "mlops.review.seed_variance",
    "monitor": "mlops.production.monitor",
    "score": "mlops.production.score",  # files of digits, here or by a batch endpoint
    "serve": "mlops.dashboard.local",  # production on this machine
    "deploy": "mlops.deploy.rollout",
    "simulate": "mlops.production.simulate",  # traffic for what is deployed
    "connect": "mlops.setup.connect",  # an Azure subscription, from nothing to ready
    "disconnect": "mlops.setup.disconnect",
    "train": "mlops.jobs.train",  # the pipeline as a job
    "sweep": "mlops.jobs.sweep",  # many of them, as experiments
    "doctor": "mlops.setup.check",  # what stands in the way, with its mend
    "review": "mlops.review.command",  # what a change does to the metrics
    "retrain": "mlops.review.retrain",  # an experiment with the labelled digits of production
    "relock": "mlops.review.relock",  # rebuild a conflicted dvc.lock
}


def main() -> int:
    """Run the command that is named on the command line; return the exit code."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in COMMANDS:
        print(f"usage: digits {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 1
    return console.run(name, COMMANDS[name], arguments)
