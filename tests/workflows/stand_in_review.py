"""Stands in for `digits review` where the tree has none yet; the tests copy it into a project.

The same options, `dvc repro`, and a gate on accuracy alone, against the base's metrics in git.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

METRICS = "data/evaluation/metrics.json"


def main(arguments: list[str]) -> None:
    """Reproduce, write the report, judge."""
    parser = argparse.ArgumentParser()
    for option in ("--base", "--link"):
        parser.add_argument(option)
    for option in ("--repro", "--gate"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    sys.stdout.flush()
    subprocess.run(["dvc", "repro"], check=True)
    base = subprocess.run(
        ["git", "merge-base", options.base, "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    shown = subprocess.run(["git", "show", f"{base}:{METRICS}"], check=True, capture_output=True)
    before = json.loads(shown.stdout)["mnist"]["accuracy"]
    after = json.loads(Path(METRICS).read_text("utf-8"))["mnist"]["accuracy"]
    failed = after < before - 0.2
    options.out.mkdir()
    verdict = f"gate {'failed' if failed else 'passed'}: accuracy {before} to {after}\n"
    (options.out / "report.md").write_text(f"## {verdict}", "utf-8")
    if failed:
        sys.exit(f"review: the gate failed: mnist accuracy {after}")
