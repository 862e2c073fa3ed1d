"""Findings of the checks, and how they are shown."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from core.errors import DigitsError


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    status: Literal["ok", "failed", "optional", "unknown"]
    text: str
    fix: str = ""


def expect(condition: object, text: str, fix: str) -> Finding:
    """Return a check that passed or failed."""
    return Finding("ok" if condition else "failed", text, fix)


def show(groups: Mapping[str, Iterable[Finding]], as_json: bool = False) -> None:
    """Print the findings of each group; raise DigitsError when a check failed."""
    shown = []
    for group, findings in groups.items():
        if not as_json:
            print(f"{group}:", flush=True)
        for finding in findings:
            shown.append({"group": group} | dataclasses.asdict(finding))
            if not as_json:
                fix = (
                    f"\n           {finding.fix}" if finding.fix and finding.status != "ok" else ""
                )
                print(f"  {finding.status:8} {finding.text}{fix}", flush=True)
    if as_json:
        print(json.dumps(shown, indent=2), flush=True)
    if failed := sum(row["status"] == "failed" for row in shown):
        checks = "1 check" if failed == 1 else f"{failed} checks"
        raise DigitsError(f"{checks} failed. The fix for each is printed above.")
