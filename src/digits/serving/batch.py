"""Files of digits, scored by the endpoint's own code: as Azure ML calls a batch deployment.

Enters: Parquet files with a column `image` (binary, size x size bytes, white on black) or CSVs with
the header `[label,]pixel0,...`. Leaves, for each file, a folder of its name below
AZUREML_BI_OUTPUT_PATH: parts of ROWS rows in Parquet, and _SUCCESS once all are there. A part says
which model and which bytes it comes from, so that a run that was stopped continues; a part that was
cut short is written again. Nothing is renamed: mounted blob storage cannot do that.

Each 1,000 images in the order of a file are answered as one request to the endpoint with them: the
same bytes. In a request of another number the last of the six decimals may differ.
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
from pyarrow import csv
from pyarrow import parquet as pq

ROWS = 5000  # of a part: half a second's work of a core
BLOCK = 1000  # images scored at once
BUFFER_BYTES = 1 << 22  # of a file, read at a time
STREAMED = {"buffer_size": BUFFER_BYTES, "pre_buffer": False}  # no more of it is kept
IDENTITIES = ("request_id", "position", "id")  # columns that the answers keep
ERROR = "_ERROR"  # a file that says why the file of that folder could not be scored
SCRIPT = "DIGITS_SCRIPT"  # of the environment: what the digits are written in, or nothing
SUCCESS = "_SUCCESS"  # the mark of a finished folder, as of Hadoop; it holds the number of parts
service: Any  # score.py's, made by `init`


def is_csv(path: Path) -> bool:
    """Return whether a file is CSV by its name; the others are Parquet."""
    return path.suffix.lower() == ".csv"


def ignored(path: Path) -> bool:
    """Return whether a file is a mark beside the data, by the convention of Hadoop and Spark."""
    return path.name.startswith(("_", "."))


def raw(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold images byte by byte."""
    return kind in (pa.binary(), pa.large_binary()) or pa.types.is_fixed_size_binary(kind)


def schema(path: Path, size: int) -> pa.Schema:
    """Return the columns that matter: `image` as fixed-size binary, and identities.

    Raises ValueError when the file is damaged or has no images of that size.
    """
    pixels = [f"pixel{number}" for number in range(size * size)]
    if is_csv(path):
        with path.open("rb") as file:
            header = file.readline(1 << 20).decode("utf-8", "replace").rstrip("\r\n").split(",")
            if header not in (pixels, ["label", *pixels]):
                raise ValueError(f"its header is not [label,]pixel0,...,{pixels[-1]}")
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                raise ValueError("the last row has no line end, so it may be cut short")
        return pa.schema([("image", pa.binary(size * size))])
    known = pq.read_schema(path)
    if twice := [name for name in ("image", *IDENTITIES) if known.names.count(name) > 1]:
        raise ValueError(f"it has more than one column {twice[0]}")
    if "image" not in known.names:
        raise ValueError(f"it has no column image, but {', '.join(known.names)[:200]}")
    kind = known.field("image").type
    if not raw(kind):
        raise ValueError(f"its column image is {kind}, not binary: {size * size} bytes an image")
    kept = [(name, known.field(name).type) for name in IDENTITIES if name in known.names]
    plain = [
        (name, kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in kept
    ]
    return pa.schema([("image", pa.binary(size * size)), *plain])


def parts(path: Path, size: int, first: int = 0) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows of `schema`, ROWS at a time, from part number `first` on."""
    wanted = schema(path, size)
    skipped = first * ROWS
    source = _of_csv(path, wanted)
    if not is_csv(path):
        with pq.ParquetFile(path, **STREAMED) as file:
            groups = list(range(file.num_row_groups))
            sizes = [file.metadata.row_group(group).num_rows for group in groups]
            while groups and sizes[groups[0]] <= skipped:
                skipped -= sizes[groups.pop(0)]
        source = _of_parquet(path, wanted, groups)
    waiting: list[pa.RecordBatch] = []
    for batch in source:
        batch, skipped = batch.slice(skipped), max(0, skipped - batch.num_rows)
        while batch.num_rows:
            waiting.append(batch.slice(0, ROWS - sum(map(len, waiting))))
            batch = batch.slice(len(waiting[-1]))
            if sum(map(len, waiting)) == ROWS:
                yield _joined(waiting)
                waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _of_parquet(path: Path, wanted: pa.Schema, groups: list[int]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, **STREAMED) as file:
        for batch in file.iter_batches(ROWS, groups, wanted.names, use_threads=False):
            image = batch["image"].cast(wanted.field("image").type)
            if image.null_count:
                raise ValueError("an image is missing")
            rest = [batch[field.name].cast(field.type) for field in list(wanted)[1:]]
            yield pa.record_batch([image, *rest], schema=wanted)


def _of_csv(path: Path, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
    kind = wanted.field("image").type
    names = [f"pixel{number}" for number in range(kind.byte_width)]
    with csv.open_csv(
        path,
        read_options=csv.ReadOptions(block_size=BUFFER_BYTES, use_threads=False),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.uint8()), include_columns=names
        ),
    ) as reader:
        for batch in reader:
            pixels = pa.py_buffer(np.ascontiguousarray(batch.to_tensor()))  # raises on a gap
            image = pa.Array.from_buffers(kind, len(batch), [None, pixels])
            yield pa.record_batch([image], schema=wanted)


def origin(path: Path, model: str, script: str | None) -> dict[str, str]:
    """Return what a part must come from to be taken for done, as it stands in its metadata."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return {"input_sha256": content, "model_sha256": model, "script": script or ""}


def place(folder: Path, number: int) -> Path:
    """Return the path of a part."""
    return folder / f"part-{number:06}.parquet"


def done(folder: Path, wanted: dict[str, str]) -> set[int]:
    """Return the numbers of the parts that are done; raise ValueError when one is of another run.

    A part that cannot be read is done again.
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
    """Yield (number, rows) of each part of a file that is not done; raise as `done` and `parts`."""
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
    """Score one part and write its answers; return how many."""
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
    """Mark a folder as finished, with the number of its parts."""
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
            said.append(f"{path.name}: no digits")
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
        except Exception as error:  # whatever it is, who waits for the job is told
            (folder / ERROR).write_text(f"{path.name}: cannot be scored ({error})", "utf-8")
            raise
        (folder / ERROR).unlink(missing_ok=True)
        finish(folder)
        said.append(f"{path.name}: {sum(counts)} images")
    return said
