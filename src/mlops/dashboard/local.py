"""Production on this machine: `digits local`, on loopback alone, until Ctrl-C.

It runs the emulator of Azure ML and a page that shows its endpoints, in one process; what was
deployed when it last ran comes up again. Everything lies in one folder, `address.json` among it:
where `--workspace local` finds it.
"""

from pathlib import Path

from azureml_emulator.server import Emulator, stop_event
from azureml_emulator.web import LOOPBACK, EmulatorError, Server
from core.errors import DigitsError
from mlops.azure.connection import REMOTES
from mlops.dashboard import page
from mlops.dashboard.watch import Watch


def emulator(folder: Path, watch: Watch) -> Emulator:
    """Return an emulator that reports to `watch`, not yet started; jobs use DVC's containers."""
    return Emulator(folder, containers=REMOTES, on_request=watch.request, on_lost=watch.lose)


def serve_page(running: Emulator, watch: Watch) -> Server:
    """Serve the page, on the port that it had before, if it had one."""
    shown = page.application(running.router, watch, running.storage.client)
    return running.servers.serve(shown, running.port("page"))


def main(folder: Path) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    stop = stop_event()
    watch = Watch(Path.cwd())
    try:
        with emulator(folder, watch) as running:
            server = serve_page(running, watch)
            try:
                address = f"http://{LOOPBACK}:{server.port}"
                running.publish(page=address, page_port=server.port)
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
