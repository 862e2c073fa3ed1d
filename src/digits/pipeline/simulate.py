"""Stage simulate: score simulated production traffic with the packaged model.

Input: the split production without the digits that are used for training by now (data/labelled),
the validation split, the model folder and the endpoint's code. Output: requests.parquet,
labels.parquet, and reference.parquet, the scored validation split with which drift is tested.
"""

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from core import params
from core.dataset import Digits, read_split
from core.files import atomic_write
from digits.production.records import LABELS, REQUESTS
from digits.production.service import BATCH, Answers, Service
from digits.production.traffic import HOUR_MS, Stream, read
from digits.production.traffic import Schedule as Params

ROWS = 10_000  # per row group of a file, and in memory


def score(service: Service, images: np.ndarray, progress: tqdm) -> list[Answers]:
    """Return the answers to images, one per batch."""
    answers = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        answers.append(service.score(batch))
        progress.update(len(batch))
    return answers


def rows(
    times: np.ndarray, ids: list[str], images: np.ndarray, answers: list[Answers], deployment: str
) -> pa.Table:
    """Return n answered requests as a table of the schema REQUESTS."""
    columns = [
        times,
        ids,
        np.zeros(len(ids), np.uint16),
        [deployment] * len(ids),
        [batch.model_version for batch in answers for _ in batch.digits],
        [digit for batch in answers for digit in batch.digits],
        np.concatenate([batch.confidence for batch in answers]),
        np.concatenate([batch.ood_score for batch in answers]),
        [image.tobytes() for image in images],
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, REQUESTS.types, strict=True)]
    return pa.table(arrays, schema=REQUESTS)


def label_rows(requests: Stream, classes: tuple[str, ...]) -> Iterable[pa.Table]:
    """Yield the labels in the order in which they become known, as tables of the schema LABELS."""
    order = requests.known_labels()
    for start in range(0, len(order), ROWS):
        index = order[start : start + ROWS]
        labels, scripts = requests.truth(index)
        columns = [
            requests.label_times[index],
            requests.ids_of(index),
            np.zeros(len(index), np.uint16),
            [classes[label] for label in labels],
            scripts,
        ]
        arrays = [
            pa.array(column, kind) for column, kind in zip(columns, LABELS.types, strict=True)
        ]
        yield pa.table(arrays, schema=LABELS)


def reference_rows(service: Service, parts: list[Digits], start: int, progress: tqdm) -> pa.Table:
    """Return the scored validation split, with times in the hour before the traffic."""
    images = np.concatenate([part.images for part in parts])
    times = start - HOUR_MS + HOUR_MS * np.arange(len(images)) // len(images)
    ids = [f"reference-{number:07}" for number in range(len(images))]
    return rows(times, ids, images, score(service, images, progress), "reference")


def main(arguments: list[str]) -> None:
    """Write three Parquet files, or none if one fails."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    for name in ("--pool", "--validation", "--labelled", "--package", "--code", "--out"):
        parser.add_argument(name, type=Path, required=True)
    paths = parser.parse_args(arguments)
    values = params.load()
    task, config = params.task(values), params.section(Params, values, "simulate")
    requests = read(
        paths.pool, paths.labelled, config, len(task.classes), task.image_size, task.seed
    )
    for note in requests.notes:
        print(note)
    validation = read_split(paths.validation, len(task.classes), task.image_size)
    total = len(requests) + sum(len(part) for part in validation)
    service = Service(paths.code, paths.package)

    with ExitStack() as stack:

        def writer(name: str, schema: pa.Schema) -> parquet.ParquetWriter:
            partial = stack.enter_context(atomic_write(paths.out / name))
            repeating = ["deployment", "model_version", "digit", "label", "script"]
            columns = [column for column in repeating if column in schema.names]
            options = {"compression": "zstd", "use_dictionary": columns, "store_schema": False}
            return stack.enter_context(parquet.ParquetWriter(partial, schema, **options))

        progress = stack.enter_context(
            tqdm(total=total, unit="request", mininterval=1, disable=None)
        )
        reference = writer("reference.parquet", REQUESTS)
        reference.write_table(
            reference_rows(service, validation, config.start_ms, progress), row_group_size=ROWS
        )
        answered = writer("requests.parquet", REQUESTS)
        for part in requests.parts(ROWS):
            answers = score(service, part.images, progress)
            answered.write_table(rows(part.times, part.ids, part.images, answers, "simulated"))
        labels = writer("labels.parquet", LABELS)
        for table in label_rows(requests, task.classes):
            labels.write_table(table)
    print(f"{len(requests):,} requests in {len(config.phases)} phases")
