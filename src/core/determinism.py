"""Environment variables that make CPU results bit-identical across processors.

Call `configure` before NumPy or TensorFlow is imported. Standard library only: a copy of this
file travels in the model folder, so that serving computes as training did.
"""

import os
import platform

X86 = {
    # Kernels chosen by processor differ in the last bit: TensorFlow's and NumPy's.
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    # TensorFlow turns oneDNN's operations on by itself on some processors only.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    # NumPy's own loops for exp, log and the like differ between AVX2 and AVX512.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
# An operation that splits a sum among threads would make their number part of the result; the
# operations of a graph still run beside each other.
SETTINGS = {"TF_NUM_INTRAOP_THREADS": "1"}
SETTINGS |= X86 if platform.machine() in ("x86_64", "AMD64") else {}


def configure() -> None:
    """Set the variables in this process and in those that it starts, whatever they were."""
    os.environ.update(SETTINGS)
