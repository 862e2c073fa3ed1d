"""The endpoint's code as Azure ML calls it: `init` once in each worker, `run` for each request.

Enters: a request as request.py decodes it, with `?script=` for an image. Leaves: JSON with the
model's version and, for each image, digit, confidence, probabilities and OOD score; `warnings`
where something was assumed of the images.
All that it knows of the model comes from the model folder below AZUREML_MODEL_DIR, the code
that travels there included. Each request is collected with its answer (azureml-ai-monitoring,
as model_inputs_outputs). The columns request_id and position identify each row, since Azure's
collector merges requests: the id is the one that the client gave in x-ms-client-request-id, so that
a request sent again is known as such, or else the server's own. The header
x-digits-uncollected counts those that were not collected, since the start of the worker. A worker
that is told to end sends what still waits first.
"""

import atexit
import base64
import logging
import os
import sys
import threading
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
from request import BODY_BYTES, RefusedError, decode
from werkzeug.exceptions import HTTPException

DRAIN_BYTES = 10 * BODY_BYTES  # read of a body too long, so that its sender hears why
CHUNK_BYTES = 1 << 20
VERSION_LENGTH = 12  # hexadecimal digits of the weights' SHA-256
DECIMALS = 6  # of probabilities
DRAIN_SECONDS = 8.0  # that collected requests may take when the worker ends; it is killed at 10
TABLE_BYTES = 2_000_000  # of JSON that is collected at once: Azure stores 4 MB and more elsewhere
COLLECTION = "model_inputs_outputs"  # one of the data collector's own names
JSON = {"Content-Type": "application/json"}
service: "Service"  # made by `init`


class Service:
    """A model, and where its requests are collected: set by `init`."""

    collection: "Collection"

    def __init__(self, folder: Path) -> None:
        """Load the model from its folder and answer once, so that no client waits for that."""
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")  # a request is a chain of operations
        sys.path.insert(0, str(folder / "code"))
        from loader import DigitModel
        from normalise import normalise
        from script_prior import condition_on_script

        self.model = DigitModel(folder / "data" / "model")
        self.normalise, self.condition_on_script = normalise, condition_on_script
        self.version = self.model.manifest["model_sha256"][:VERSION_LENGTH]
        self.classes, self.scripts = (self.model.manifest[key] for key in ("classes", "scripts"))
        self.size = self.model.image_size
        self.predict(np.zeros((1, self.size, self.size), np.uint8), None)

    def scores(self, images: np.ndarray, script: str | None) -> tuple[np.ndarray, ...]:
        """Return the numbers of the answer to n images uint8 (n, size, size), as they are sent.

        The digit int64 (n,), its index in `classes`; float64, rounded: confidence (n,), ood_score
        (n,), probabilities (n, classes). With a script that the model knows, its digits weigh
        more (script_prior.py).
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
        """Return what the request is answered with: 200, or 4xx with one sentence."""
        try:
            body = read(request)
            images, script, warnings = decode(body, self.size, self.normalise)
        except RefusedError as refusal:
            return AMLResponse({"message": str(refusal)}, refusal.status, json_str=True)
        answer = self.predict(images, script or request.args.get("script"))
        lost = self.collection.collect(g.client_request_id or g.request_id, images, answer)
        if warnings:
            answer["warnings"] = warnings
        return AMLResponse(to_json(answer), 200, JSON | {"x-digits-uncollected": str(lost)})


class Collection(logging.Handler):
    """Requests and answers on their way to the data collector, and the number of those lost."""

    def __init__(self) -> None:
        """Connect; where collection is off, everything is counted as lost."""
        super().__init__(logging.ERROR)
        self.lost = 0
        self.collector = Collector(name=COLLECTION, on_error=self.count)
        logging.getLogger("mdc.worker").addHandler(self)  # which tells only there what failed
        self.ending = threading.Event()
        self.drained = threading.Thread(target=self.drain, daemon=True)
        self.drained.start()  # now, since a thread cannot start when the interpreter ends
        atexit.register(self.end)

    def drain(self) -> None:
        """At the end, send all that waits."""
        self.ending.wait()
        teardown(wait_for_flush=True)

    def end(self) -> None:
        """Wait until all is sent, but not for ever."""
        self.ending.set()
        self.drained.join(DRAIN_SECONDS)
        if self.drained.is_alive():
            print(f"The collector takes no more: some were not collected in {DRAIN_SECONDS:g} s.")

    def count(self, reason: object) -> None:
        """Count one request lost; say why in the log the first time, then each thousandth."""
        if self.lost % 1000 == 0:
            print(f"{self.lost + 1} not collected: {reason}")
        self.lost += 1

    def emit(self, record: logging.LogRecord) -> None:
        """Count what the collector's thread could not send."""
        self.count(record.getMessage())

    def collect(self, request_id: str, images: np.ndarray, answer: dict[str, Any]) -> int:
        """Hand over n rows: images uint8 (n, size, size) as base64, and predictions.

        In tables of at most TABLE_BYTES. Returns how many were lost since the start; never raises.
        """
        try:
            common = {"request_id": request_id, "model_version": answer["model_version"]}
            rows = [
                common | {"position": place, "image": base64.b64encode(image).decode()} | prediction
                for place, (image, prediction) in enumerate(
                    zip(images, answer["predictions"], strict=True)
                )
            ]
            count = max(1, TABLE_BYTES // max(len(to_json(row)) for row in rows))
            for start in range(0, len(rows), count):
                table = pd.DataFrame(rows[start : start + count])
                self.collector.collect(table, BasicCorrelationContext(id=request_id))
        except Exception as error:  # of a library that a request must not depend on
            self.count(repr(error))
        return self.lost


def read(request: AMLRequest) -> bytes:
    """Return the body of a POST; raise RefusedError for another method or too long a body."""
    if request.method != "POST":
        raise RefusedError(405, "send a POST with JSON, a PNG or a JPEG")
    try:
        body = bytes(request.stream.read(BODY_BYTES + 1))
        drained = len(body)
        if drained > BODY_BYTES:
            while drained < DRAIN_BYTES and (chunk := request.stream.read(CHUNK_BYTES)):
                drained += len(chunk)
            raise RefusedError(413, f"the body has more than the {BODY_BYTES:,} bytes allowed")
    except (HTTPException, OSError):
        raise RefusedError(400, "the body ended before its length was reached") from None
    return body


def load() -> Service:
    """Return the service of the only model below AZUREML_MODEL_DIR: the folder with MLmodel."""
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    found = sorted(root.rglob("MLmodel"))
    if len(found) != 1:
        raise RuntimeError(f"{root}: holds {len(found)} files named MLmodel; deploy one model")
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
