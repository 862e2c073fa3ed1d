"""The emulator alone, on loopback, until Ctrl-C: `python -m azureml_emulator --folder DIR`."""

import argparse
import sys
from pathlib import Path

from azureml_emulator.server import Emulator, stop_event
from azureml_emulator.web import EmulatorError


def main(arguments: list[str]) -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m azureml_emulator", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept")
    parser.add_argument(
        "--azurite",
        type=Path,
        help="Azurite's main.js or azurite-blob; else of node_modules here, else on PATH",
    )
    parser.add_argument(
        "--container",
        action="append",
        default=[],
        metavar="NAME",
        help="a blob container to create, as often as needed",
    )
    parser.add_argument(
        "--controls", action="store_true", help="test controls, at an address of their own"
    )
    given = parser.parse_args(arguments)
    stop = stop_event()
    try:
        with Emulator(
            given.folder, given.azurite, given.container, controls=given.controls
        ) as emulator:
            print(
                f"Serving at {emulator.router.url}; an MLClient for it: "
                f"azureml_emulator.client.connect({str(emulator.folder)!r}). Ctrl-C stops it.",
                flush=True,
            )
            stop.wait()
    except EmulatorError as error:
        print(f"azureml_emulator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
