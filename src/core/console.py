"""What every command does around its work: settings before, plain messages instead of tracebacks.

Standard library only, so that a command can say what is missing when a package is.
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

MENDS = {
    errno.ENOSPC: "free some space on that disk and run again",
    errno.ENOENT: "correct the name, or bring the file; `dvc repro` makes those of the pipeline",
    errno.EACCES: "give yourself the right to it and run again",
}
READER_GONE = 141  # as a shell has it: 128 and the number of SIGPIPE


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
    """Hide what C++ prints: TensorFlow tells on import that oneDNN may change results."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def run(name: str, module: str, arguments: list[str]) -> int:
    """Import a module and call its `main`; return the exit code as `report_errors` does."""

    def work() -> None:
        with hidden_stderr():
            imported = importlib.import_module(module)
        imported.main(arguments)

    return report_errors(name, work)


def report_errors(name: str, work: Callable[[], int | None]) -> int:
    """Do some work; return its exit code, 0 where it returns none.

    1 with one line on standard error for what a person can fix, 130 for Ctrl-C, 141 when the
    reader of standard output is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    determinism.configure()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except DigitsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except shutil.Error as error:  # of a folder's copy: that of the first file
        _, target, reason = error.args[0][0]
        print(f"{name}: {target}: {reason}; mend this and run again", file=sys.stderr)
        return 1
    except OSError as error:
        mend = MENDS.get(error.errno or 0, "mend this and run again")
        reason = os.strerror(error.errno) if error.errno else error
        print(f"{name}: {error.filename or 'a file'}: {reason}; {mend}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"{name}: {error}; run `make repro`, or activate .venv first", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # who read may be gone, too
            sys.stdout.flush()
        print(f"{name}: stopped", file=sys.stderr, flush=True)
        os._exit(130)  # all is tidied up; TensorFlow's own end would take seconds more
    return code or 0
