"""`digits local`: run the emulator of Azure ML and a page of its endpoints, until Ctrl-C.

Input: a folder with the files of an earlier run, or an empty one. Output: two servers on the
loopback address, and `address.json` in the folder, which `--workspace local` reads.
"""

import secrets
import shlex
from pathlib import Path

from azureml_emulator.server import Emulator, stop_event
from azureml_emulator.web import LOOPBACK, EmulatorError, Server
from core.errors import DigitsError
from mlops.azure.connection import EMULATOR, REMOTES
from mlops.dashboard import page
from mlops.dashboard.watch import LiveState


def serve_page(running: Emulator, live_state: LiveState) -> Server:
    """Serve the page on its previous port, with a new secret: open pages have the previous one."""
    secret = secrets.token_urlsafe()
    shown = page.application(running.router, live_state, running.storage.client, secret)
    server = running.servers.serve(shown, running.address.get("page_port", 0))
    address = f"http://{LOOPBACK}:{server.port}/#secret={secret}"
    running.publish(page=address, page_port=server.port)
    return server


def main(folder: Path) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP."""
    stop = stop_event()
    live_state = LiveState(Path.cwd())
    report, lose = live_state.request, live_state.lose
    try:
        with Emulator(folder, None, REMOTES, report, lose) as running:
            server = serve_page(running, live_state)
            try:
                place = shlex.quote(str(folder.resolve()))
                found = "" if folder == EMULATOR else f"DIGITS_LOCAL_FOLDER={place} "
                print(
                    f"Serving at {running.router.url} with the page {running.address['page']} . "
                    f"Deploy with `{found}digits deploy apply --workspace local`. "
                    "Stop with Ctrl-C.",
                    flush=True,
                )
                stop.wait()
            finally:
                server.stop()
    except EmulatorError as error:
        raise DigitsError(str(error)) from None
