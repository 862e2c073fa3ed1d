"""score.py in a process of its own: images enter as the JSON of a request, answers leave.

Azure's inference server answers there as at the endpoint, its sockets left out: the same routes,
decoding and answers. What it collects goes nowhere.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic_core import from_json, to_json

from core.errors import DigitsError

BATCH = 100  # images in a body: another number may change the last bit of an answer
RECORD = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ([A-Z] \[\d+\] \S+) - "  # how the server begins one
ERROR = r"E \[\d+\] azmlinfsrv"  # of score.py; what lies beside it has loggers of other names
# Requests come and answers go as a length in eight bytes and as many bytes. What score.py prints
# goes with standard error.
CHILD = """
import os
requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
from azureml_inference_server_http.server.create_app import create
client = create().test_client()
while length := requests.read(8):
    body = requests.read(int.from_bytes(length, "big"))
    answer = client.post("/score", data=body, content_type="application/json")
    for part in (answer.status_code.to_bytes(8, "big"), len(answer.data).to_bytes(8, "big")):
        answers.write(part)
    answers.write(answer.data)
    answers.flush()
"""


@dataclass(frozen=True)
class Answers:
    """What came back for n images; the strings are lists of n."""

    model_version: str
    digits: list[str]
    confidence: np.ndarray  # float32 (n,)
    foreign: np.ndarray  # float32 (n,)


class Scorer:
    """A running score.py; use it in a `with` block, at whose end the process is gone."""

    def __init__(self, code: Path, package: Path) -> None:
        """Start the process for `code`/score.py and the model folder `package`."""
        self.script = code / "score.py"
        if not self.script.exists():
            raise DigitsError(f"{self.script}: not found; it holds init() and run()")
        settings = {
            "AML_APP_ROOT": str(code.resolve()),
            "AZUREML_ENTRY_SCRIPT": str(self.script.resolve()),
            "AZUREML_MODEL_DIR": str(package.resolve()),
            "AML_APP_INSIGHTS_ENABLED": "false",
        }
        kept = {name: value for name, value in os.environ.items() if "AZUREML_" not in name}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        # -B: it imports from the model folder, which is an output and must not change
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", CHILD],
            env=kept | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def __enter__(self) -> "Scorer":
        """Return it."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def score(self, images: np.ndarray) -> Answers:
        """Return the answers to images uint8 (n, size, size), n at most BATCH.

        Raises DigitsError that names score.py when it ends, refuses, or answers otherwise than it
        should.
        """
        status, answer = self._exchange(to_json({"data": images.tolist()}))
        if status != 200:
            said = self._said() if status >= 500 else answer.decode(errors="replace").strip()
            raise DigitsError(f"{self.script}: answered {status}: {said[:300]}; mend it")
        try:
            content = from_json(answer)
            found = content["predictions"]
            if len(found) != len(images):
                raise ValueError(f"{len(found)} predictions for {len(images)} images")
            return Answers(
                str(content["model_version"]),
                [str(one["digit"]) for one in found],
                np.array([one["confidence"] for one in found], np.float32),
                np.array([one["foreign"] for one in found], np.float32),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DigitsError(
                f"{self.script}: its answer lacks what production keeps ({error!r}); mend it"
            ) from None

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        requests, answers = self.process.stdin, self.process.stdout
        assert requests and answers
        try:
            requests.write(len(body).to_bytes(8, "big") + body)
            requests.flush()
            header = answers.read(16)
        except BrokenPipeError:
            header = b""
        if len(header) < 16:
            raise DigitsError(f"{self.script}: the process ended: {self._said()}; mend it")
        return int.from_bytes(header[:8], "big"), answers.read(int.from_bytes(header[8:], "big"))

    def _said(self) -> str:
        """Return the last error that was logged, or else the last line.

        Of exceptions in a chain it is the one that began it.
        """
        self.log.seek(0)
        text = self.log.read().decode(errors="replace")
        _, *records = re.split(RECORD, text, flags=re.M)  # whose, and what, in turn
        pairs = zip(records[::2], records[1::2], strict=True)
        errors = [said for who, said in pairs if re.fullmatch(ERROR, who)]
        first = (errors or [text])[-1].split("\nThe above exception was")[0]
        lines = first.strip().splitlines()
        return lines[-1].strip() if lines else "it printed nothing"
