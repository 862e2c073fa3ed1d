"""Azure's own inference server on this machine: one process for a code and a model folder.

Input: two folders and an address. Output: a process that answers POST /score there as the
deployment does on Azure. The emulator gives it a Unix socket in a folder that nobody else may
enter, so that no other process can take its place or call it without the endpoint's keys. Without
Unix sockets (Windows) it binds a port itself, and writes the port and a secret, required in each
request, to a file in that folder. Tests and benchmarks give a port of loopback.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from azureml_emulator.web import LOOPBACK, EmulatorError

# The server's own main always binds every address; here it binds the given one. It ends when its
# standard input is closed, even if the process that started it is killed. A worker that
# hangs in `init` handles no signal, so the process group is killed after STOP_SECONDS.
LAUNCH = """
import os, pathlib, secrets, signal, socket, sys, threading, time, types
import azureml_inference_server_http as package
from azureml_inference_server_http import amlserver
def end():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
amlserver.DEFAULT_HOST = "127.0.0.1"
def serve(host, port, threads):
    import waitress
    from azureml_inference_server_http.server.entry import app
    from werkzeug.exceptions import Forbidden
    bound, secret = socket.create_server(("127.0.0.1", 0)), secrets.token_urlsafe()
    def answer(request, start):
        known = request.get("HTTP_X_EMULATOR_SECRET") == secret
        return (app if known else Forbidden())(request, start)
    pathlib.Path(address).write_text(f"{bound.getsockname()[1]} {secret}")
    waitress.serve(answer, sockets=[bound], threads=threads)
if (address := sys.argv.pop(1)) and UNIX:
    from azureml_inference_server_http import amlserver_linux
    run = amlserver_linux.run
    amlserver_linux.run = lambda host, port, *rest: run("unix", address, *rest)
elif address:
    package.amlserver_win = package.amlserver_linux = types.SimpleNamespace(run=serve)
amlserver.run()
"""
POLL_SECONDS = 0.05
STOP_SECONDS = 10.0  # score.py needs less to send its collected rows
UNIX = os.name == "posix"  # whether there are Unix sockets
Address = int | Path  # a port of loopback, a Unix socket, or the file with port and secret


def start(
    code: Path,
    model: Path,
    address: Address,
    log: Path,
    env: Mapping[str, str] = os.environ,
    timeout_seconds: float = 60.0,
    workers: int = 1,
    script: str = "score.py",
    aborted: threading.Event | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a server for `code`/`script` and the model below `model`; return once it is healthy.

    `env` is its complete environment; what it prints is appended to `log`. `stop` ends it.

    Raises EmulatorError, with the last line of the log, when it ends, is not healthy in time, or
    `aborted` is set; nothing is left running then.
    """
    path = "" if isinstance(address, int) else str(address)
    launch = LAUNCH.replace("STOP_SECONDS", str(STOP_SECONDS)).replace("UNIX", str(UNIX))
    command = [sys.executable, "-c", launch, path, "--entry_script", str(code.resolve() / script)]
    command += ["--model_dir", str(model.resolve()), "--worker_count", str(workers)]
    command += [] if path else ["--port", str(address)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=code,
            env={
                **env,
                "AML_APP_ROOT": str(code.resolve()),
                # It would be in the home folder.
                "GUNICORN_CMD_ARGS": f"{env.get('GUNICORN_CMD_ARGS', '')} --no-control-socket",
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C does not end it before `stop`
        )
    end = time.monotonic() + timeout_seconds
    reason = ""
    try:
        while not healthy(address):
            if process.poll() is not None:
                reason = "ended"
            elif aborted and aborted.is_set():
                reason = "was stopped before it was healthy"
            elif time.monotonic() > end:
                reason = f"was not healthy within {timeout_seconds:g} s"
            if reason:
                raise EmulatorError(f"{log}: the inference server {reason}: {_last_line(log)}")
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop(process, 0 if reason else STOP_SECONDS)
        raise
    return process


def found(address: Address) -> tuple[Address, dict[str, str]]:
    """Return a server's port or Unix socket, and headers for it. Raises OSError, ValueError."""
    if isinstance(address, Path) and UNIX and address.stat().st_uid != os.getuid():
        raise ConnectionError(f"{address} belongs to another user")
    if isinstance(address, int) or UNIX:
        return address, {}
    port, secret = address.read_text().split()
    return int(port), {"x-emulator-secret": secret}


class Connection(http.client.HTTPConnection):
    """A connection to a server at an address, without a proxy."""

    def __init__(self, address: Address) -> None:
        super().__init__(LOOPBACK, address if isinstance(address, int) else 80, timeout=2)
        self.address = address

    def connect(self) -> None:
        if isinstance(self.address, int):
            return super().connect()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        return self.sock.connect(str(self.address))


def healthy(address: Address, path: str = "/") -> bool:
    """Return whether the server at an address reports that it is healthy."""
    try:
        place, headers = found(address)
        with contextlib.closing(Connection(place)) as connection:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status == 200
    except (OSError, ValueError, http.client.HTTPException):
        return False


def stop(process: "subprocess.Popen[bytes]", seconds: float = STOP_SECONDS) -> None:
    """End a server and its workers, which send their collected rows; kill those that do not end."""
    if process.stdin:
        process.stdin.close()
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that hang, or outlived their master
    process.kill()
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
