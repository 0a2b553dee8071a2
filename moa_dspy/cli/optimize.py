"""The commands ``check``, ``optimize`` and ``worker`` of a study file.

Progress goes to standard error: a live view in a terminal, plain lines in a log.
"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa_dspy.cli.report import Report, print_wide
from moa_dspy.cli.serve import agents_of_run, pool_option, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moa_dspy.optimize.preflight import Preflight
    from moa_dspy.optimize.result import StudyResult
    from moa_dspy.optimize.run import StudyEnd
    from moa_dspy.optimize.study import PreparedStudy
    from moa_dspy.telemetry import MlflowStudy
    from moa_dspy.vendors import Price


def optimize(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: runs/NAME.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database that workers share; default: files in the folder."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run of this folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, as `moa-dspy check` does.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before money is spent.")] = False,
    ask_above: Annotated[
        float, typer.Option(help="On a terminal, ask first if it may cost more usd than this.")
    ] = 1.0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress, only the report.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every trial and every agent.")
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Write the study into MLflow, such as sqlite:///mlflow.db."
        ),
    ] = None,
) -> None:
    """Search for the best mixture, test it, and write program.json and result.json."""
    if dry_run:
        check(study, as_json=as_json)
        return
    with _prints_aside(as_json):
        prepared = _read(study)
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if is_terminal and not (yes or resume or as_json):
        _ask_to_go_on(prepared, ask_above)
    record = None if mlflow is None else _mlflow_record(prepared, study.name, mlflow)
    options: Any = {"out": out, "resume": resume, "callbacks": [] if record is None else [record]}
    try:
        with _prints_aside(as_json):
            ended = _run(prepared, storage, options, is_shown=not (as_json or quiet), more=verbose)
    except BaseException:
        if record is not None:
            record.fail()
        raise
    if record is not None:
        from moa_dspy.optimize.run import RUN_FILES

        record.finish(ended.result, [ended.folder / name for name in RUN_FILES])
    if as_json:
        # ASCII, as half of an emoji or the console's encoding must not end the command.
        typer.echo(json.dumps(ended.result.to_json(), allow_nan=False))
    else:
        _show(ended.result, ended.folder)


def _prints_aside(is_aside: bool) -> Any:
    # Metrics and data readers are user code, whose output must not be mixed with the JSON.
    return redirect_stdout(sys.stderr) if is_aside else nullcontext()


def _read(study: Path) -> PreparedStudy:
    from moa_dspy.optimize.study import PreparedStudy

    return PreparedStudy.read(study)


def _run(
    prepared: PreparedStudy, storage: str | None, options: Any, *, is_shown: bool, more: bool
) -> StudyEnd:
    from moa_dspy.optimize.live_view import LiveProgress
    from moa_dspy.optimize.run import work_on

    if not is_shown:
        return work_on(prepared, storage, **options)
    with LiveProgress(is_verbose=more) as display:
        return work_on(prepared, storage, show=display, **options)


def _mlflow_record(prepared: PreparedStudy, file: str, uri: str) -> MlflowStudy:
    from moa_dspy.telemetry import MlflowStudy

    name = prepared.study.name
    return MlflowStudy(uri, experiment=name, name=name, params={"study": file})


def check(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also ask each agent one question; only this costs money."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a study and estimate its calls, cost and time; free, and nothing is written.

    Exit code 2 if it cannot run: a fault in the file, a budget that reaches no verdict, or, with
    --probe, an agent that does not answer.
    """
    from moa_dspy.calls.lm.lm import each_warning_once
    from moa_dspy.optimize.preflight import check_before

    with _prints_aside(True), each_warning_once():
        preflight = check_before(_read(study), asks=probe)
    if as_json:
        typer.echo(json.dumps(preflight.to_json(), allow_nan=False))
    else:
        _show_check(preflight)
    if preflight.too_small or any(agent.failure for agent in preflight.agents):
        raise typer.Exit(2)


def _ask_to_go_on(prepared: PreparedStudy, ask_above: float) -> None:
    from moa_dspy.optimize.preflight import check_before

    preflight = check_before(prepared)
    most = preflight.most_usd
    if most is None:
        names = ", ".join(preflight.unpriced)
        typer.echo(f"The price of {names} is unknown, and so is what the study costs.", err=True)
    elif most <= ask_above:
        return
    else:
        typer.echo(f"The study takes {_about(preflight, 'usd')} usd{_capped(preflight)}.", err=True)
    if not typer.confirm("Go on?", default=False, err=True):
        raise typer.Exit(1)


def _about(preflight: Preflight, unit: str, shown: Any = None) -> str:
    from moa_dspy.optimize.report import about, amount

    low, likely, high = (getattr(preflight.whole.costs[n], unit) for n in ("low", "likely", "high"))
    return about(likely, low, high, shown or amount)


def _capped(preflight: Preflight) -> str:
    limit = preflight.budget.usd
    return "" if limit is None else f", and at most its budget of {limit:g} usd"


def _show_check(preflight: Preflight) -> None:
    rows = ", ".join(f"{n} {name}" for name, n in preflight.n_rows.items())
    typer.echo(f"{preflight.name}: {len(preflight.agents)} agents, {rows} rows")
    print_wide(_agents_table(preflight), width=100)
    if preflight.stages:
        print_wide(_stages_table(preflight), width=100)
    if (whole := preflight.estimate).capped_by is not None:
        share = f"about {100 * whole.share:.0f} % of that"
        typer.echo(f"budget.{whole.capped_by} = {whole.ceiling:.10g} allows {share}")
    for name, value in preflight.smallest.items():
        typer.echo(f"smallest budget.{name} that reaches a verdict: {value:,.10g}")
    for name, value in preflight.too_small.items():
        limit = getattr(preflight.budget, name)
        typer.echo(
            f"error: `budget.{name}` is {limit:.10g}, but a verdict needs about {value:.10g} at "
            "least. Allow that much, or give fewer rows.",
            err=True,
        )
    for note in preflight.notes:
        typer.echo(f"note: {note}")
    for agent in preflight.agents:
        if agent.failure:
            failure = printable(str(agent.failure))
            typer.echo(f"error: Agent {agent.name!r} does not answer: {failure}", err=True)


def _agents_table(preflight: Preflight) -> Any:
    """Return a row for each agent, with the columns in which something is known."""
    from rich.table import Table

    names = ("agent", "usd per million tokens", "source", "prompt", "reply", "seconds", "says")
    rows = [
        (
            agent.name,
            *price_texts(agent.price),
            _range_text(agent.prompt_tokens, "likely", "likely"),
            _range_text(agent.reply_tokens, "low", "high"),
            "" if agent.seconds is None else f"{agent.seconds:.2f}",
            agent.reply or "",
        )
        for agent in preflight.agents
    ]
    shown = [i for i in range(len(names)) if any(row[i] for row in rows)]
    table = Table(*(names[i] for i in shown))
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


def _range_text(tokens: Mapping[str, float], low: str, high: str) -> str:
    """Return a range of tokens; "" if they are unknown."""
    ends = dict.fromkeys(f"{tokens[level]:,.0f}" for level in (low, high) if level in tokens)
    return " to ".join(ends)


def price_texts(price: Price | None) -> tuple[str, str]:
    """Return a price (prompt / reply) and its source, as shown in tables."""
    if price is None:
        return "unknown", "set it in the pool file"
    if price.source == "table":
        return "no call", "the table"
    usd = (price.usd_per_million_prompt_tokens, price.usd_per_million_completion_tokens)
    source = {"pool": "pool file", "local": "this machine", "litellm": "LiteLLM's list"}
    shown = "free" if usd == (0, 0) else f"{usd[0]:g} / {usd[1]:g}"
    return shown, source.get(price.source, price.source)


def _stages_table(preflight: Preflight) -> Any:
    from rich.table import Table

    from moa_dspy.optimize.live_view import clock

    caption = "In brackets: the range of nine studies out of ten."
    table = Table("stage", "calls", "usd", "time", caption=caption, caption_justify="left")
    for stage in preflight.stages:
        costs = [stage.costs[level] for level in ("low", "likely", "high")]
        usd = _ranged(*(f"{cost.usd:.4f}" if cost.usd else "0" for cost in costs))
        table.add_row(
            stage.name,
            _ranged(*(f"{cost.calls:,.0f}" for cost in costs)),
            "unknown" if preflight.unpriced else usd,
            _ranged(*(clock(cost.seconds) for cost in costs)) if preflight.is_timed else "unknown",
        )
    return table


def _ranged(low: str, likely: str, high: str) -> str:
    return likely if low == high else f"{likely} ({low} to {high})"


def _show(result: StudyResult, folder: Path) -> None:
    from moa_dspy.optimize.run import RUN_FILES

    print_wide(Report(result), width=100)
    for name in RUN_FILES:
        typer.echo(f"wrote {folder / name}")
    if (agents := agents_of_run(folder)) is not None:
        shown = f'{shlex.quote(str(folder))} "..."{pool_option(agents)}'
        typer.echo(f"next: moa-dspy ask {shown} (or chat, serve)")


def worker(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    storage: Annotated[str, typer.Option(help="URL of the database that all processes share.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder on this machine for the results; default: none.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Questions at the same time; default: the study's number."),
    ] = None,
) -> None:
    """Work on a study with others, on any number of machines, until it is finished."""
    from moa_dspy.optimize.live_view import LiveProgress
    from moa_dspy.optimize.run import work_on

    with LiveProgress() as progress:
        ended = work_on(
            _read(study),
            storage,
            out=out,
            is_helper=True,
            writes_files=out is not None,
            num_threads=threads,
            show=progress,
        )
    typer.echo(
        f"finished: the program is {ended.result.recommended}; tasks done by this worker: "
        f"{ended.n_tasks}"
    )
    typer.echo(f"result: {ended.storage}, written to {ended.place}")
