"""Requests that production answered, one row an image, and the true labels that come later.

Parquet files of two schemas: stage simulate writes them, and what a data collector keeps is
brought to the first. A row's identity is `request_id` and `position`, the image's place in it.
"""

import pyarrow as pa

REQUESTS = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),  # when the request came
        ("request_id", pa.string()),
        ("position", pa.uint16()),
        ("deployment", pa.string()),
        ("model_version", pa.string()),
        ("digit", pa.string()),  # the most probable class by its name, as params.yaml's `classes`
        ("confidence", pa.float32()),  # its probability
        ("foreign", pa.float32()),  # how little it looks like the known digits, from 0 to 1
        ("image", pa.binary()),  # uint8 size x size, white on black, row by row
    ]
)
LABELS = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),  # when the label became known
        ("request_id", pa.string()),
        ("position", pa.uint16()),
        ("label", pa.string()),  # the true class by its name
        ("script", pa.string()),  # what it is written in: mnist or a key of params.yaml's `foreign`
    ]
)
