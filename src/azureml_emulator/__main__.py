"""The emulator alone, on loopback, until Ctrl-C: `python -m azureml_emulator --folder DIR`."""

import argparse
import sys
from pathlib import Path

from azureml_emulator.server import Emulator, stop_event
from azureml_emulator.web import EmulatorError


def main(arguments: list[str], kind: type[Emulator] = Emulator) -> int:
    """Serve an emulator of class `kind` until Ctrl-C or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m azureml_emulator", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="the folder for all its files")
    add("--azurite", type=Path, help="Azurite's main.js; by default in node_modules or on PATH")
    add("--container", action="append", default=[], help="a blob container to create; repeatable")
    given = parser.parse_args(arguments)
    stop = stop_event()
    try:
        with kind(given.folder, given.azurite, given.container) as emulator:
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
