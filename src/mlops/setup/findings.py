"""What the checks of `digits check` and `digits azure check` find, and how it is shown."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from core.errors import DigitsError


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    state: Literal["ok", "wrong", "absent", "unknown"]  # absent: what can be done without
    what: str
    mend: str = ""


def judged(good: object, what: str, mend: str) -> Finding:
    """Return what was found, ok or wrong."""
    return Finding("ok" if good else "wrong", what, mend)


def show(findings: Iterable[Finding], as_json: bool) -> None:
    """Print what was found; raise DigitsError when something is wrong."""
    shown = []
    for finding in findings:
        shown.append(finding)
        if not as_json:
            fix = f"\n         {finding.mend}" if finding.mend and finding.state != "ok" else ""
            print(f"{finding.state:8} {finding.what}{fix}", flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in shown], indent=2))
    if wrong := sum(finding.state == "wrong" for finding in shown):
        failed = "1 check" if wrong == 1 else f"{wrong} checks"
        raise DigitsError(f"{failed} failed. The fix for each is printed above.")
