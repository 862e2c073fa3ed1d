"""Time stage monitor on a million requests: `make bench-monitor`, `--record` for BENCHMARKS.md.

Compared with what pyarrow needs to read the same Parquet file, in batches and on one thread, in the
same run. Each is a process of its own, so that its largest memory is known (Linux only).
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from answered import answered, batches, labels

from benchmarks.record import Goal, finish
from core.dataset import Digits, write_split
from digits.production import records

REQUESTS, PARTS, REFERENCE = 1_000_000, 50, 5600
STAGE = "from digits.pipeline.monitor import main; main(sys.argv[1:])"
READ = """
from pyarrow import parquet
with parquet.ParquetFile(sys.argv[1]) as file:
    for batch in file.iter_batches(use_threads=False): pass
"""
# A parent's memory would count elsewhere; the time is without the start of Python and its imports.
MEASURED = """
import sys, time; sys.path.insert(0, "src")
{imports}
began = time.perf_counter()
{code}
print("SECONDS", time.perf_counter() - began)
print(open("/proc/self/status").read())
"""


def make(folder: Path) -> None:
    """Write a production of a million requests with noise as images, and its validation split."""
    size = REQUESTS // PARTS
    columns = answered(size, np.random.default_rng(10))
    noise = np.random.default_rng(11).integers(0, 256, (size, 784), np.uint8)
    columns["image"] = [image.tobytes() for image in noise]  # as little alike as handwriting
    part = pa.Table.from_batches(batches(columns)).combine_chunks()

    def stream() -> Iterator[pa.RecordBatch]:
        for number in range(PARTS):
            ids = pa.array([f"{number}-{row}" for row in range(size)])
            yield from part.set_column(1, "request_id", ids).to_batches()

    production = folder / "production"
    records.write(production / "requests.parquet", stream(), records.REQUESTS)
    first = part.slice(0, REFERENCE).to_batches()
    records.write(production / "reference.parquet", first, records.REQUESTS)
    records.write(production / "labels.parquet", labels(columns, np.arange(9)), records.LABELS)
    images = noise[:REFERENCE].reshape(-1, 28, 28)
    truth = columns["truth"][:REFERENCE].astype(np.uint8)
    write_split(folder / "validation.npz", [Digits(images, truth, "mnist", False, 10)])


def measured(imports: str, code: str, *arguments: str) -> tuple[float, float]:
    """Return the seconds of code in a process of its own, and its largest memory in megabytes."""
    text = MEASURED.format(imports=imports, code=code)
    command = [sys.executable, "-c", text, *arguments]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    seconds = re.search(r"SECONDS (.*)", said)
    kilobytes = re.search(r"VmHWM:\s+(\d+)", said)
    assert seconds and kilobytes
    return float(seconds[1]), int(kilobytes[1]) * 1024 / 1e6


def monitored(folder: Path) -> tuple[float, float]:
    """Return seconds and megabytes of the stage."""
    arguments = ["--production", str(folder / "production"), "--out", str(folder / "out")]
    arguments += ["--validation", str(folder / "validation.npz")]
    return measured("import digits.pipeline.monitor", STAGE, *arguments)


def read(folder: Path) -> tuple[float, float]:
    """Return seconds and megabytes of pyarrow."""
    path = folder / "production" / "requests.parquet"
    return measured("import pyarrow.parquet", READ, str(path))


def main(arguments: list[str]) -> None:
    """Measure both in turn, print the table."""
    parser = argparse.ArgumentParser(prog="make bench-monitor", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write the tables of BENCHMARKS.md")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        rounds = [(read(folder), monitored(folder)) for _ in range(given.repetitions)]
    rows = [["a million requests", "seconds", "megabytes"]]
    middle = []
    for title, found in zip(
        ("pyarrow reads them", "stage monitor"), zip(*rounds, strict=True), strict=True
    ):
        seconds, megabytes = (statistics.median(column) for column in zip(*found, strict=True))
        middle.append((seconds, megabytes))
        rows.append([title, f"{seconds:.1f}", f"{megabytes:,.0f}"])
    goals = [
        Goal("times what pyarrow needs to read them", middle[1][0] / middle[0][0], "at most", 4),
        Goal("megabytes of memory", middle[1][1], "at most", 400),
    ]
    finish("bench_monitor", rows, goals, f"medians of {given.repetitions}", given.record)
