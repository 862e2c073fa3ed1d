"""The endpoint's entry script on Azure ML: `init` once in each worker, `run` for each request.

Input: a request as request.py decodes it; `?script=` names the script if the body does not. Output:
JSON with the model's version and, for each image, digit, confidence, probabilities and OOD score;
`warnings` if something was assumed about the images; with `?explain=true`, `steps`: how the first
image was read. All information about the model, and its code, comes from the model folder below
AZUREML_MODEL_DIR. Each request is collected with its answer (azureml-ai-monitoring, as
model_inputs_outputs). Azure's collector merges requests, so request_id and position identify each
row; the id is the client's x-ms-client-request-id, so that a retry is recognised, or else the
server's own. The header x-digits-uncollected counts the requests that were not collected since the
worker started. Before a worker ends, it sends the waiting rows.
"""

import atexit
import base64
import logging
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the server loads this file by its path alone

import numpy as np
import pandas as pd
from azureml.ai.monitoring import Collector
from azureml.ai.monitoring.context import BasicCorrelationContext
from azureml.ai.monitoring.init import teardown
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from flask import g
from pydantic_core import to_json
from request import BODY_BYTES, Reader, RefusedError, decode
from werkzeug.exceptions import HTTPException

DRAIN_BYTES = 10 * BODY_BYTES  # read of an oversized body, so that the client gets the reason
CHUNK_BYTES = 1 << 20
VERSION_LENGTH = 12  # hexadecimal digits of the weights' SHA-256
DECIMALS = 6  # of probabilities
DRAIN_SECONDS = 8.0  # to send collected requests when the worker ends; it is killed after 10 s
TABLE_BYTES = 2_000_000  # of JSON, with \/ for /, per table: Azure stores 4 MB and more elsewhere
TABLE_ROWS = 250  # per table: a few milliseconds of work, which delays answers
INTERVAL_SECONDS = 0.1  # the requests of this time are collected together
WAITING_IMAGES, WAITING_TABLES = 20_000, 100  # maxima in memory while the collector is slow
COLLECTION = "model_inputs_outputs"  # a name that Azure's data collector defines
JSON = {"Content-Type": "application/json"}
service: "Service"  # set by `init`


class Service:
    """A model, and the collection of its requests, which `init` sets."""

    collection: "Collection"

    def __init__(self, folder: Path) -> None:
        """Load the model from its folder and answer once: the first answer takes longer."""
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")  # its operations form a chain
        sys.path.insert(0, str(folder / "code"))
        from loader import DigitModel
        from normalise import normalise
        from photograph import find_ink
        from script_prior import condition_on_script

        self.model = DigitModel(folder / "data" / "model")
        self.reader, self.condition_on_script = Reader(find_ink, normalise), condition_on_script
        self.version = self.model.manifest["model_sha256"][:VERSION_LENGTH]
        self.classes, self.scripts = (self.model.manifest[key] for key in ("classes", "scripts"))
        self.size = self.model.image_size
        self.predict(np.zeros((1, self.size, self.size), np.uint8), None)

    def scores(self, images: np.ndarray, script: str | None) -> tuple[np.ndarray, ...]:
        """Return the numbers in the answer to n images uint8 (n, size, size), as they are sent.

        The digit int64 (n,), an index into `classes`; float64, rounded: confidence (n,), ood_score
        (n,), probabilities (n, classes). If the model knows the script, the digits of that script
        get more weight (script_prior.py).
        """
        scores = self.model.predict(images)
        if script in self.scripts:
            probabilities = self.condition_on_script(scores["scripts"], self.scripts.index(script))
        else:
            probabilities = scores["digits"]
        probabilities = probabilities.astype(np.float64).round(DECIMALS)
        ood_score = scores["ood_score"].astype(np.float64).round(DECIMALS)
        return probabilities.argmax(axis=1), probabilities.max(axis=1), ood_score, probabilities

    def predict(self, images: np.ndarray, script: str | None) -> dict[str, Any]:
        """Return the answer to n images uint8 (n, size, size), ready for JSON."""
        columns = self.scores(images, script)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {
            "model_version": self.version,
            "classes": self.classes,
            "script": script if script in self.scripts else None,
            "predictions": [
                {
                    "digit": self.classes[digit],
                    "confidence": confidence,
                    "ood_score": ood_score,
                    "probabilities": row,
                }
                for digit, confidence, ood_score, row in rows
            ],
        }

    def answer(self, request: AMLRequest) -> AMLResponse:
        """Return the answer to a request: 200, or 4xx with one sentence."""
        try:
            body = read(request)
            images, script, warnings, steps = decode(body, self.size, self.reader)
        except RefusedError as refusal:
            return AMLResponse({"message": str(refusal)}, refusal.status, json_str=True)
        answer = self.predict(images, script or request.args.get("script"))
        lost = self.collection.collect(g.client_request_id or g.request_id, images, answer)
        if warnings:
            answer["warnings"] = warnings
        if request.args.get("explain") == "true":
            steps["model input"] = images[0]
            answer["steps"] = {name: image.tolist() for name, image in steps.items()}
        return AMLResponse(to_json(answer), 200, JSON | {"x-digits-uncollected": str(lost)})


class Collection(logging.Handler):
    """Sends requests and answers to Azure's data collector, and counts the lost requests.

    A thread sends the requests of each INTERVAL_SECONDS as tables, so that no request waits for the
    collector. The id of a table ends in the number of its requests.
    """

    def __init__(self) -> None:
        """Connect to the collector; if collection is off, all requests count as lost."""
        super().__init__(logging.ERROR)
        self.lost, self.requests = 0, 1  # requests: in the table that is being sent
        os.environ.setdefault("AZUREML_MDC_QUEUE_CAPACITY", str(WAITING_TABLES))
        self.collector = Collector(name=COLLECTION, on_error=self.count)
        logging.getLogger("mdc.worker").addHandler(self)  # failed uploads are reported only there
        self.waiting: list[tuple[str, np.ndarray, dict[str, Any]]] = []
        self.guard, self.ending = threading.Lock(), threading.Event()
        self.sender = threading.Thread(target=self.send, daemon=True)
        self.sender.start()  # now, since a thread cannot start when the interpreter ends
        atexit.register(self.end)

    def collect(self, request_id: str, images: np.ndarray, answer: dict[str, Any]) -> int:
        """Add n images uint8 (n, size, size) with their answer; return how many requests are lost.

        A request is lost if more than WAITING_IMAGES would wait with it.
        """
        with self.guard:
            full = sum(len(each) for _, each, _ in self.waiting) + len(images) > WAITING_IMAGES
            if not full:
                self.waiting.append((request_id, images, answer))
        if full:
            self.count(f"more than {WAITING_IMAGES:,} images would wait", 1)
        return self.lost

    def send(self) -> None:
        """Send the waiting requests every INTERVAL_SECONDS; at the end, wait until all are sent."""
        ending = False
        while not ending:
            ending = self.ending.wait(INTERVAL_SECONDS)
            with self.guard:
                waiting, self.waiting = self.waiting, []
            try:
                self.hand_over([row for request in waiting for row in collected_rows(*request)])
            except Exception as error:  # whatever the library raises: the server goes on
                self.count(repr(error), len(waiting))
        teardown(wait_for_flush=True)

    def hand_over(self, rows: list[dict[str, Any]]) -> None:
        """Pass the rows to the collector, in tables of TABLE_ROWS and TABLE_BYTES at most."""
        largest = max((len(row) + row.count(b"/") for row in map(to_json, rows)), default=1)
        count = max(1, min(TABLE_ROWS, TABLE_BYTES // largest))
        for start in range(0, len(rows), count):
            part = rows[start : start + count]
            self.requests = len({row["request_id"] for row in part})
            identity = f"{uuid.uuid4()}-{self.requests}"
            self.collector.collect(pd.DataFrame(part), BasicCorrelationContext(id=identity))

    def end(self) -> None:
        """Wait until all requests are sent, at most DRAIN_SECONDS."""
        self.ending.set()
        self.sender.join(DRAIN_SECONDS)
        if self.sender.is_alive():
            print(f"Some requests were not collected within {DRAIN_SECONDS:g} s.")

    def count(self, reason: object, requests: int | None = None) -> None:
        """Count requests as lost, by default those of this table; log the first of each 1000."""
        requests = self.requests if requests is None else requests
        if self.lost // 1000 != (self.lost + requests) // 1000 or not self.lost:
            print(f"{self.lost + requests} requests were not collected: {reason}")
        self.lost += requests

    def emit(self, record: logging.LogRecord) -> None:
        """Count the requests of a table that the collector's thread could not send."""
        _, _, identity, *_ = record.args or (0, 0, "1")
        self.count(record.getMessage(), int(str(identity).rpartition("-")[2]))


def collected_rows(
    request_id: str, images: np.ndarray, answer: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image: ids, the image in base64 and its prediction."""
    common = {"request_id": request_id, "model_version": answer["model_version"]}
    for place, (image, found) in enumerate(zip(images, answer["predictions"], strict=True)):
        yield common | {"position": place, "image": base64.b64encode(image).decode()} | found


def read(request: AMLRequest) -> bytes:
    """Return the body of a POST; raise RefusedError for another method or a longer body."""
    if request.method != "POST":
        raise RefusedError(405, "send a POST with JSON, a PNG or a JPEG")
    try:
        body = bytes(request.stream.read(BODY_BYTES + 1))
        drained = len(body)
        if drained > BODY_BYTES:
            while drained < DRAIN_BYTES and (chunk := request.stream.read(CHUNK_BYTES)):
                drained += len(chunk)
            raise RefusedError(413, f"the body has more than {BODY_BYTES:,} bytes; make it smaller")
    except (HTTPException, OSError):
        raise RefusedError(400, "the body is shorter than its Content-Length") from None
    return body


def load() -> Service:
    """Return the service of the only model below AZUREML_MODEL_DIR: the folder with MLmodel."""
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    found = sorted(root.rglob("MLmodel"))
    if len(found) != 1:
        raise RuntimeError(f"{root}: expected 1 file MLmodel, found {len(found)}; deploy one model")
    return Service(found[0].parent)


def init() -> None:
    """Load the model, and connect to the collector."""
    global service
    service = load()
    service.collection = Collection()


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    """Answer one request."""
    return service.answer(request)
