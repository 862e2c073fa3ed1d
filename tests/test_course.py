"""The labs of .github/COURSE.md do what they say: each is run in a small project of its own.

Blocks `bash` are commands, a line each; `diff` is an edit and `python` a new file, whose first line
names the file; `text` is what the commands since the last such block must have printed.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from conftest import NAME, ROOT, Project, environment

from mlops.commands import COMMANDS

COURSE = ROOT / ".github" / "COURSE.md"
LINES, TIMEOUT_SECONDS = 580, 600
FAILS = "# fails"
NUMBER = r"[-+]?\d+(?:[.,]\d+)*"
# What a small model can keep: an epoch on 1,200 digits is no model for production.
SMALL = {
    r"(    mnist:\n(?:.*#.*\n)*)(?:      \w+: {direction.*\n)+": (
        r"\1      accuracy: {direction: higher, limit: 0.3, tolerance: 0.1}\n"
    ),
    r"foreign_share: 0\.07}": "foreign_share: 0.05}",
    r"step_seconds: [\d.]+": "step_seconds: 0.0",
    r"smoke: {.*?}": "smoke: {digits: 10, accuracy: 0.1, latency_seconds: 20.0}",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind and its lines."""

    kind: str
    lines: list[str]


@dataclass(frozen=True)
class Lab:
    """A lab: its text, and its blocks in order."""

    text: str

    @property
    def blocks(self) -> list[Block]:
        """All fenced blocks."""
        found = re.findall(r"^```(\w+)\n(.*?)^```$", self.text, flags=re.M | re.S)
        return [Block(kind, body.splitlines()) for kind, body in found]


def labs() -> dict[int, Lab]:
    """Return the labs by number."""
    parts = re.split(r"^## Lab (\d+): ", COURSE.read_text("utf-8"), flags=re.M)[1:]
    texts = (re.split(r"^## (?=What the course)", text, flags=re.M)[0] for text in parts[1::2])
    return {int(number): Lab(text) for number, text in zip(parts[::2], texts, strict=True)}


def pattern(line: str, space: str = r"\s+") -> str:
    """Return a line as a regular expression: numbers alike, `...` anything, spaces alike."""
    words = re.split(rf"(\.\.\.|{NUMBER}|\s+)", line)
    kinds = {".": ".*?", " ": space}
    return "".join(
        (kinds.get(word[0], NUMBER) if index % 2 else re.escape(word))
        for index, word in enumerate(words)
    )


@dataclass
class Student:
    """Somebody who does a lab: types commands, edits files, compares what is printed."""

    project: Project
    said: str = ""
    servers: list[subprocess.Popen[str]] = field(default_factory=list)

    def do(self, block: Block) -> None:
        """Do what a block says."""
        if block.kind == "bash":
            for line in block.lines:
                self.type(line)
        elif block.kind == "diff":
            self.edit(block.lines)
        elif block.kind == "python":
            path = self.project.root / block.lines[0].removeprefix("# ")
            path.write_text("\n".join(block.lines[1:]) + "\n", "utf-8", newline="\n")
        elif block.kind == "text":
            self.compare(block.lines)
            self.said = ""

    def type(self, line: str) -> None:
        """Run one command; `digits local` goes on in a terminal of its own."""
        if line == "digits local":
            self.servers.append(self.serve())
            return
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.project.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=TIMEOUT_SECONDS,
        )
        assert (done.returncode != 0) == line.endswith(FAILS), f"{line}\n{done.stdout}"
        assert "Traceback" not in done.stdout, f"{line}\n{done.stdout}"
        self.said += done.stdout

    def serve(self) -> subprocess.Popen[str]:
        """Start `digits local`; return when it serves."""
        process = subprocess.Popen(
            [NAME, "local"],
            cwd=self.project.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert process.stdout
        line = process.stdout.readline()
        if not line.startswith("Serving at"):
            process.kill()
            raise AssertionError(line + process.stdout.read())
        self.said += line
        return process

    def leave(self) -> None:
        """Stop what still serves, as Ctrl-C does."""
        for process in self.servers:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)

    def edit(self, lines: list[str]) -> None:
        """Replace the lines with - by those with +, in the file that the first line names."""
        path = self.project.root / lines[0].removeprefix("--- ")
        old = "\n".join(line[1:] for line in lines[1:] if line.startswith("-"))
        new = "\n".join(line[1:] for line in lines[1:] if line.startswith("+"))
        text = path.read_text("utf-8")
        wanted = re.escape(old)
        if not re.search(f"^{wanted}$", text, flags=re.M):  # a small project's numbers are others,
            rows = (line.partition(" #")[0] for line in old.split("\n"))  # and its comments
            wanted = "\n".join(f"{pattern(row, ' +')}(?: +#.*)?" for row in rows)
        edited, count = re.subn(f"^{wanted}$", lambda _: new, text, count=1, flags=re.M)
        assert count, f"{path} has no {old!r}"
        path.write_text(edited, "utf-8", newline="\n")

    def compare(self, lines: list[str]) -> None:
        """Fail unless each line stands in what was printed."""
        printed = [" ".join(line.split()) for line in self.said.splitlines()]
        for line in lines:
            if line.strip() not in ("", "..."):
                form = re.compile(pattern(line.strip()))
                assert any(map(form.fullmatch, printed)), f"no line {line!r} in:\n{self.said}"


def measure_noise(root: Path) -> None:
    """Let the seed variance be of the small project, as `make noise` would leave it."""
    path = root / "data" / "noise.json"
    noise = json.loads(path.read_text("utf-8"))
    stages = yaml.safe_load((root / "dvc.lock").read_text("utf-8"))["stages"].values()
    hashes = {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}
    data = {name: hashes[f"data/prepared/{name}"] for name in noise["trained"]["data"]}
    noise["trained"] |= {"epochs": 1, "data": data}
    path.write_text(json.dumps(noise), "utf-8")


@pytest.fixture
def student(project: Project) -> Iterator[Student]:
    """A student with the small project, whose gate a small model can pass."""
    path = project.root / "params.yaml"
    text = path.read_text("utf-8")
    for old, new in SMALL.items():
        text, count = re.subn(old, new, text, count=1)
        assert count, old
    path.write_text(text, "utf-8", newline="\n")
    measure_noise(project.root)
    (project.root / ".venv").symlink_to(ROOT / ".venv")
    project.git("commit", "--quiet", "--all", "--message", "Bounds of a small project")
    someone = Student(project)
    try:
        yield someone
    finally:
        someone.leave()


GROUPS = {"0": [0], "1": [1], "2": [2], "3": [3], "4": [4], "5": [5], "6 and 7": [6, 7]}


@pytest.mark.prove(minutes=2)
@pytest.mark.skipif(os.name == "nt", reason="the labs' shell is bash")
@pytest.mark.parametrize("name", GROUPS)
def test_a_lab(name: str, student: Student) -> None:
    for number in GROUPS[name]:
        student.type(f"{NAME} lab {number} --check # fails")
        for block in labs()[number].blocks:
            student.do(block)
        student.type(f"{NAME} lab {number} --check")


def test_there_are_eight_labs_and_each_has_all_its_parts() -> None:
    text = COURSE.read_text("utf-8")
    assert len(text.splitlines()) <= LINES
    assert list(labs()) == list(range(8))
    for number, lab in labs().items():
        kinds = {block.kind for block in lab.blocks}
        assert {"bash", "text"} <= kinds <= {"bash", "text", "diff", "sh", "python"}, number
        for part in ("**Aim:**", "**Break and fix.**", "**Question:**", "<details>"):
            assert lab.text.count(part) == 1, (number, part)


def test_every_command_of_the_course_exists() -> None:
    for number, lab in labs().items():
        lines = [
            line for block in lab.blocks if block.kind in ("bash", "sh") for line in block.lines
        ]
        for name in re.findall(rf"(?:^|&& ){NAME} (\S+)", "\n".join(lines), flags=re.M):
            assert name in {command.name for command in COMMANDS}, (number, name)


def test_what_the_course_names_is_there() -> None:
    text = COURSE.read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        path = (COURSE.parent / target).resolve()
        assert path.exists(), target
    for name in re.findall(r"`((?:src|tests|\.github)/[\w./-]+)`", text):
        assert Path(ROOT, name).exists(), name
