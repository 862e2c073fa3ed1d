"""What `digits verify azure` and `digits verify github` share: steps, redaction, their record.

verified.json has for each service the commit, the date, each step with its result and time, what
was not played and why, and the calls of the service's API. README says from it what was verified.
"""

import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from core.errors import DigitsError
from core.files import write_text
from mlops import git

OUT, README = Path("verified.json"), Path("README.md")
SERVICES = {"github": "GitHub", "azure": "Azure"}
PASSAGE = re.compile("(<!-- verified -->).*?(<!-- end of verified -->)", re.S)
OK = "ok"
SECRET = re.compile(
    r"key$|token$|secret$|createdBy$|modifiedBy$|userName$|email$", re.I
)  # names of values
# Of a storage account, and of an operation's address.
SIGNATURE = re.compile(r"\?\S*sig=\S*"), re.compile(r"&[tcsh]=[^&\s\"]+")
GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)
SALT = uuid.uuid4()  # so that an id is replaced by the same one everywhere, and cannot be guessed
Found = TypeVar("Found")


class NotPlayed(DigitsError):  # noqa: N818
    """A step that cannot be played here; the message is the reason."""


def redacted(value: Any, name: str = "", names: tuple[str, ...] = ()) -> Any:
    """Return a JSON value without secrets, signatures, ids, and these names of people."""
    if isinstance(value, dict):
        kept = value  # a person's number and name stand beside these
        if value.keys() & {"login", "email"}:
            kept = {key: row for key, row in value.items() if key not in ("id", "name")}
        return {key: redacted(inner, key, names) for key, inner in kept.items()}
    if isinstance(value, list):
        return [redacted(inner, name, names) for inner in value]
    if isinstance(value, str):
        stored, operation = SIGNATURE
        value = operation.sub("", stored.sub("?redacted", value))
        value = GUID.sub(lambda found: str(uuid.uuid5(SALT, found[0].lower())), value)
        for person in names:
            value = re.sub(rf"\b{re.escape(person)}\b", "somebody", value, flags=re.I)
        return "redacted" if SECRET.search(name) else value
    return value


def parsed(text: Any) -> Any:
    """Return the JSON of a body, None of any other."""
    with contextlib.suppress(TypeError, ValueError):
        return json.loads(text)
    return None


def require(true: object, expected: str, found: object) -> None:
    """Raise DigitsError unless something is true."""
    if not true:
        raise DigitsError(f"expected {expected}; found {found}")


def wait_for(
    find: Callable[[], Found | None], expected: str, seconds: float, poll_seconds: float
) -> Found:
    """Return what `find` finds as soon as it does; raise DigitsError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        require(time.monotonic() < deadline, f"{expected} within {seconds:g} s", "nothing")
        time.sleep(poll_seconds)
    return found


def now() -> str:
    """Return the time in UTC, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def play(
    steps: Mapping[str, Callable[[], None]],
    explain: Callable[[Exception], str] = str,
    errors: tuple[type[Exception], ...] = (DigitsError, OSError),
) -> dict[str, dict[str, str]]:
    """Play the steps until one fails, and the last in any case; return result and time of each."""
    rows: dict[str, dict[str, str]] = {}
    *_, last = steps
    for name, step in steps.items():
        if name != last and any(row["result"].startswith("failed") for row in rows.values()):
            continue
        try:
            step()
            result = OK
        except NotPlayed as reason:
            result = f"not played: {reason}"
        except KeyboardInterrupt:
            result = "failed: interrupted"
        except errors as error:
            result = f"failed: {explain(error)}"
        rows[name] = {"result": result, "ended": now()}
        print(f"{name:12}{result}", flush=True)
    return rows


def keep(
    service: str,
    steps: dict[str, dict[str, str]],
    calls: list[dict[str, Any]],
    not_played: Mapping[str, str] | None = None,
) -> bool:
    """Write what a service has shown to verified.json and README; return whether no step failed."""
    known = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    reasons = dict(not_played or {})
    reasons |= {name: row["result"] for name, row in steps.items() if "not played" in row["result"]}
    found = {"date": now()[:10], "commit": git.commit("HEAD") or "", "steps": steps}
    known[service] = found | {"not played": reasons, "calls": calls}
    write_text(OUT, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    if README.exists():
        text = README.read_text("utf-8")
        write_text(README, PASSAGE.sub(lambda old: f"{old[1]}{passage(known)}{old[2]}", text))
    return not any(row["result"].startswith("failed") for row in steps.values())


def passage(known: Mapping[str, Any]) -> str:
    """Return what README says: for each service what was verified, when, and at which commit."""
    texts = []
    for service, name in SERVICES.items():
        if service not in known:
            texts.append(f"Not yet run on {name}.")
            continue
        found = known[service]
        place = f"{name} on {found['date']} at `{found['commit'][:7]}`"
        passed = [step for step, row in found["steps"].items() if row["result"] == OK]
        failed = [step for step, row in found["steps"].items() if row["result"][:6] == "failed"]
        text = (
            f"Failed on {place}: {', '.join(failed)}; passed" if failed else f"Verified on {place}"
        )
        text += f": {', '.join(passed) or 'nothing'}"
        rest = found["not played"]
        texts.append(text + (f" (not played: {', '.join(rest)})." if rest else "."))
    return f"**{' '.join(texts)}**"
