"""The pipeline inside a job: `python -m digits.azure.worker`, in a copy of what git has.

Enters: the account of the container `review`, as DIGITS_ACCOUNT, and values of params.yaml on the
command line. Data comes from there, results go there; outputs/ has dvc.lock and what machine made
it, written last. A stage that fails ends the job with code 1.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from digits import console
from digits.azure import results
from digits.errors import DigitsError
from digits.files import write_text
from digits.review import reproduce

METRICS = Path("data/evaluation/metrics.json")
CONFIG = """[core]
    analytics = false
    remote = {remote}
    no_scm = true
['remote "{remote}"']
    account_name = {account}
"""


def main(arguments: list[str]) -> None:
    """Reproduce the pipeline, push what it made, write down how."""
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args(arguments)
    account = os.environ.get("DIGITS_ACCOUNT", "")
    if "DEFAULT_IDENTITY_CLIENT_ID" in os.environ:  # Azure's name for the compute's identity
        os.environ.setdefault("AZURE_CLIENT_ID", os.environ["DEFAULT_IDENTITY_CLIENT_ID"])
    config = CONFIG.format(remote=results.REMOTE, account=account)
    write_text(Path(".dvc", "config.local"), config)
    if asked.set:
        from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped] # as `dvc exp run -S`

        apply_overrides(results.PARAMS, asked.set)
    results.take()
    run = reproduce.repro("--pull", "--allow-missing")
    if run.failed:
        raise DigitsError(f"{run.failed} failed: see above")
    if json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index"):
        return  # the first node speaks for all
    lock = Path(results.LOCK).read_text("utf-8")
    results.push(lock)
    measured = json.loads(METRICS.read_text("utf-8")) if METRICS.exists() else {}
    metrics = {
        f"{source}.{name}": value for source, row in measured.items() for name, value in row.items()
    }
    made = {"set": asked.set, "metrics": metrics, "machine": results.machine()}
    for name in (results.LOCK, results.PARAMS):
        write_text(results.OUTPUTS / name, Path(name).read_text("utf-8"))
    write_text(results.OUTPUTS / results.ACCOUNT, json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(console.run("job", "digits.azure.worker", sys.argv[1:]))
