"""The command line `digits COMMAND ...`; stages of the pipeline do not use it.

Input: the tables COMMANDS of the modules `commands`. Output: the exit code of a command. The module
of a command declares its options with Click and imports the implementation when it runs, so that
`--help` loads neither TensorFlow nor Azure's SDK.
"""

import sys
import tomllib
from pathlib import Path

import click

from core import console, wings
from core.errors import DigitsError

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]


class Commands(click.Group):
    """The declared commands, without those that require a missing package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands whose packages are installed."""
        return [
            entry.name
            for entry in wings.declared("COMMANDS")
            if all(map(wings.installed, entry.requires))
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Return a command; raise UsageError for an unknown name."""
        for entry in wings.declared("COMMANDS"):
            if entry.name == cmd_name:
                if missing := [name for name in entry.requires if not wings.installed(name)]:
                    raise DigitsError(f"{', '.join(missing)}: not installed. Run `make env`.")
                command: click.Command = wings.resolve(f"{entry.module}:{entry.name}")
                return command
        raise click.NoSuchCommand(cmd_name, possibilities=self.list_commands(ctx), ctx=ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by group."""
        listed = self.list_commands(ctx)
        groups: dict[str, list[tuple[str, str]]] = {}
        for entry in wings.declared("COMMANDS"):
            if entry.name in listed:
                groups.setdefault(entry.group, []).append((entry.name, entry.help))
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


command_line = Commands(
    "digits",
    help="From data to production and back. `digits COMMAND --help` explains a command.",
    context_settings={"show_default": True, "max_content_width": 100},
)
command_line = click.version_option(
    PROJECT["version"], prog_name=PROJECT["name"], message="%(prog)s %(version)s"
)(command_line)


def main() -> int:
    """Run the command on the command line; return the exit code."""
    arguments = sys.argv[1:] or ["--help"]
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    return console.report_errors(arguments[0], lambda: exit_code(arguments))


def call(*arguments: str) -> None:
    """Run a command; raise its exceptions.

    Click's own `main` reports Ctrl-C and a closed pipe in another way than stages do.
    """
    with command_line.make_context("digits", list(arguments)) as context:
        command_line.invoke(context)


def exit_code(arguments: list[str]) -> int:
    """Run a command; return its exit code, 2 for wrong usage."""
    try:
        call(*arguments)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0
