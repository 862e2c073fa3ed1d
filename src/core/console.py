"""Run a command or a stage: configure the process, print errors in one line, set the exit code.

Input: a function, or a module with a function `main`. Output: an exit code. Standard library
only, so that a command can report a missing package.
"""

import contextlib
import errno
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from core import determinism
from core.errors import DigitsError

FIXES = {
    errno.ENOSPC: "Free some space on that disk and run again.",
    errno.ENOENT: "Correct the name or add the file. `dvc repro` creates the pipeline's files.",
    errno.EACCES: "Change its permissions and run again.",
}
OTHER_FIX = "Fix this and run again."
BROKEN_PIPE = 141  # as in a shell: 128 + SIGPIPE


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
    """Hide what C++ code prints: on import, TensorFlow logs that oneDNN may change results."""
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def interrupt_on_signals() -> None:
    """Handle SIGTERM, and SIGHUP unless it is ignored, like Ctrl-C."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def run(name: str, module: str, arguments: list[str]) -> int:
    """Import a module and call its `main` with the arguments; return the exit code."""

    def work() -> None:
        root = Path(os.environ.get("DVC_ROOT", "."))
        if (root / ".git" / "shallow").exists() and not root.samefile("."):
            raise DigitsError(
                "DVC loses experiments that run in a temporary folder of a shallow clone. Run `git "
                "fetch --unshallow`, then retry."
            )
        with hidden_stderr():
            imported = importlib.import_module(module)
        imported.main(arguments)

    return report_errors(name, work)


def report_errors(name: str, work: Callable[[], int | None]) -> int:
    """Call `work` and return its exit code, 0 if it returns None.

    An error that the user can fix is printed in one line on standard error, and the exit code is
    1. The code is 130 after Ctrl-C, and 141 when standard output was closed by its reader.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    determinism.configure()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for variable in ("NO_PROXY", "no_proxy"):  # the lower-case one has priority
        known = os.environ.get(variable, "")
        if "127.0.0.1" not in known.split(","):
            os.environ[variable] = f"{known},127.0.0.1".removeprefix(",")
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:  # for instance with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except DigitsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except shutil.Error as error:  # copying a folder failed; report the first file that did
        _, target, reason = error.args[0][0]
        print(f"{name}: {target}: {reason}. {OTHER_FIX}", file=sys.stderr)
        return 1
    except OSError as error:
        fix = FIXES.get(error.errno or 0, OTHER_FIX)
        reason = os.strerror(error.errno) if error.errno else error
        print(f"{name}: {error.filename or 'a file'}: {reason}. {fix}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"{name}: {error}. Run `make env`, or activate .venv first.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the reader may have ended, too
            sys.stdout.flush()
        print(f"{name}: stopped", file=sys.stderr, flush=True)
        os._exit(130)  # everything is cleaned up, and TensorFlow's exit would take seconds
    return code or 0
