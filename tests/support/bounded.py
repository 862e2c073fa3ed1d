"""Decode requests as the endpoint does, each within a limit of processor time and of memory.

The requests are a pickled list of (name, body) on the standard input. The name of each is printed
before it is decoded; a request that exceeds a limit ends the process.
"""

import contextlib
import math
import pickle
import re
import resource
import sys
import time
from pathlib import Path

from digits.runtime.normalise import normalise
from digits.runtime.photograph import find_ink
from digits.serving.picture import RefusedError
from digits.serving.request import Reader, decode

SECONDS = 5  # of processor time; the kernel counts whole ones
MEMORY = 700_000_000  # bytes


def peak(reset: bool = False) -> int:
    """Return the largest memory of this process, bytes, since it was reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    for name, body in pickle.load(sys.stdin.buffer):
        print(name, flush=True)
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, resource.RLIM_INFINITY))
        before = peak(reset=True)
        with contextlib.suppress(RefusedError):
            decode(body, 28, Reader(find_ink, normalise))
        assert peak() - before < MEMORY
    print("all")
