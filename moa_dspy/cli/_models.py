from __future__ import annotations

from typing import Annotated

import typer

from moa_dspy.errors import LocalModelError

models = typer.Typer(help="Small models on this machine.", no_args_is_help=True)


@models.command("list")
def list_models() -> None:
    """List the models that are known by name, and which of them are here."""
    from moa_dspy.local import models_table, weights_folder

    for status in models_table():
        state = ("here, checked" if status.checked else "here") if status.present else "absent"
        size = f"{status.n_bytes / 1e6:,.0f} MB"
        typer.echo(f"{status.name:<30} {size:>10}  {status.licence:<12} {state}")
    typer.echo(f"folder: {weights_folder()}")


@models.command()
def pull(name: Annotated[str, typer.Argument(help="As `models list` shows it.")]) -> None:
    """Download a model and check it; nothing happens if it is here already."""
    from moa_dspy.local import pull as pull_weights

    typer.echo(pull_weights(name, progress=lambda line: typer.echo(line, err=True)))


@models.command()
def check(
    name: Annotated[str | None, typer.Argument(help="Default: every model that is here.")] = None,
) -> None:
    """Compare a model's checksum with the catalogue's; exit code 2 if one differs."""
    from moa_dspy.local import check as check_weights
    from moa_dspy.local import models_table

    names = [s.name for s in models_table() if s.path.is_file()] if name is None else [name]
    broken = 0
    for each in names:
        try:
            typer.echo(f"{each}: right, {check_weights(each)}")
        except LocalModelError as error:
            broken += 1
            typer.echo(f"error: {error}", err=True)
    if broken:
        raise typer.Exit(2)
