"""Production on this machine: `digits serve`, on loopback alone, until Ctrl-C.

It runs the emulator of Azure ML and a page that shows its endpoints, in one process; what was
deployed when it last ran comes up again. Everything lies in one folder, `address.json` among it:
where `--workspace local` finds it.
"""

import argparse
from pathlib import Path
from typing import Any

from azureml_emulator.server import Emulator, stop_event
from azureml_emulator.web import LOOPBACK, EmulatorError
from core.errors import DigitsError
from mlops.azure.connection import EMULATOR, REMOTES
from mlops.dashboard import page
from mlops.dashboard.detector import Detector
from mlops.dashboard.watch import Labels, Watch

COLLECTION = "model_inputs_outputs"  # what score.py collects


def emulator(folder: Path, watch: Watch) -> Emulator:
    """Return an emulator that reports to `watch`, not yet started; jobs use DVC's containers."""

    def rows(endpoint: str, deployment: str, name: str, request: str, rows: list[Any]) -> None:
        if name == COLLECTION:
            watch.rows(endpoint, deployment, request, rows)

    return Emulator(
        folder,
        containers=REMOTES,
        on_request=watch.request,
        on_rows=rows,
        on_lost=watch.lose,
    )


def serve_page(running: Emulator, watch: Watch, port: int) -> page.Server:
    """Serve the page on a port (0: a free one)."""
    shown = page.handler(running.router, watch, Labels(running.storage.client))
    return page.Server((LOOPBACK, port), shown).start()


def main(arguments: list[str]) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="digits serve", description=__doc__)
    parser.add_argument("--folder", type=Path, default=EMULATOR, help="where everything is kept")
    folder = parser.parse_args(arguments).folder
    stop = stop_event()
    watch = Watch(Detector(Path.cwd()))
    try:
        with emulator(folder, watch) as running:
            server = serve_page(running, watch, running.port("page"))
            try:
                port = server.server_address[1]
                address = f"http://{LOOPBACK}:{port}"
                running.publish(page=address, page_port=port)
                print(
                    f"Serving at {running.router.url}, to be watched at {address}; deploy with "
                    "`digits deploy apply --workspace local`. Ctrl-C stops it.",
                    flush=True,
                )
                stop.wait()
            finally:
                server.stop()
    except EmulatorError as error:
        raise DigitsError(str(error)) from None
