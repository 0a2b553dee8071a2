from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from moa_dspy.cli._ask import ask
from moa_dspy.cli._calls import calls
from moa_dspy.cli._models import models
from moa_dspy.cli._optimize import optimize
from moa_dspy.cli._worker import worker
from moa_dspy.errors import MoaError
from moa_dspy.version import version

KEPT = "Interrupted: every answer up to now is kept; the same command with --resume goes on."


class OneLineErrors(TyperGroup):
    """Turns what the library raises on purpose into one line; anything else is a bug and shows."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MoaError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            is_study = ctx.invoked_subcommand in ("optimize", "worker")
            typer.echo(KEPT if is_study else "Interrupted.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=OneLineErrors,
    help="Mixture-of-Agents as DSPy programs, and a search for which model sits where.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(optimize)
app.command()(worker)
app.command()(ask)
app.command()(calls)
app.add_typer(models, name="models")


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    app()


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"moa-dspy {version()}")
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass
