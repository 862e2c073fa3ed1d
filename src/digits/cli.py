"""`digits COMMAND ...`: what people and workflows run; stages do not go through it.

A command is a module with `main(arguments)`; its name and module stand here.
"""

import sys

from digits import console

COMMANDS = {
    "params": "digits.params",  # check params.yaml
    "noise": "digits.noise",
    "bench": "digits.bench",
    "bench-serve": "digits.bench_serve",
    "bench-workers": "digits.bench_workers",
    "realism": "digits.realism",
    "power": "digits.power",
    "monitor": "digits.azure.monitor",
    "score": "digits.azure.score",  # files of digits, here or by a batch endpoint
    "serve": "digits.azure.serve",  # production on this machine
    "deploy": "digits.azure.deploy",
    "simulate": "digits.azure.simulate",  # traffic for what is deployed
    "connect": "digits.azure.connect",  # an Azure subscription, from nothing to ready
    "disconnect": "digits.azure.disconnect",
    "train": "digits.azure.train",  # the pipeline as a job
    "sweep": "digits.azure.sweep",  # many of them, as experiments
    "doctor": "digits.azure.doctor",  # what stands in the way, with its mend
    "review": "digits.review.command",  # what a change does to the metrics
    "retrain": "digits.review.retrain",  # an experiment with the labelled digits of production
    "relock": "digits.review.relock",  # rebuild a conflicted dvc.lock
}


def main() -> int:
    """Run the command that is named on the command line; return the exit code."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in COMMANDS:
        print(f"usage: digits {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 1
    return console.run(name, COMMANDS[name], arguments)
