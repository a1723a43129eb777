"""Help, version and completion: for every command, without what only its work needs."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from typer.core import TyperGroup

from app import __version__
from app.cli.flags import name_flags
from app.cli.lazy import load
from app.cli.main import app
from tests.cli.test_main import Run, run

__all__ = ["run"]  # the fixture

LARGE = {"torch", "onnxruntime", "numba", "numpy", "fastapi", "matplotlib", "httpx2", "PIL"}
ROOT = typer.main.get_command(app)


def paths(group: object, *parents: str) -> Iterator[tuple[str, ...]]:
    """Yield the names that lead to each command and group."""
    yield parents
    if isinstance(group, TyperGroup):
        for name, command in group.commands.items():
            yield from paths(command, *parents, name)


ALL = list(paths(ROOT))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_of_every_command(run: Run, path):
    short, long = run(*path, "-h"), run(*path, "--help")

    assert (short.code, short.out) == (0, long.out)
    assert "Usage: segcal" in " ".join(short.out.split())


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_group_lists_what_the_help_of_a_command_begins_with(path):
    command: object = ROOT
    for name in path:
        assert isinstance(command, TyperGroup)
        command = command.commands[name]
    function = getattr(command, "callback", None)
    if function is not None and "target" in vars(function):
        text = load(function, path[-1]).help or ""
        assert text.splitlines()[0] == getattr(command, "help", "")


def test_help_and_version_load_nothing_large():
    # Of the models' commands the group alone: their options are those of the conversion.
    light = [["--version"], *([*path, "-h"] for path in ALL if path[:1] != ("models",)), ["models"]]
    code = (
        "import json, sys\n"
        "from app.cli.main import app\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        app(arguments)\n"
        "    except SystemExit as stop:\n"
        "        pass\n"
        "print('modules', *sys.modules)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(light)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.count("Usage:") == len(light) - 1
    assert LARGE.isdisjoint(done.stdout.splitlines()[-1].split())


def test_module_runs_like_the_script():
    command = [sys.executable, "-m", "app", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout == f"segcal {__version__}\n"


def test_shell_completes_the_names_of_commands(run: Run, monkeypatch):
    monkeypatch.setenv("_SEGCAL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "segcal calibrators a")
    monkeypatch.setenv("COMP_CWORD", "2")

    assert run().out.split() == ["activate", "archive"]
    monkeypatch.setenv("COMP_WORDS", "segcal segment --max")
    assert run().out.split() == ["--max-error"]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("seed: Input should be greater, got '-1'", "--seed: Input should be greater, got '-1'"),
        ("certified for max_error=0.05, got x", "certified for --max-error 0.05, got x"),
        (
            "expected tta=none with max_error, which is certified without it, got flip",
            "expected --tta none with --max-error, which is certified without it, got flip",
        ),
        (
            "expected allow_label_changes with the method matrix",
            "expected --allow-label-changes with the method matrix",
        ),
        ("expected group_index of integers [2]", "expected --group-index of integers [2]"),
        ("expected a model, got the method ets: a note", None),
        ("--max-error: expected one, got 'max_error' in a/max_error.png", None),
        ("card.toml: output.ignore_index: expected a label", None),
    ],
)
def test_errors_name_options(message, named):
    assert name_flags(message) == (named or message)
