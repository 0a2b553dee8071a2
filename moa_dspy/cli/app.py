"""The command ``moa-dspy``: its subcommands, and errors as one line each.

DSPy and Optuna take seconds to import, so every command imports what it needs on its own.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from moa_dspy.cli.calls import calls
from moa_dspy.cli.optimize import optimize, worker
from moa_dspy.cli.serve import POOLS, chat, pool_file, program_or_text, serve
from moa_dspy.errors import LocalModelError, MoaError

if TYPE_CHECKING:
    from moa_dspy.mixture import MixtureOfAgents


def ask(
    program: Annotated[
        str, typer.Argument(metavar="PROGRAM", help="A saved program, or an architecture's text.")
    ],
    question: Annotated[str | None, typer.Argument(help="The first input field.")] = None,
    pool: Annotated[str, typer.Option(help=f"A name in {POOLS}, or a TOML file.")] = "local",
    more: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="Another input.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a question with a saved program, or with agents: "a + b > synthesize(c)"."""
    agents_file = pool_file(pool)

    from moa_dspy.pool import Pool

    mixture = program_or_text(program, Pool.read(agents_file))
    inputs = _inputs(list(mixture.signature.input_fields), question, more or [])
    with redirect_stdout(sys.stderr):
        prediction = mixture(**inputs)
    typer.echo(_answer_json(mixture, prediction) if as_json else prediction.mixture.final.text)


def _answer_json(mixture: MixtureOfAgents, prediction: Any) -> str:
    answer = prediction.mixture
    content = {
        "answer": answer.final.text,
        "outputs": dict(answer.final.values),
        "architecture": str(mixture.architecture),
        "responses": [asdict(response) for response in answer.responses],
        "usd": answer.usd,
        "seconds": answer.seconds,
        "failures": [
            {"agent": failed.agent, "sample": failed.sample, "failure": failed.failure}
            for failed in answer.failures
        ],
    }
    return json.dumps(content, default=str)


def _inputs(fields: list[str], question: str | None, more: list[str]) -> dict[str, str]:
    inputs = {} if question is None else {fields[0]: question}
    for text in more:
        name, equals, value = text.partition("=")
        if not equals or name not in fields or name in inputs:
            known = ", ".join(field for field in fields if field not in inputs) or "none is left"
            raise typer.BadParameter(
                f"--input {text!r} must be NAME=VALUE with a NAME of: {known}."
            )
        inputs[name] = value
    if absent := [field for field in fields if field not in inputs]:
        raise typer.BadParameter(f"The program also needs {', '.join(absent)}.")
    return inputs


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


@models.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="As `models list` shows it.")]) -> None:
    """Download a model and check it; nothing happens if it is here already."""
    from moa_dspy.local import pull as pull_weights

    typer.echo(pull_weights(name, progress=lambda line: typer.echo(line, err=True)))


@models.command("check")
def check_models(
    name: Annotated[str | None, typer.Argument(help="Default: every model that is here.")] = None,
) -> None:
    """Compare a model's checksum with the catalogue's; exit code 2 if one differs."""
    from moa_dspy.local import models_table
    from moa_dspy.local import weights_status as check_weights

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


def _interrupted(command: str | None, kept: str) -> str:
    """Return the line on Ctrl-C; ``kept`` is the text of an interrupt of a study that has begun."""
    if not kept:
        return "Interrupted."
    how = "the same command with --resume" if command == "optimize" else "the same command"
    return f"Interrupted: {kept}; {how} goes on."


class OneLineErrors(TyperGroup):
    """Turns what the library raises on purpose into one line; anything else is a bug and shows."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A model's half emoji, or a console that is not UTF-8, must not end a command.
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except MoaError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interrupt:
            typer.echo(_interrupted(ctx.invoked_subcommand, str(interrupt)), err=True)
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
app.command()(chat)
app.command()(serve)
app.command()(calls)
app.add_typer(models, name="models")


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    app()


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from moa_dspy.files import version

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
