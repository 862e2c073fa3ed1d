"""`digits COMMAND ...`: what people and workflows run; stages do not go through it.

The wings declare the commands in their modules `commands`. A command's own module declares its
options with Click and imports what does the work when it runs, so that no help waits for
TensorFlow or for Azure's SDK.
"""

import sys
import tomllib
from pathlib import Path

import click

from core import console, wings
from core.errors import DigitsError

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
MOVED = {
    "serve": "`digits local`",
    "params": "`digits check`",
    "doctor": "`digits azure check`",
    "connect": "`digits azure connect`",
    "disconnect": "`digits azure disconnect`",
    "noise": "`make noise`",
}


class Commands(click.Group):
    """The commands that the wings declare, those left out that lack a package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of those that can run."""
        return [
            entry.name
            for entry in wings.declared("COMMANDS")
            if all(map(wings.installed, entry.requires))
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Return a command; raise UsageError for one that there is not."""
        if cmd_name in MOVED:
            ctx.fail(f"`digits {cmd_name}` is now {MOVED[cmd_name]}")
        for entry in wings.declared("COMMANDS"):
            if entry.name == cmd_name:
                if missing := [name for name in entry.requires if not wings.installed(name)]:
                    raise DigitsError(f"{', '.join(missing)}: not installed; run `make env`")
                command: click.Command = wings.resolve(f"{entry.module}:{entry.name}")
                return command
        raise click.NoSuchCommand(cmd_name, possibilities=self.list_commands(ctx), ctx=ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them by group, a line each."""
        listed = self.list_commands(ctx)
        groups: dict[str, list[tuple[str, str]]] = {}
        for entry in wings.declared("COMMANDS"):
            if entry.name in listed:
                groups.setdefault(entry.group, []).append((entry.name, entry.help))
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


def version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the project's name and version, as pyproject.toml has them."""
    if asked:
        project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
        print(project["name"], project["version"])
        ctx.exit()


VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=version,
    help="Show the version and exit.",
)
command_line = Commands(
    "digits",
    params=[VERSION],
    help="From data to production and back. `digits COMMAND --help` explains a command.",
    context_settings={"show_default": True, "max_content_width": 100},
)


def main() -> int:
    """Run the command that is named on the command line; return the exit code."""
    arguments = sys.argv[1:] or ["--help"]
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    return console.report_errors(arguments[0], lambda: exit_code(arguments))


def call(*arguments: str) -> None:
    """Run a command; raise whatever it raises.

    Click's own `main` would report Ctrl-C and a closed pipe otherwise than stages do.
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
