"""Azure's own inference server on this machine: one process for a code and a model folder.

What enters are two folders and a port; what leaves is a process that answers POST /score on
loopback as the deployment does on Azure. The emulator, tests and benchmarks start it here.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from azureml_emulator.web import EmulatorError

# The server's own main binds every address and has no option for it: here it binds loopback, and
# ends when its standard input does, with the process that started it, however that ends.
LAUNCH = """
import os, signal, threading
from azureml_inference_server_http import amlserver
def end():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end, daemon=True).start()
amlserver.DEFAULT_HOST = "127.0.0.1"
amlserver.run()
"""
POLL_SECONDS = 0.05
STOP_SECONDS = 10.0  # score.py sends what it has collected in less


def start(
    code: Path,
    model: Path,
    port: int,
    log: Path,
    env: Mapping[str, str] = os.environ,
    timeout_seconds: float = 60.0,
    workers: int = 1,
) -> "subprocess.Popen[bytes]":
    """Start a server for `code`/score.py and the model below `model`; return once it is healthy.

    `env` is all of its environment; what it prints is appended to `log`. `stop` ends it.

    Raises EmulatorError, with the last line of the log, when it ends or is not healthy in time;
    nothing is left running then.
    """
    command = [sys.executable, "-c", LAUNCH, "--entry_script", str(code.resolve() / "score.py")]
    command += ["--model_dir", str(model.resolve())]
    command += ["--port", str(port), "--worker_count", str(workers)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=code,
            env={**env, "AML_APP_ROOT": str(code.resolve()), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C ends it by `stop`, when it has collected all
        )
    end = time.monotonic() + timeout_seconds
    try:
        while not healthy(port):
            if process.poll() is not None:
                raise EmulatorError(f"{log}: the inference server ended: {_last_line(log)}")
            if time.monotonic() > end:
                raise EmulatorError(
                    f"{log}: the inference server was not healthy within {timeout_seconds:g} s: "
                    f"{_last_line(log)}"
                )
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop(process)
        raise
    return process


def healthy(port: int, path: str = "/") -> bool:
    """Return whether the server on a port of loopback says that it is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a server and its workers, which send what they collected; kill it when it does not go."""
    if process.stdin:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
