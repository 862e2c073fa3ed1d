"""Score files of digits on all cores of this machine, with the endpoint's code.

Input: files and folders of any format that sources/unlabelled.py reads. Output: a folder of answers
for each. One process reads, and one single-threaded process per core scores. Memory does not grow
with the size of Parquet files of the form that serving/batch.py reads; others are converted to it
first. After an interruption, parts that are complete are not scored again.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from core.console import hidden_stderr
from core.dataset import light_paper
from core.errors import DigitsError
from core.files import atomic_write
from core.tables import limited_memory
from digits.serving import batch
from digits.sources.unlabelled import kind_of, read_unlabelled

PACKAGE = Path("data", "package")
# Keras imports these for unused wrappers, which takes a third of its loading time.
UNUSED = ("matplotlib", "sklearn")
CONVERTED = "_input.parquet"  # in a folder of answers, until the answers are complete
FIRST = 250  # images that show whether a file needs a conversion
PARTS_PER_PROCESS = 3  # parts that are read and not yet scored


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def manifest(package: Path, script: str | None) -> tuple[str, int]:
    """Return the SHA-256 of the model's weights and its image size.

    Raises DigitsError when the folder is missing or corrupted, or the model does not know `script`.
    """
    path = package / "data" / "model" / "manifest.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        model, size, scripts = (
            str(content["model_sha256"]),
            int(content["params"]["image_size"]),
            list(content["scripts"]),
        )
    except FileNotFoundError:
        raise DigitsError(f"{path}: not found. Run `dvc repro` or `dvc pull`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DigitsError(
            f"{path}: is corrupted ({error!r}). Run `dvc repro -f package`."
        ) from None
    if script is not None and script not in scripts:
        raise DigitsError(
            f"--script {script}: expected a script of the model: {', '.join(scripts)}"
        )
    return model, size


def check(files: list[Path], size: int) -> int | None:
    """Return the number of images in the files, None if unknown in advance.

    Raises DigitsError for the first file that is missing, corrupted or of an unknown format.
    """
    names = [path.name for path in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DigitsError(f"{min(twice)}: two files have this name. Score them one by one.")
    if missing := [path for path in files if not path.exists()]:
        raise DigitsError(f"{missing[0]}: not found. Correct the name.")
    known = [is_native(path, size) for path in files]  # all are looked at
    return sum(parquet.read_metadata(path).num_rows for path in files) if all(known) else None


def native(files: list[Path], size: int, folder: Path) -> list[Path]:
    """Return the files as serving/batch.py reads them; others are converted in a folder."""
    check(files, size)
    found = [path if is_native(path, size) else folder / f"{path.name}.parquet" for path in files]
    for path, converted in zip(files, found, strict=True):
        if path != converted:
            convert(path, converted, size)
    return found


def is_native(path: Path, size: int) -> bool:
    """Return whether a file is Parquet with raw images that need no conversion, by the first ones.

    Raises DigitsError if it is corrupted.
    """
    if kind_of(path) != "parquet":
        return False
    try:
        with limited_memory(path), parquet.ParquetFile(path) as file:
            known = file.schema_arrow
            if "image" not in known.names or not batch.raw(known.field("image").type):
                return False
            batch.schema(path, size)
            rows = next(file.iter_batches(FIRST, columns=["image"]), None)
        first = [one for one in rows["image"].to_pylist() if one is not None] if rows else []
    except (OSError, ValueError) as error:  # Arrow's errors are among them
        raise unreadable(path, error) from None
    if any(len(one) != size * size for one in first):
        return False
    images = np.frombuffer(b"".join(first), np.uint8).reshape(-1, size, size)
    return not light_paper(images) and int(images.max(initial=0)) != 1


def convert(path: Path, target: Path, size: int) -> None:
    """Write the images of any file or folder as raw images in Parquet; print what was changed."""
    images, notes = read_unlabelled(path, size)
    for note in notes:
        print(f"{path}: {note}", file=sys.stderr)
    schema = pa.schema([("image", pa.binary(size * size))])
    with atomic_write(target) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(images), batch.ROWS):
            rows = np.ascontiguousarray(images[start : start + batch.ROWS])
            column = pa.Array.from_buffers(
                schema.field(0).type, len(rows), [None, pa.py_buffer(rows)]
            )
            writer.write_batch(pa.record_batch([column], schema=schema))


def unreadable(path: Path, error: Exception) -> DigitsError:
    """Return the error for a file that cannot be read."""
    reason = " ".join(str(error).split())[:300]
    return DigitsError(f"{path}: cannot be scored ({reason}). Fix the file and run again.")


def init_worker(package: Path) -> None:
    """Initialise a worker process that ends with its parent, even if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    sys.dont_write_bytecode = True  # the model folder is an output and must not change
    os.environ["AZUREML_MODEL_DIR"] = str(package)
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]

    def end() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def score_part(rows: pa.Buffer, schema: pa.Schema, number: int, folder: Path, origin: dict) -> int:
    """Score a part; the first call in a process loads the model."""
    if not hasattr(batch, "service"):
        with hidden_stderr():
            batch.init()
    return batch.answer(pa.ipc.read_record_batch(rows, schema), number, folder, origin)


def score(
    files: list[Path], out: Path, package: Path, script: str | None
) -> Iterator[tuple[int, bool]]:
    """Score each file into a folder of its name; yield (number of images, whether scored now).

    Parts that an earlier call completed are not scored again. Raises DigitsError for a corrupted
    file, whose answers are deleted, and for existing answers of another model or file.
    """
    model, size = manifest(package, script)
    context = multiprocessing.get_context("spawn")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with (
            FileLock(out / ".lock", 0),
            ProcessPoolExecutor(cores(), context, init_worker, (package.resolve(),)) as pool,
        ):
            try:
                for path in files:
                    folder = out / path.name
                    source = path if is_native(path, size) else folder / CONVERTED
                    if source != path:
                        convert(path, source, size)
                    origin = batch.origin(source if path.is_dir() else path, model, script)
                    yield from _score(pool, source, folder, origin, size)
                    (folder / CONVERTED).unlink(missing_ok=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except Timeout:
        raise DigitsError(f"{out}: another `digits score` is running. Wait for it.") from None
    except BrokenProcessPool:
        raise DigitsError("a scoring process was killed. Free memory and run again.") from None
    except (ValueError, RuntimeError) as error:  # of score.py: the model folder is corrupted
        raise DigitsError(str(error)) from None


def _score(
    pool: Executor, path: Path, folder: Path, origin: dict[str, str], size: int
) -> Iterator[tuple[int, bool]]:
    folder.mkdir(exist_ok=True)
    try:
        have = batch.done(folder, origin)
    except ValueError as error:
        raise DigitsError(f"{folder}: {error}. Delete it or choose another --out.") from None
    for number in have:
        yield parquet.read_metadata(batch.place(folder, number)).num_rows, False
    running: set[Future] = set()
    following = batch.todo(path, folder, origin, size)
    while True:
        try:
            with limited_memory(path):
                number, rows = next(following)
        except StopIteration:
            break
        except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
            wait(running)
            if isinstance(error, MemoryError) or getattr(error, "errno", None):
                raise DigitsError(
                    f"{path}: cannot be read ({error}). Run again to continue."
                ) from None
            shutil.rmtree(folder)
            raise unreadable(path, error) from None
        task = (rows.serialize(), rows.schema, number, folder, origin)
        running.add(pool.submit(score_part, *task))
        if len(running) >= PARTS_PER_PROCESS * cores():
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            yield from ((future.result(), True) for future in finished)
    yield from ((future.result(), True) for future in running)
    batch.finish(folder)
