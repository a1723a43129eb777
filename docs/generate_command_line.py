"""Write docs/command-line.md, the reference of `segcal`, from its commands.

Run `make docs` after a change of a command or an option in app/cli.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

from app.cli.lazy import load
from app.cli.main import app

WIDTH = 1000  # columns: no text is cut
TARGET = Path(__file__).with_name("command-line.md")
INTRODUCTION = """\
# Command line

Generated from the commands by `make docs`; do not edit. `segcal COMMAND --help` prints the same.

`segcal --install-completion` installs completion for the shell in use, `segcal --version` prints
the version. Where no virtual environment is activated, type `.venv/bin/segcal`.

With `--url` a command uses a running service (by the [Python client](python-client.md)), without it
the folders of the settings in [run.md](run.md#settings).
"""


def commands(group: TyperGroup, *parents: str) -> Iterator[tuple[str, TyperCommand]]:
    """Yield each command below a group with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *parents, name)
            continue
        if not isinstance(command, TyperCommand):
            raise TypeError(f"expected a command, got {command}")
        function = command.callback
        if function is not None and "target" in vars(function):
            command = load(function, name)  # noqa: PLW2901 - the command itself for its placeholder
        yield " ".join((*parents, name)), command


def render() -> str:
    """Return the reference as Markdown."""
    root = typer.main.get_command(app)
    if not isinstance(root, TyperGroup):
        raise TypeError(f"expected a group of commands, got {root}")
    sections = [section(name, command) for name, command in commands(root, "segcal")]
    return "\n".join([INTRODUCTION, *sections])


def section(name: str, command: TyperCommand) -> str:
    """Return the section of a command: its help, and a table of its arguments and options."""
    context = typer.Context(command, info_name=name, terminal_width=WIDTH)
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [f"| `{escaped(record[0])}` | {escaped(record[1])} |" for record in records if record]
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## {name}", "", f"`{usage}`", "", command.help or "", ""]
    return "\n".join([*lines, "| option | meaning |", "|---|---|", *rows, ""])


def escaped(text: str) -> str:
    """Return a text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(render(), "utf-8")
    sys.stdout.write(f"wrote {TARGET}\n")
