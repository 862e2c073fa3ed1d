"""The entry script of a batch deployment on Azure ML: score files with the endpoint's code.

Input: Parquet files with a column `image` (binary, size x size bytes, white on black). Output: one
folder per file, with the name of the file, below AZUREML_BI_OUTPUT_PATH: Parquet parts of ROWS
rows, then _SUCCESS. Each part records its model, its script and the hash of its input, so an
interrupted run continues; an incomplete part is rewritten. Nothing is renamed: mounted blob storage
cannot do that.

Every 1,000 consecutive images of a file are answered like one request of 1,000: byte-identical. In
requests of another size the sixth decimal may differ.
`digits score` runs the same functions on all cores of this machine.
"""

import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

ROWS = 5000  # per part: half a second of work for one core
BLOCK = 1000  # images scored at once
ROWS_READ = 250  # at once: each may repeat a value of megabytes that the file holds once
STREAMED = {"buffer_size": 1 << 22, "pre_buffer": False}  # limits the memory per file
IDENTITIES = ("request_id", "position", "id")  # columns that are copied to the answers
ERROR = "_ERROR"  # file with the reason why the input of its folder could not be scored
SCRIPT = "DIGITS_SCRIPT"  # environment variable: the script of the digits, or empty
SUCCESS = "_SUCCESS"  # marks a complete folder, as in Hadoop; contains the number of parts
service: Any  # score.Service, set by `init`


def ignored(path: Path) -> bool:
    """Return whether a file is a marker and not data, by the convention of Hadoop and Spark."""
    return path.name.startswith(("_", "."))


def raw(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold images byte by byte."""
    return kind in (pa.binary(), pa.large_binary()) or pa.types.is_fixed_size_binary(kind)


def schema(path: Path, size: int) -> pa.Schema:
    """Return the columns that are read: `image` as fixed-size binary, then IDENTITIES.

    Raises ValueError if the file is corrupted or has no images of that size.
    """
    known = pq.read_schema(path)
    if twice := [name for name in ("image", *IDENTITIES) if known.names.count(name) > 1]:
        raise ValueError(f"it has more than one column {twice[0]}")
    if "image" not in known.names:
        raise ValueError(f"expected a column image, found {', '.join(known.names)[:200]}")
    kind = known.field("image").type
    if not raw(kind):
        raise ValueError(f"column image: expected {size * size} bytes each (binary), found {kind}")
    kept = [(name, known.field(name).type) for name in IDENTITIES if name in known.names]
    plain = [
        (name, kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in kept
    ]
    return pa.schema([("image", pa.binary(size * size)), *plain])


def parts(path: Path, size: int, first: int = 0) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, with its `schema`, ROWS at a time, from part number `first` on."""
    wanted = schema(path, size)
    skipped = first * ROWS
    with pq.ParquetFile(path, **STREAMED) as file:
        groups = list(range(file.num_row_groups))
        sizes = [file.metadata.row_group(group).num_rows for group in groups]
        while groups and sizes[groups[0]] <= skipped:
            skipped -= sizes[groups.pop(0)]
        waiting: list[pa.RecordBatch] = []
        for batch in _read(file, wanted, groups):
            batch, skipped = batch.slice(skipped), max(0, skipped - batch.num_rows)
            while batch.num_rows:
                waiting.append(batch.slice(0, ROWS - sum(map(len, waiting))))
                batch = batch.slice(len(waiting[-1]))
                if sum(map(len, waiting)) == ROWS:
                    yield pa.concat_batches(waiting)
                    waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _read(file: pq.ParquetFile, wanted: pa.Schema, groups: list[int]) -> Iterator[pa.RecordBatch]:
    for batch in file.iter_batches(ROWS_READ, groups, wanted.names, use_threads=False):
        image = batch["image"].cast(wanted.field("image").type)
        if image.null_count:
            raise ValueError("an image is missing")
        rest = [batch[field.name].cast(field.type) for field in list(wanted)[1:]]
        yield pa.record_batch([image, *rest], schema=wanted)


def origin(path: Path, model: str, script: str | None) -> dict[str, str]:
    """Return the metadata that a complete part of this file must have."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return {"input_sha256": content, "model_sha256": model, "script": script or ""}


def place(folder: Path, number: int) -> Path:
    """Return the path of a part."""
    return folder / f"part-{number:06}.parquet"


def done(folder: Path, wanted: dict[str, str]) -> set[int]:
    """Return the numbers of the complete parts; raise ValueError if one belongs to another run.

    A part that cannot be read is not among them, so that it is scored again.
    """
    found = set()
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            metadata = pq.read_schema(path).metadata or {}
        except (OSError, pa.ArrowException):
            continue
        for name, value in wanted.items():
            if (known := metadata.get(name.encode(), b"").decode()) != value:
                raise ValueError(f"holds answers of another {name} ({known[:12] or 'none'})")
        found.add(int(path.stem.split("-")[1]))
    return found


def todo(
    path: Path, folder: Path, wanted: dict[str, str], size: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number, rows) of each incomplete part of a file; raise as `done` and `parts` do."""
    have = done(folder, wanted)
    complete = str(len(have)).encode()
    if (folder / SUCCESS).exists() and (folder / SUCCESS).read_bytes() == complete:
        return
    (folder / SUCCESS).unlink(missing_ok=True)
    first = next(number for number in range(len(have) + 1) if number not in have)
    for number, batch in enumerate(parts(path, size, first), start=first):
        if number not in have:
            yield number, batch


def answer(batch: pa.RecordBatch, number: int, folder: Path, wanted: dict[str, str]) -> int:
    """Score one part and write its answers; return their number."""
    size, image = service.size, batch["image"]
    pixels = np.frombuffer(image.buffers()[1], np.uint8)[image.offset * size * size :]
    images = pixels[: len(batch) * size * size].reshape(-1, size, size)
    starts = range(0, len(images), BLOCK)
    script = wanted["script"] or None
    blocks = [service.scores(images[start : start + BLOCK], script) for start in starts]
    digits, confidence, ood_score, probabilities = map(np.concatenate, zip(*blocks, strict=True))
    columns = {"row": pa.array(number * ROWS + np.arange(len(images)))}
    columns |= {name: batch[name] for name in batch.schema.names[1:]}
    columns |= {
        "digit": pa.array(service.classes).take(pa.array(digits)),
        "confidence": pa.array(confidence),
        "ood_score": pa.array(ood_score),
        "probabilities": pa.FixedSizeListArray.from_arrays(
            probabilities.ravel(), probabilities.shape[1]
        ),
        "model_version": pa.repeat(service.version, len(images)),
    }
    table = pa.table(columns).replace_schema_metadata(wanted)
    with io.BytesIO() as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=["digit", "model_version"])
        place(folder, number).write_bytes(part.getbuffer())
    return len(images)


def finish(folder: Path) -> None:
    """Mark a folder as complete, with the number of its parts."""
    (folder / SUCCESS).write_text(str(len(list(folder.glob("part-*.parquet")))))


def init() -> None:
    """Load the model as the endpoint does."""
    global service
    sys.path.insert(0, str(Path(__file__).parent))
    import score

    service = score.load()


def run(mini_batch: Iterable[str]) -> list[str]:
    """Score some files; return a line for each."""
    said = []
    for path in map(Path, mini_batch):
        if ignored(path):
            said.append(f"{path.name}: skipped")
            continue
        folder = Path(os.environ["AZUREML_BI_OUTPUT_PATH"]) / path.name
        folder.mkdir(parents=True, exist_ok=True)
        model = service.model.manifest["model_sha256"]
        wanted = origin(path, model, os.environ.get(SCRIPT))
        try:
            counts = [
                answer(batch, number, folder, wanted)
                for number, batch in todo(path, folder, wanted, service.size)
            ]
        except Exception as error:  # any error is reported to whoever waits for the job
            (folder / ERROR).write_text(f"{path.name}: cannot be scored ({error})", "utf-8")
            raise
        (folder / ERROR).unlink(missing_ok=True)
        finish(folder)
        said.append(f"{path.name}: {sum(counts)} images")
    return said
