"""A blob container in memory, with the lines of Azure's data collector and of labels."""

import base64
import datetime
import json
from types import SimpleNamespace
from typing import Any


class Blobs:
    """What a ContainerClient answers to those who read."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def list_blobs(self, name_starts_with: str, **_: Any) -> list[Any]:
        """Return names and sizes."""
        return [
            SimpleNamespace(name=name, size=len(content))
            for name, content in sorted(self.content.items())
            if name.startswith(name_starts_with)
        ]

    def download_blob(self, name: str, start: int, length: int, **_: Any) -> Any:
        """Return a part of a blob."""
        return SimpleNamespace(readall=lambda: self.content[name][start : start + length])

    def append(self, path: str, line: bytes) -> None:
        """Append a line to a blob."""
        self.content[path] = self.content.get(path, b"") + line + b"\n"

    def collect(
        self, endpoint: str, rows: list[dict[str, Any]], hour: datetime.datetime | None = None
    ) -> None:
        """Keep rows of REQUESTS of one request; `hour`: when they came, their time if left out."""
        first = rows[0]
        names = ("request_id", "model_version", "digit", "confidence", "ood_score")
        event = {
            "source": f"/onlineEndpoints/{endpoint}/deployments/{first['deployment']}",
            "time": first["time"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            "data": [
                {"position": place, "image": base64.b64encode(row["image"]).decode()}
                | {n: row[n] for n in names}
                for place, row in enumerate(rows)
            ],
        }
        place = f"modelDataCollector/{endpoint}/{first['deployment']}/model_inputs_outputs"
        path = f"{place}/{hour or first['time']:%Y/%m/%d/%H}/local.jsonl"
        self.append(path, json.dumps(event).encode())

    def label(self, endpoint: str, row: dict[str, Any]) -> None:
        """Keep a row of LABELS."""
        line = json.dumps(row | {"time": row["time"].isoformat()}).encode()
        self.append(f"labels/{endpoint}/{row['time']:%Y/%m/%d/%H}.jsonl", line)
