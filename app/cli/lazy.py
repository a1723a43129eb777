"""Commands that are imported once they are chosen, so that help and completion are fast."""

from collections.abc import Callable
from importlib import import_module

import typer
from typer.core import TyperCommand, TyperGroup


def add_lazily(app: typer.Typer, name: str, target: str, text: str) -> None:
    """Add a command by its function, given as `module:function`, and its help's first sentence."""

    def placeholder() -> None: ...

    placeholder.target = target  # type: ignore[attr-defined]
    app.command(name, help=text)(placeholder)


def load(function: Callable[..., object], name: str | None) -> TyperCommand:
    """Import the function of a placeholder and return its command."""
    module, _, attribute = str(vars(function)["target"]).partition(":")
    app = typer.Typer(add_completion=False)
    app.command(name)(getattr(import_module(module), attribute))
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)  # noqa: S101 - an app of one command is one
    return command


class LazyGroup(TyperGroup):
    """A group that imports a command once it is chosen."""

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - click's types are private in typer
        """Return the name, the command and the other arguments of a command line."""
        name, command, others = super().resolve_command(ctx, args)
        function = getattr(command, "callback", None)
        if function is not None and "target" in vars(function):
            command = load(function, name)
        return name, command, others
