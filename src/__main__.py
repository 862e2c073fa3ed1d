"""Run one stage, or one script for people, of the code beside this file: `python src STAGE ...`.

Started this way a stage always runs the src of the directory it stands in, also in an
experiment's temporary folder. Settings that must be made before NumPy or TensorFlow are
loaded, so that the same commit gives the same bytes on other processors, are made here.
"""

import errno
import importlib
import os
import pkgutil
import platform
import sys

EXACT = {
    # Kernels chosen by processor differ in the last bit: TensorFlow's and NumPy's.
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    # TensorFlow turns oneDNN's operations on by itself where it finds AVX512_VNNI. Off costs
    # nothing here: an epoch took 17 s instead of 19 s on two cores.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    # NumPy's own loops for exp, log and the like differ between AVX2 and AVX512.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
MENDS = {
    errno.ENOSPC: "free some space on that disk and run again",
    errno.ENOENT: "run `dvc repro`, which makes it, or correct the name",
    errno.EACCES: "give yourself the right to it and run again",
}


def main(arguments: list[str]) -> int:
    """Run the stage or script named first with the other arguments; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.update(EXACT)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import digits.pipeline
    from digits.errors import DigitsError

    stages = [module.name for module in pkgutil.iter_modules(digits.pipeline.__path__)]
    name = arguments[0] if arguments else ""
    others = ["params", "realism"]
    if name not in stages + others:
        print(f"usage: python src {{{','.join(stages + others)}}} ...", file=sys.stderr)
        return 1
    package = "digits.pipeline" if name in stages else "digits"
    try:
        importlib.import_module(f"{package}.{name}").main(arguments[1:])
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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
