"""The command line: what it lists, how it fails, and what it imports before it answers."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import frozen
import pytest
from blocked import blocking
from conftest import NAME, ROOT, Project, copy_tracked, environment

from core import wings
from core.errors import DigitsError
from mlops import cli
from mlops.commands import COMMANDS

SLOW = ("tensorflow", "keras", "pandas", "numpy", "pydantic", "azure.ai.ml", "azure.core", "dvc")
ALL_HELP = """
import sys, time
from click.exceptions import Exit
from mlops import cli
for words in WORDS:
    try:
        cli.call(*words, "--help")
    except Exit as end:
        assert end.exit_code == 0
    if not words:
        first = time.process_time()
print("imported:", [name for name in SLOW if name in sys.modules], "seconds:", first)
"""


def paths(command: click.Command, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of all commands below it."""
    yield place
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from paths(inner, (*place, name))


def commands() -> list[tuple[str, ...]]:
    """Return the words of every command."""
    return [
        words
        for row in wings.declared("COMMANDS")
        for words in paths(wings.resolve(f"{row.module}:{row.name}"), (row.name,))
    ]


def digits(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does."""
    return subprocess.run(
        [NAME, *words], env=environment() | env, capture_output=True, encoding="utf-8"
    )


@pytest.mark.parametrize("row", wings.declared("COMMANDS"), ids=lambda row: row.name)
def test_what_the_table_names_can_be_imported(row: wings.Command) -> None:
    command = wings.resolve(f"{row.module}:{row.name}")
    assert isinstance(command, click.Command)
    assert command.name == row.name
    assert all(wings.installed(name) for name in row.requires)


@pytest.mark.slow
@pytest.mark.parametrize("row", wings.declared("SECTIONS"), ids=lambda row: row.name)
def test_what_the_sections_name_can_be_imported(row: wings.Section) -> None:
    assert isinstance(wings.resolve(row.kind), type)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_has_a_description_and_an_example_that_it_accepts(
    words: tuple[str, ...],
) -> None:
    command: click.Command = cli.command_line
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found
        command = found
    assert command.help and command.help[0].isupper()
    shown = (command.epilog or "").splitlines()
    assert shown[:2] == ["\b", "Example:"]
    name = f"{NAME} {words[0]}"
    assert any(line.strip().startswith(name) for line in shown[2:])
    for line in shown[2:]:
        typed = line.split()
        if typed[0] != NAME:
            continue
        context = cli.command_line.make_context(NAME, typed[1:])
        inner = cli.command_line.get_command(context, typed[1])
        rest = typed[2:]
        while isinstance(inner, click.Group):
            inner, rest = inner.commands[rest[0]], rest[1:]
        assert inner
        inner.make_context(inner.name, rest)  # raises UsageError


def test_help_is_grouped_and_has_a_line_for_each_command() -> None:
    shown = digits("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for words in ((), ("help",)):
        other = digits(*words)
        assert (other.returncode, other.stdout) == (0, shown.stdout)
    lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines()]
    for row in COMMANDS:
        assert [row.name, row.help] in lines
        assert [f"{row.group}:"] in lines
    assert digits("help", "deploy", "plan").stdout == digits("deploy", "plan", "--help").stdout


def test_no_help_waits_for_what_is_slow_to_import() -> None:
    code = f"WORDS = {[(), *commands()]}; SLOW = {SLOW}\n{ALL_HELP}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    found, _, seconds = done.stdout.splitlines()[-1].partition(" seconds: ")
    assert found == "imported: []"
    assert float(seconds) < 0.3  # of the processor, whatever else the machine does
    assert done.stdout.count("Example:") == len(commands())
    assert "[default: azure]" in done.stdout


def test_the_version_is_that_of_the_project() -> None:
    version = importlib.metadata.version(NAME)
    assert digits("--version").stdout == f"{NAME} {version}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["retrian"], "Did you mean one of: 'retrain', 'train'"),
        (["--verbos"], "No such option '--verbos'"),
        (["deploy"], "Usage: digits deploy"),
        (["deploy", "aply"], "Did you mean 'apply'"),
        (["score"], "Missing argument 'FILE...'"),
        (["score", "a.csv"], "Missing option '--out'"),
        (["score", "a.csv", "azureml://x", "--out", "y"], "give it alone and with --workspace"),
        (
            ["score", "a.csv", "--out", "y", "--workspace", "local", "--json"],
            "--json cannot be used",
        ),
        (["simulate", "--url", "https://x/score"], "--url and --key-file go together"),
        (["simulate", "--url", "x/score", "--key-file", "k"], "begin it with https://"),
        (["monitor", "--since", "yesterday"], "yesterday"),
        (["monitor", "--production", "x", "--since", "2026-01-05"], "--since cannot be used"),
        (["train", "--attach", "a", "--cancel", "a"], "exclude each other"),
        (["sweep"], "expected values to try: -S"),
        (["sweep", "-S", "epochs=1", "--random", "0"], "0 is not in the range x>=1"),
        (["azure", "connect"], "Missing option '--resource-group'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err


def test_a_failure_is_one_line_and_ends_with_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [NAME, "monitor", "--production", "."],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "monitor: params.yaml: not found; run from the project's root\n"


def test_ctrl_c_ends_with_130() -> None:
    code = "import sys; from mlops import cli; from mlops.review import merge\n"
    code += "def main(*given): raise KeyboardInterrupt\n"
    code += "merge.main = main; sys.argv = ['digits', 'merge']; sys.exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "merge: stopped\n")


def test_a_reader_of_help_that_has_seen_enough_is_no_failure() -> None:
    process = subprocess.Popen(
        [NAME, "--help"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 141


def test_a_command_without_its_packages_is_left_out_and_says_so(tmp_path: Path) -> None:
    env = {"PYTHONPATH": blocking(tmp_path, "azure.ai.ml")}
    assert "  monitor " in digits("--help", **env).stdout
    for name in ("deploy", "train", "sweep", "azure"):
        assert f"  {name} " in digits("--help").stdout
        assert f"  {name} " not in digits("--help", **env).stdout
        done = digits(name, "--help", **env)
        assert done.returncode == 1
        assert done.stderr == f"{name}: azure.ai.ml: not installed. Run `make env`.\n"


def test_a_wing_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wings, "WINGS", ("letters", "mlops"))
    assert [row.name for row in wings.declared("SECTIONS")] == ["azure", "review"]
    assert not wings.installed("letters.production")


def test_a_section_that_nobody_declared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from core import params

    monkeypatch.setattr(wings, "WINGS", ("digits",))
    with pytest.raises(
        DigitsError, match=r"params.yaml: azure: unknown key; the known keys are epochs"
    ):
        params.load(frozen.FROZEN)


@pytest.mark.slow
def test_check_looks_at_every_section_and_at_the_clone(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    copy_tracked(project.root)
    (project.root / "node_modules").symlink_to(ROOT / "node_modules")
    said = project.run(NAME, "check", code=1)
    assert "ok       params.yaml: valid" in said
    assert "failed   git repository" in said and "git init -b main" in said
    project.git("init", "--quiet", "--initial-branch", "main")
    assert "optional data: dvc.lock is outdated" in project.run(NAME, "check")
    project.edit("params.yaml", "batch_size: 64", "batch_size: 0")
    project.edit("params.yaml", "pen_share: 0.7", "pen_share: 7")
    project.edit("params.yaml", "strategy: blue_green", "strategy: green")
    found = project.run(NAME, "check", "--json", code=1).partition("\ncheck: ")[0]
    failed = "\n".join(row["text"] for row in json.loads(found) if row["status"] == "failed")
    assert "train.batch_size is 0" in failed
    assert "foreign.devanagari.reader.hand.pen_share is 7" in failed
    assert "azure.strategy is 'green'" in failed
