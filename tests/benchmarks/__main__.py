"""Run one measurement: `python tests/benchmarks NAME ...`; NAME is a module of this folder."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(path) for path in (ROOT / "src", ROOT, TESTS, TESTS / "support")]

from core import console  # noqa: E402

NAMES = (
    "bench",
    "bench_monitor",
    "bench_review",
    "bench_serve",
    "bench_workers",
    "photos",
    "power",
    "realism",
    "seed_variance",
    "verify_azure",
    "verify_github",
)


def main(arguments: list[str]) -> int:
    """Run the measurement named first with the other arguments; return the exit code."""
    name = arguments[0] if arguments else ""
    if name not in NAMES:
        print(f"usage: python tests/benchmarks {{{','.join(NAMES)}}} ...", file=sys.stderr)
        return 2
    return console.run(name, f"benchmarks.{name}", arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
