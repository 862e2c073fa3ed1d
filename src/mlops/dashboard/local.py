"""`digits local`: run the emulator of Azure ML and a page of its endpoints, until Ctrl-C.

Input: a folder with the files of an earlier run, or an empty one. Output: two servers on the
loopback address, and `address.json` in the folder, from which `--workspace local` reads their
addresses. Deployments of the last run are started again.
"""

from pathlib import Path

from azureml_emulator.server import Emulator, stop_event
from azureml_emulator.web import LOOPBACK, EmulatorError, Server
from core.errors import DigitsError
from mlops.azure.connection import REMOTES
from mlops.dashboard import page
from mlops.dashboard.watch import LiveState


def emulator(folder: Path, live_state: LiveState) -> Emulator:
    """Return an emulator that reports requests to `live_state`, before its start."""
    return Emulator(
        folder, containers=REMOTES, on_request=live_state.request, on_lost=live_state.lose
    )


def serve_page(running: Emulator, live_state: LiveState) -> Server:
    """Serve the page, on the port of the last run if there was one."""
    shown = page.application(running.router, live_state, running.storage.client)
    return running.servers.serve(shown, running.port("page"))


def main(folder: Path) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    stop = stop_event()
    live_state = LiveState(Path.cwd())
    try:
        with emulator(folder, live_state) as running:
            server = serve_page(running, live_state)
            try:
                address = f"http://{LOOPBACK}:{server.port}"
                running.publish(page=address, page_port=server.port)
                print(
                    f"Serving at {running.router.url} with the page {address}. Deploy with "
                    "`digits deploy apply --workspace local`. Stop with Ctrl-C.",
                    flush=True,
                )
                stop.wait()
            finally:
                server.stop()
    except EmulatorError as error:
        raise DigitsError(str(error)) from None
