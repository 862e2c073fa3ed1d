"""Time the endpoint on this machine: `make bench-serve`.

Each server is Azure ML's inference server on loopback, with one worker, or one per core for
batches. Each request opens a new connection, because the server closes them. Requests are collected
by a receiver of this benchmark, and client and receiver share the cores with the server.

- ours: score.py with the packaged model, one image per request in JSON
- constant: the same score.py, which reads, decodes and collects, but returns a constant answer
- uncollected: ours without collection, which is compared with MLflow's server
- mlflow: `mlflow models serve` with the same Keras model, saved and loaded by MLflow
- loader: `mlflow models serve` with the model folder and its loader

Finally, without a server: the packaged model called in one process, and the total time of
`digits score` for a Parquet file.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow.keras
import numpy as np
import psutil
import pyarrow as pa
from pyarrow import parquet
from serving import serving_code

from azureml_emulator import inference
from benchmarks import record
from benchmarks.bench import run
from core.dataset import read_split
from core.errors import DigitsError
from digits.production import scoring as batch_scoring
from digits.production.scoring import cores

PACKAGE, VALIDATION = Path("data", "package"), Path("data", "prepared", "validation.npz")
CONSTANT = """
import real

def init():
    real.init()
    size = real.service.size
    answer = real.service.predict(real.np.zeros((1, size, size), "uint8"), None)
    real.service.predict = lambda images, script: answer

@real.rawhttp
def run(request):
    return real.run(request)
"""
ALONE = """
import sys, time
import mlflow.pyfunc, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
size = model.metadata.get_input_schema().inputs[0].shape[1]
images = numpy.zeros((1000, size, size), "uint8")
model.predict(images)
start, count = time.perf_counter(), 0
while time.perf_counter() < start + 5:
    model.predict(images)
    count += len(images)
print(count / (time.perf_counter() - start))
"""
CLIENTS = 1  # at once: with more the cores that they share with the server are what is measured
BATCH = 100  # images
START_SECONDS = 120.0
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}  # the package's folder stays as it is
SERVERS = ("ours", "constant", "uncollected", "mlflow", "loader")
GOALS = (
    ("rate against the constant answer", "at least", 0.7),
    ("collected against mlflow models serve", "at least", 25),
    ("uncollected against mlflow models serve", "at least", 25),
    ("p99 against the median at half the peak", "at most", 3),
    (f"images/s in batches of {BATCH}, one worker, against one process", "at least", 0.5),
    ("growth of memory after the first tenth", "at most", 0.05),
    ("images/s of `digits score`, against one process", "at least", 1.8),
    ("growth of its memory after a fifth", "at most", 0.05),
)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def http(body: bytes, path: str) -> bytes:
    """Return a whole POST with JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def receive(connection: socket.socket) -> bytes:
    """Return all that comes until its length is reached or the other side ends it."""
    data, length = b"", None
    while chunk := connection.recv(1 << 16):
        data += chunk
        if length is None and (end := data.find(b"\r\n\r\n")) >= 0:
            for line in data[:end].lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = end + 4 + int(line[15:])
        if length is not None and len(data) >= length:
            break
    return data


def sink(listener: socket.socket) -> None:
    """Accept what the collector sends, and forget it."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            receive(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def ask(port: int, request: bytes) -> None:
    """Send one request; raise DigitsError unless the answer is 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        answer = receive(connection)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise DigitsError(f"the server answered {answer[:200]!r}; is the package of this commit?")


def peak(port: int, request: bytes, seconds: float, clients: int = CLIENTS) -> float:
    """Return the requests answered a second to clients that wait for nothing else."""
    counts = [0] * clients
    start = time.perf_counter()

    def client(number: int) -> None:
        while time.perf_counter() < start + seconds:
            ask(port, request)
            counts[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def latencies(port: int, request: bytes, rate: float, seconds: float) -> list[float]:
    """Return the milliseconds of each answer to requests at even distances.

    They count from when a request was due, also where an earlier one held it up.
    """
    due = iter(time.perf_counter() + 0.1 + np.arange(int(rate * seconds)) / rate)
    lock, found = threading.Lock(), []

    def client() -> None:
        while True:
            with lock:
                moment = next(due, None)
            if moment is None:
                return
            time.sleep(max(0.0, moment - time.perf_counter()))
            ask(port, request)
            found.append(1000 * (time.perf_counter() - moment))

    threads = [threading.Thread(target=client) for _ in range(2 * CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def memory(process: "subprocess.Popen[bytes]", port: int, request: bytes, count: int) -> float:
    """Return by what share the workers' memory grew from a tenth of the requests to the end."""
    workers = psutil.Process(process.pid).children()
    sizes = []
    for number in range(count + 1):
        if number % max(1, count // 10) == 0:
            sizes.append(sum(worker.memory_info().rss for worker in workers) / 1e6)
            print(f"memory after {number:,} requests: {sizes[-1]:.1f} MB", flush=True)
        ask(port, request)
    return sizes[-1] / sizes[1] - 1


@contextlib.contextmanager
def azure(
    folder: Path, name: str, package: Path, env: dict[str, str], workers: int = 1
) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """Serve the package with Azure's server, `ours` or `constant`; yield port and process."""
    code = serving_code(folder / name)
    if name == "constant":
        (code / "score.py").rename(code / "real.py")
        (code / "score.py").write_text(CONSTANT, "utf-8")
    port = free_port()
    env = env | NO_BYTECODE
    process = inference.start(
        code, package, port, folder / f"{name}.log", env, START_SECONDS, workers
    )
    try:
        yield port, process
    finally:
        inference.stop(process)


@contextlib.contextmanager
def mlflow_server(folder: Path, package: Path) -> Iterator[int]:
    """Serve a model folder with MLflow; yield the port."""
    port, log = free_port(), folder / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(package)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--env-manager", "local"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | NO_BYTECODE
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not inference.healthy(port, "/ping"):
            if process.poll() is not None or time.monotonic() > end:
                raise DigitsError(f"mlflow did not serve: {log.read_text('utf-8')[-500:]}")
            time.sleep(0.2)
        yield port
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        inference.stop(process)


def scoring(folder: Path, package: Path, pool: np.ndarray, count: int) -> tuple[float, float]:
    """Score `count` images on all cores; return images/s and by what share memory grew.

    The images are those of `pool`, uint8 (n, size, size), shifted, as Parquet.
    """
    path, kind = folder / "digits.parquet", pa.binary(pool[0].size)
    with parquet.ParquetWriter(path, pa.schema([("image", kind)])) as writer:
        for start in range(0, count, len(pool)):
            block = np.roll(pool, start // len(pool), axis=2)[: count - start]
            image = pa.Array.from_buffers(kind, len(block), [None, pa.py_buffer(block.copy())])
            writer.write_table(pa.table({"image": image}))
    me, sizes = psutil.Process(), []
    began = time.perf_counter()
    for _ in batch_scoring.score([path], folder / "answers", package, None):
        sizes.append(sum(process.memory_info().rss for process in (me, *me.children())))
    seconds = time.perf_counter() - began
    return count / seconds, sizes[-1] / sizes[len(sizes) // 5] - 1


def main(arguments: list[str]) -> None:
    """Measure each server in turn, print the table."""
    parser = argparse.ArgumentParser(prog="bench-serve", description=__doc__)
    parser.add_argument("--package", type=Path, default=PACKAGE)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--requests", type=int, default=5000, help="for memory; 200000: the claim")
    parser.add_argument("--images", type=int, default=1_000_000, help="for `digits score`")
    parser.add_argument("--record", action="store_true", help="write the tables of BENCHMARKS.md")
    given = parser.parse_args(arguments)
    package = given.package.resolve()
    manifest = json.loads((package / "data/model/manifest.json").read_text("utf-8"))
    classes, size = manifest["classes"], manifest["params"]["image_size"]
    pool = read_split(VALIDATION, len(classes), size)[0].images
    images = pool[:BATCH]
    single = http(json.dumps({"data": images[:1].tolist()}).encode(), "/score")
    batch = http(json.dumps({"data": images.tolist()}).encode(), "/score")
    invocation = http(json.dumps({"inputs": images[:1].tolist()}).encode(), "/invocations")

    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    receiver = multiprocessing.get_context("spawn").Process(target=sink, args=(listener,))
    receiver.start()
    env = os.environ | {"AZUREML_MDC_ENABLED": "true", "AZUREML_MDC_HOST": "127.0.0.1"}
    env |= {"AZUREML_MDC_PORT": str(listener.getsockname()[1])}
    rates: dict[str, list[float]] = {name: [] for name in SERVERS}
    rounds = range(given.repetitions)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            keras_model = keras.saving.load_model(package / "data/model/model.keras", compile=False)
            mlflow.keras.save_model(keras_model, str(folder / "keras"), pip_requirements=[])
            with (
                azure(folder, "ours", package, env) as (port, process),
                azure(folder, "constant", package, env) as (constant, _),
                azure(folder, "uncollected", package, dict(os.environ)) as (uncollected, _),
            ):
                ports = {"ours": port, "constant": constant, "uncollected": uncollected}
                for _ in rounds:
                    for name, each in ports.items():
                        rates[name].append(peak(each, single, given.seconds))
                half = statistics.median(rates["ours"]) / 2
                milliseconds = latencies(port, single, half, 2 * given.seconds)
                growth = memory(process, port, single, given.requests)
            batches = {}
            for workers in (1, cores()):
                with azure(folder, f"batches{workers}", package, env, workers) as (port, _):
                    found = [peak(port, batch, given.seconds, workers) for _ in rounds]
                batches[workers] = BATCH * statistics.median(found)
            for name, model in (("mlflow", folder / "keras"), ("loader", package)):
                with mlflow_server(folder, model) as port:
                    peak(port, invocation, 1)
                    rates[name] += [peak(port, invocation, given.seconds) for _ in rounds]
            alone = float(run([sys.executable, "-c", ALONE, str(package)], dict(os.environ)))
            scored = scoring(folder, package, pool, given.images)
    finally:
        receiver.terminate()
        receiver.join()
        listener.close()

    middle = {name: statistics.median(found) for name, found in rates.items()}
    rows = [["server, one image a request", "requests/s", "least", "most"]]
    for name, found in rates.items():
        rows.append([name, *(f"{rate:,.0f}" for rate in (middle[name], min(found), max(found)))])
    median, p99 = np.quantile(milliseconds, [0.5, 0.99])
    print(
        f"at {half:,.0f} requests/s: median {median:.2f} ms, p99 {p99:.2f} ms\n"
        f"images/s: one process {alone:,.0f}; batches of {BATCH}, one worker {batches[1]:,.0f}, "
        f"one a core {batches[cores()]:,.0f}; digits score {scored[0]:,.0f}"
    )
    figures = (
        middle["ours"] / middle["constant"],
        middle["ours"] / middle["mlflow"],
        middle["uncollected"] / middle["mlflow"],
        p99 / median,
        batches[1] / alone,
        growth,
        scored[0] / alone,
        scored[1],
    )
    goals = [
        record.Goal(name, figure, words, limit)
        for (name, words, limit), figure in zip(GOALS, figures, strict=True)
    ]
    record.finish("bench_serve", rows, goals, f"medians of {given.repetitions}", given.record)
