"""What the benchmarks have in common: their goals, the processor, and the tables of the pages.

`--record` of a benchmark keeps its result in results.json beside this module and writes the tables
of .github/BENCHMARKS.md and DRIFT.md from it, between the comments with the benchmark's name.
"""

import json
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digits.production.scoring import cores

RESULTS = Path(__file__).with_name("results.json")
ROOT = Path(__file__).parents[2]
PAGES = (ROOT / ".github" / "BENCHMARKS.md", ROOT / ".github" / "DRIFT.md")
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "amx_tile")


@dataclass(frozen=True)
class Goal:
    """A figure and the limit that it should reach: `words` is `at least` or `at most`."""

    name: str
    figure: float
    words: str
    limit: float

    @property
    def reached(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.figure >= self.limit if self.words == "at least" else self.figure <= self.limit

    def row(self) -> list[str]:
        """Return name, figure, limit and verdict as text."""
        verdict = "reached" if self.reached else "missed"
        return [self.name, f"{self.figure:,.2f}", f"{self.words} {self.limit:,g}", verdict]


def processor() -> str:
    """Return the processor's name, its instruction sets that matter here, and the cores in use."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        fields = re.findall(r"^(model name|flags)\s*: (.*)$", cpuinfo.read_text("utf-8"), re.M)
        name, flags = (
            dict(fields).get("model name", name),
            set(dict(fields).get("flags", "").split()),
        )
    sets = [name for name in INSTRUCTION_SETS if name in flags]
    return ", ".join([name, *sets, f"{cores()} cores"])


def finish(
    name: str, rows: Sequence[Sequence[str]], goals: Sequence[Goal], sample: str, record: bool
) -> None:
    """Print the table, whose first row is its header, and the goals; keep both with `record`.

    `sample` is what was measured, such as `medians of 5`.
    """
    found = {
        "measured": f"{processor()}; commit {_commit()}; {sample}",
        "rows": [list(row) for row in rows],
        "goals": [goal.row() for goal in goals],
    }
    print(f"\n{found['measured']}")
    for table in filter(None, (found["rows"], found["goals"])):
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
            print("  ".join([f"{row[0]:{widths[0]}}", *cells]))
    if record:
        results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        text = json.dumps(results | {name: found}, indent=1, ensure_ascii=False, sort_keys=True)
        RESULTS.write_text(text + "\n", "utf-8")
        for path in PAGES:
            path.write_text(page(path.read_text("utf-8"), json.loads(text)), "utf-8")
        print(f"written to {RESULTS.name} and the page")


def page(text: str, results: dict[str, Any]) -> str:
    """Return the page with the tables of the results between their comments."""
    for name, found in results.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        tables = [_markdown(found["rows"])]
        if found["goals"]:
            tables.append(_markdown([["goal", "measured", "limit", ""], *found["goals"]]))
        body = "\n".join([begin, f"Measured on {found['measured']}.\n", *tables, end])
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = re.sub(pattern, body.replace("\\", r"\\"), text, flags=re.DOTALL)
    return text


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def _commit() -> str:
    """Return the commit, marked if a file differs from it that the record does not write."""
    command = ["git", "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()
    others = [f":(exclude,top){path.relative_to(ROOT)}" for path in (RESULTS, *PAGES)]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *others]).returncode
    return f"{commit}-dirty" if changed else commit
