"""Run one stage, or one script for people, of the code beside this file: `python src STAGE ...`.

Started this way a stage always runs the src of the directory it stands in, also in an
experiment's temporary folder.
"""

import contextlib
import errno
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

from digits import exact

MENDS = {
    errno.ENOSPC: "free some space on that disk and run again",
    errno.ENOENT: "run `dvc repro`, which makes it, or correct the name",
    errno.EACCES: "give yourself the right to it and run again",
}


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


def main(arguments: list[str]) -> int:
    """Run the stage or script named first with the other arguments; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    exact.settle()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import digits.pipeline
    from digits.errors import DigitsError

    stages = [module.name for module in pkgutil.iter_modules(digits.pipeline.__path__)]
    name = arguments[0] if arguments else ""
    others = ["bench", "noise", "params", "realism"]
    if name not in stages + others:
        print(f"usage: python src {{{','.join(stages + others)}}} ...", file=sys.stderr)
        return 1
    package = "digits.pipeline" if name in stages else "digits"
    try:
        with hidden_stderr():
            module = importlib.import_module(f"{package}.{name}")
        module.main(arguments[1:])
    except DigitsError as error:
        print(f"{name}: {error}", file=sys.stderr)
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
        print(f"{name}: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
