"""Stage simulate: score simulated production traffic with the packaged model.

Input: the split production without the digits that training already uses (data/labelled),
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
from digits.production.service import Service
from digits.production.traffic import HOUR_MS, Stream, read
from digits.production.traffic import Schedule as Params

ROWS = 10_000  # per row group of a file, and in memory


def rows(
    service: Service,
    images: np.ndarray,
    times: np.ndarray,
    ids: list[str],
    deployment: str,
    progress: tqdm,
) -> pa.Table:
    """Return n requests and their answers as a table of the schema REQUESTS."""
    asked = {
        "time": times,
        "request_id": ids,
        "position": np.zeros(len(ids), np.uint16),
        "deployment": [deployment] * len(ids),
        "image": [image.tobytes() for image in images],
    }
    return pa.table(asked | service.score(images, progress), schema=REQUESTS)


def label_rows(requests: Stream, classes: tuple[str, ...]) -> Iterable[pa.Table]:
    """Yield the labels in the order in which they become known, as tables of the schema LABELS."""
    order = requests.known_labels()
    for start in range(0, len(order), ROWS):
        index = order[start : start + ROWS]
        labels, scripts = requests.truth(index)
        columns = {
            "time": requests.label_times[index],
            "request_id": requests.ids_of(index),
            "position": np.zeros(len(index), np.uint16),
            "label": [classes[label] for label in labels],
            "script": scripts,
        }
        yield pa.table(columns, schema=LABELS)


def reference_rows(service: Service, parts: list[Digits], start: int, progress: tqdm) -> pa.Table:
    """Return the scored validation split, with times in the hour before the traffic."""
    images = np.concatenate([part.images for part in parts])
    times = start - HOUR_MS + HOUR_MS * np.arange(len(images)) // len(images)
    ids = [f"reference-{number:07}" for number in range(len(images))]
    return rows(service, images, times, ids, "reference", progress)


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
            asked = (part.images, part.times, part.ids, "simulated", progress)
            answered.write_table(rows(service, *asked))
        labels = writer("labels.parquet", LABELS)
        for table in label_rows(requests, task.classes):
            labels.write_table(table)
    print(f"{len(requests):,} requests in {len(config.phases)} phases")
