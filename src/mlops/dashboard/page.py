"""The page of `digits local`: draw a digit and see the answer, watch production live.

GET / and the files of web/, GET /state (watch.py's, as JSON) and POST /score, which passes a
picture on to the endpoint with its key, so that the page never holds it. Only pages of this
address may use it: another name in Host or Origin is refused.
"""

import http.client
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from azureml_emulator.router import LOOPBACK, Handler, Router
from mlops.dashboard.watch import Labels, Watch

WEB = Path(__file__).parent / "web"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
BODY_BYTES = 10_000_000  # as request.py takes at most
TIMEOUT_SECONDS = 60
SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Json = dict[str, Any]


def latest(windows: list[Json], live: set[str]) -> list[Json]:
    """Return the last window with a verdict of each live deployment and the model it runs now."""
    runs = {row["deployment"]: row["version"] for row in windows if row["deployment"] in live}
    found = {
        row["deployment"]: row
        for row in windows
        if row["verdict"] and row["version"] == runs.get(row["deployment"])
    }
    return list(found.values())


def handler(router: Router, watch: Watch, labels: Labels) -> type[Handler]:
    """Return the class that answers."""

    class Page(Handler):
        """One connection of a browser."""

        timeout = TIMEOUT_SECONDS

        def do_GET(self) -> None:  # noqa: N802
            """Answer with a file of web/, or with the state."""
            if not self.ours():
                return None
            url = urlsplit(self.path)
            if url.path == "/state":
                return self.say(200, self.state(parse_qs(url.query).get("endpoint", [""])[0]))
            name = url.path.removeprefix("/") or "index.html"
            # Compared with what is there: no path of a request is ever opened.
            file = next((file for file in WEB.iterdir() if file.name == name), None)
            if file is None or file.suffix not in KINDS:
                return self.say(404, {"message": "there is no such page"})
            kind = f"{KINDS[file.suffix]}; charset=utf-8"
            return self.answer(200, file.read_bytes(), SAFE | {"Content-Type": kind})

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:  # noqa: N802
            """Pass a picture on to an endpoint, with its key."""
            url = urlsplit(self.path)
            if not self.ours():
                return None
            if url.path != "/score":
                return self.refuse(404, "there is no such page")
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > BODY_BYTES:
                return self.refuse(413, f"send at most {BODY_BYTES:,} bytes, and their number")
            body = self.body()
            query = parse_qs(url.query)
            name = query.get("endpoint", [""])[0]
            endpoint = router.endpoints.get(name)
            if endpoint is None:
                return self.refuse(
                    404, "nothing is deployed yet: run `digits deploy apply --workspace local`"
                )
            path = f"/{name}/score"
            if script := query.get("script", [""])[0]:
                path += f"?script={quote(script)}"
            headers = {
                "Authorization": f"Bearer {endpoint.keys[0]}",
                "Content-Type": self.headers.get("Content-Type", ""),
            }
            port = router.server.server_address[1]
            began = time.monotonic()
            connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_SECONDS)
            try:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                told = answer.read()
                try:
                    found = dict(json.loads(told))
                except (ValueError, TypeError):
                    found = {"message": told.decode(errors="replace")[:300]}
                found["deployment"] = answer.headers.get("azureml-model-deployment", "")
                found["milliseconds"] = (time.monotonic() - began) * 1000
                return self.say(answer.status, found)
            except (OSError, http.client.HTTPException) as error:
                return self.say(502, {"message": f"the endpoint does not answer: {error}"})
            finally:
                connection.close()

        def ours(self) -> bool:
            """Return whether the request came from this page; refuse it otherwise.

            A page of another site whose name leads here would send that name as the Host.
            """
            port = self.server.server_address[1]  # type: ignore[index]
            hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
            host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
            if host in hosts and origin in (None, f"http://{host}"):
                return True
            self.refuse(403, f"open http://{LOOPBACK}:{port} itself; other pages may not use it")
            return False

        def refuse(self, status: int, sentence: str) -> None:
            """Answer without reading the body, which ends the connection."""
            self.close_connection = True
            self.say(status, {"message": sentence})

        def state(self, wanted: str) -> Json:
            """Return the state of an endpoint: the one asked for, or the one asked last."""
            names = sorted(router.endpoints)
            used = [name for name in reversed(watch.endpoints) if name in names]
            name = wanted if wanted in names else next(iter([*used, *names]), "")
            watch.labels(name, labels.fresh(name))
            known = watch.state(name)
            endpoint = router.endpoints.get(name)
            traffic = endpoint.traffic if endpoint else {}
            up = {deployment for place, deployment in list(router.running) if place == name}
            known["deployments"] = [
                {"name": one, "weight": traffic.get(one, 0), "up": one in up}
                for one in sorted({*traffic, *up})
            ]
            live = {one for one, weight in traffic.items() if weight}
            judged = latest(known["windows"], live)
            drifted = [row for row in judged if row["verdict"]["drift"]]
            first = min(drifted, key=lambda row: row["since"], default=None)
            reasons = [watch.detector.why_not(known["versions"].get(one, "")) for one in live]
            return known | {
                "endpoint": name,
                "endpoints": names,
                "drift": bool(drifted) if judged else None,
                "drift_since": first["since"] if first else None,
                "drift_at_least": bool(first and first["at_least"]),
                "reason": next(filter(None, reasons), ""),
            }

        def say(self, status: int, body: Json) -> None:
            """Send JSON."""
            kind = {"Content-Type": "application/json"}
            self.answer(status, json.dumps(body).encode(), SAFE | kind)

    return Page
