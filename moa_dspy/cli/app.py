"""The command ``moa-dspy`` with ``ask``, ``models`` and ``calls``, and errors in one line.

DSPy and Optuna take seconds to import, so each command imports only what it needs.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from moa_dspy.cli.init import init
from moa_dspy.cli.optimize import check, optimize, price_texts, worker
from moa_dspy.cli.report import compare, pick, print_wide, rewrite_report
from moa_dspy.cli.serve import (
    PoolOption,
    agents_file,
    chat,
    printable,
    program_or_text,
    serve,
)
from moa_dspy.errors import LocalModelError, MoaError, StoreError

if TYPE_CHECKING:
    from moa_dspy.calls import AgentSummary, CallFilter, CallStore
    from moa_dspy.mixture import MixtureOfAgents


def ask(
    program: Annotated[
        str,
        typer.Argument(
            metavar="PROGRAM", help="A saved program, a run's folder, or an architecture's text."
        ),
    ],
    question: Annotated[str | None, typer.Argument(help="Value of the first input field.")] = None,
    pool: PoolOption = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=VALUE", help="Value of another input field."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a question with a saved program, or with agents: "a + b > synthesize(c)"."""
    agents = agents_file(pool, program)

    from moa_dspy.calls.lm.lm import each_warning_once
    from moa_dspy.pool import Pool

    mixture = program_or_text(program, Pool.read(agents))
    inputs = _inputs(list(mixture.signature.input_fields), question, more or [])
    with redirect_stdout(sys.stderr), each_warning_once():
        prediction = mixture(**inputs)
    answer = printable(prediction.mixture.final.text)
    typer.echo(_answer_json(mixture, prediction) if as_json else answer)


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
            choices = ", ".join(field for field in fields if field not in inputs) or "none is left"
            raise typer.BadParameter(
                f"--input {text!r} must be NAME=VALUE with a NAME of: {choices}."
            )
        inputs[name] = value
    if absent := [field for field in fields if field not in inputs]:
        raise typer.BadParameter(f"The program also needs {', '.join(absent)}.")
    if not any(value.strip() for value in inputs.values()):
        raise typer.BadParameter(f"There is nothing to answer: {', '.join(fields)} must have text.")
    return inputs


models = typer.Typer(
    help="Small models on this machine, and the prices of a pool.", no_args_is_help=True
)


@models.command("list")
def list_models() -> None:
    """List the models that are known by name, and which of them are here."""
    from moa_dspy.local import models_table, weights_folder

    for status in models_table():
        state = ("here, checked" if status.checked else "here") if status.present else "absent"
        size = f"{status.n_bytes / 1e6:,.0f} MB"
        typer.echo(f"{status.name:<30} {size:>10}  {status.licence:<12} {state}")
    typer.echo(f"folder: {weights_folder()}")


@models.command("prices")
def list_prices(
    pool: Annotated[Path, typer.Argument(metavar="POOL.toml", help="A pool file.")],
) -> None:
    """List what the tokens of each agent cost, and where that is known from."""
    from moa_dspy.agent import read_agents

    agents = read_agents(pool)
    typer.echo(f"{'agent':<24} {'model':<36} {'usd per million tokens':<24} source")
    for agent in agents:
        usd, source = price_texts(agent.price)
        typer.echo(f"{agent.name:<24} {agent.model:<36} {usd:<24} {source}")


@models.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="As `models list` shows it.")]) -> None:
    """Download a model and check it; nothing happens if it is here already."""
    from moa_dspy.local import pull as pull_weights

    typer.echo(pull_weights(name, progress=lambda line: typer.echo(line, err=True)))


@models.command("check")
def check_models(
    name: Annotated[
        str | None, typer.Argument(help="Default: every model on this machine.")
    ] = None,
) -> None:
    """Compare a model's checksum with the catalogue's; exit code 2 if one differs."""
    from moa_dspy.local import models_table
    from moa_dspy.local import weights_status as check_weights

    names = [s.name for s in models_table() if s.path.is_file()] if name is None else [name]
    broken = 0
    for each in names:
        try:
            typer.echo(f"{each}: its checksum is right, {check_weights(each)}")
        except LocalModelError as error:
            broken += 1
            typer.echo(f"error: {error}", err=True)
    if broken:
        raise typer.Exit(2)


_COLUMNS = {
    "calls": ",",
    "failed": ",",
    "prompt_tokens": ",",
    "completion_tokens": ",",
    "usd": ",.4f",
    "seconds": ",.0f",
    "paid_twice": ",",
}
"""Columns of the table, and the format of each."""


def calls(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A file, or postgresql://...")],
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only failed calls.")] = False,
    since: Annotated[str | None, typer.Option(help="Only from this day or time (UTC) on.")] = None,
    before: Annotated[str | None, typer.Option(help="Only before this day or time (UTC).")] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="Write the chosen calls to a recording."),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE.parquet", help="Add the calls of a recording."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the chosen calls, with --yes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really delete the calls.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the calls of a store per agent; export, import or delete some of them.

    --agent, --failed, --since and --before choose calls, for the table, --export and --prune; of
    several given, all must hold. A password is best left to PGPASSWORD or ~/.pgpass.
    """
    from moa_dspy.calls import CallFilter

    chosen = CallFilter(agent, failed, _seconds("--since", since), _seconds("--before", before))
    if prune and chosen.is_all:
        raise typer.BadParameter(
            "--prune deletes the calls that --agent, --failed, --since and --before choose; give "
            "one of them."
        )
    opened = _opened(store, may_make=import_ is not None)
    try:
        if import_ is not None:
            _import(opened, import_)
        if export is not None:
            _export(opened, chosen, export)
        if prune:
            _prune(opened, chosen, is_sure=yes)
        _show(opened, chosen, as_json=as_json)
    finally:
        opened.close()


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{option} must be a day or time such as 2026-11-22 or 2026-11-22T20:00, "
            f"but is {text!r}."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _opened(place: str, *, may_make: bool) -> CallStore:
    from moa_dspy.calls import CallStore, database_url

    url = database_url(place)
    is_file = url.get_backend_name() == "sqlite"
    if is_file and not may_make and not Path(str(url.database)).is_file():
        raise StoreError(f"There is no call store {url.database}.")
    return CallStore(place)


def _import(store: CallStore, path: Path) -> None:
    from moa_dspy.calls import Recording

    recording, n_before = Recording.read(path), len(store)
    store.put_all(recording)
    typer.echo(f"read {len(recording):,} calls, {len(store) - n_before:,} of them new", err=True)


def _export(store: CallStore, chosen: CallFilter, path: Path) -> None:
    from moa_dspy.calls import Recording, filtered_calls

    recording = Recording(filtered_calls(store.database, chosen))
    recording.write(path)
    typer.echo(f"wrote {len(recording):,} calls to {path}", err=True)


def _prune(store: CallStore, chosen: CallFilter, *, is_sure: bool) -> None:
    from moa_dspy.calls import prune, summaries

    if is_sure:
        typer.echo(f"deleted {prune(store.database, chosen):,} calls", err=True)
        return
    agents = summaries(store.database, chosen)
    total = _total(agents)
    cost = "whose price is 0 or unknown" if total.usd is None else f"that cost {total.usd:,.4f} usd"
    typer.echo(
        f"Nothing is deleted; with --yes it would be {total.calls:,} calls {cost}.", err=True
    )


def _show(store: CallStore, chosen: CallFilter, *, as_json: bool) -> None:
    from moa_dspy.calls import summaries

    totals = summaries(store.database, chosen)
    total = _total(totals)
    if as_json:
        agents = [asdict(each) for each in totals]
        content = {"store": store.database.name, "agents": agents, "total": asdict(total)}
        typer.echo(json.dumps(content, allow_nan=False))
        return
    from rich.table import Table

    table = Table(title=store.database.name, show_footer=len(totals) > 1)
    table.add_column("agent", footer=total.agent, no_wrap=True)
    for name in _COLUMNS:
        footer = _cell(total, name)
        table.add_column(name.replace("_", " "), justify="right", footer=footer)
    for each in totals:
        table.add_row(each.agent, *(_cell(each, name) for name in _COLUMNS))
    print_wide(table)
    if any(each.usd is None for each in totals):
        others = "" if total.usd is None else " The total is of the other agents."
        typer.echo(f"usd —: no call of the agent has a price above 0; it was 0 or unknown.{others}")


def _cell(summary: AgentSummary, column: str) -> str:
    value = getattr(summary, column)
    return "—" if value is None else format(value, _COLUMNS[column])


def _total(agents: list[AgentSummary]) -> AgentSummary:
    from moa_dspy.calls import AgentSummary

    names = [f.name for f in fields(AgentSummary) if f.name not in ("agent", "usd")]
    sums = {name: sum(getattr(agent, name) for agent in agents) for name in names}
    known = [agent.usd for agent in agents if agent.usd is not None]
    return AgentSummary("all", usd=sum(known) if known or not agents else None, **sums)


def _interrupted(command: str | None, kept: str) -> str:
    """Return the message after Ctrl-C; ``kept`` is that for a study that has begun."""
    if not kept:
        return "Interrupted."
    how = "the same command with --resume" if command == "optimize" else "the same command"
    return f"Interrupted: {kept}; {how} continues."


class OneLineErrors(TyperGroup):
    """Prints an error of the library in one line; any other error is a bug, with its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        _read_and_show_any_text()
        try:
            return super().invoke(ctx)
        except MoaError as error:
            typer.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interrupt:
            typer.echo(_interrupted(ctx.invoked_subcommand, str(interrupt)), err=True)
            raise typer.Exit(130) from None


def _read_and_show_any_text() -> None:
    """Replace text that the console cannot encode or decode, instead of failing.

    Examples are half of an emoji that a model cut, and a console that is not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if is_ascii else None, errors="replace")


app = typer.Typer(
    cls=OneLineErrors,
    help="Mixture-of-Agents as DSPy programs, and a search for which model sits where.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(init)
app.command()(check)
app.command()(optimize)
app.command()(worker)
app.command()(ask)
app.command()(chat)
app.command()(serve)
app.command()(calls)
app.command("report")(rewrite_report)
app.command()(compare)
app.command()(pick)
app.add_typer(models, name="models")


def main() -> None:
    """Run the command line and exit with its exit code."""
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
