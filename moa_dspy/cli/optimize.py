"""The commands ``check``, ``optimize`` and ``worker`` of a study file, and the progress display.

Progress goes to standard error: a live view in a terminal, plain lines in a log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moa_dspy.optimize.preflight import Preflight
    from moa_dspy.optimize.progress import Snapshot
    from moa_dspy.optimize.result import StudyResult
    from moa_dspy.vendors import Price


EVERY = 10
"""Plain lines come with every change of stage and every so many trials."""


class LiveProgress:
    """A progress display that is drawn inside ``with`` and removed at its end.

    Args:
        stream: Default: standard error. A terminal gets a live view that moves between
            snapshots too; anything else gets one line per stage and per ``EVERY`` trials.
        is_live: Instead of asking the stream whether it is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, *, is_live: bool | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._is_live = self._stream.isatty() if is_live is None else is_live
        self._seen: tuple[Snapshot, float] | None = None
        self._last_line: tuple[str, int] | None = None
        self._early: tuple[str, ...] = ()
        self._live: Any = None
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._is_live:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, force_terminal=True)
            self._live = Live(self, console=console, transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, snapshot: Snapshot, /) -> None:
        """Show ``snapshot``; a live view draws it with its next frame."""
        self._seen = (snapshot, time.monotonic())
        if snapshot.early is not None:
            from moa_dspy.optimize.report import early_lines

            self._early = tuple(early_lines(snapshot.early))
        if self._is_live:
            return
        now = (snapshot.stage, snapshot.trial // EVERY)
        if now != self._last_line:
            self._last_line = now
            self._print("; ".join(lines(snapshot, watched=self._watched)))
            for line in self._early if snapshot.early is not None else ():
                self._print(line)

    def _print(self, line: str) -> None:
        # A reader that went away (`2>&1 | head`) must not end a study.
        with suppress(OSError, ValueError):
            print(line, file=self._stream, flush=True)

    @property
    def _watched(self) -> float:
        return time.monotonic() - self._started

    def __rich__(self) -> RenderableType:
        """Return the current frame; the clock runs between snapshots."""
        from rich.text import Text

        if self._seen is None:
            return Text("starting")
        snapshot, taken = self._seen
        since = time.monotonic() - taken
        shown = [*lines(snapshot, since=since, watched=self._watched), f"now {snapshot.current}"]
        shown += self._early
        return Text("\n".join(shown), overflow="ellipsis", no_wrap=True)


def lines(snapshot: Snapshot, *, since: float = 0.0, watched: float = 0.0) -> Iterator[str]:
    """Yield stage, best so far, spending and time, as they are ``since`` seconds later.

    The budget's clock runs from the first paid call, also in runs before a resume; a
    replay never starts it, so the time shown is at least the ``watched`` seconds.
    """
    trials = f", trial {snapshot.trial}/{snapshot.n_trials}" if snapshot.n_trials else ""
    yield f"{snapshot.stage}{trials}"
    if snapshot.best is not None and snapshot.best_score is not None:
        yield f"best {100 * snapshot.best_score:.1f} %: {snapshot.best}"
    spent, budget = snapshot.spending, snapshot.budget
    of_calls = "" if budget.calls is None else f" of {budget.calls:,}"
    of_usd = "" if budget.usd is None else f" of {budget.usd:g}"
    calls = f"{spent.made:,}{of_calls} calls made, {spent.reused:,} reused"
    yield f"{calls}, {spent.usd:.4f}{of_usd} usd"
    counted = spent.seconds + since if spent.seconds else 0.0
    left = "" if budget.seconds is None else f", at most {clock(budget.seconds - counted)} left"
    yield f"{clock(max(counted, watched))} elapsed{left}"


def clock(seconds: float) -> str:
    """Return a time span as minutes and seconds, with hours where there are any; never below 0."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def optimize(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/NAME.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database that workers share; default: files in the folder."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this folder's run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, as `moa-dspy check` does.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before money is spent.")] = False,
    ask_above: Annotated[
        float, typer.Option(help="On a terminal, ask first if it may cost more usd than this.")
    ] = 1.0,
) -> None:
    """Search for the best mixture, test it, and write program.json and result.json."""
    if dry_run:
        check(study, as_json=as_json)
        return
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if is_terminal and not (yes or resume or as_json):
        _ask_to_go_on(study, ask_above)

    from moa_dspy.optimize.run import work_on

    options: Any = {"out": out, "resume": resume}
    if as_json:
        # Metrics and data readers are the user's: what they print must not end up in the JSON.
        with redirect_stdout(sys.stderr), each_warning_once():
            ended = work_on(study, storage, **options)
        # ASCII: a model's half emoji or another console's encoding must not end the command.
        typer.echo(json.dumps(ended.result.to_json(), allow_nan=False))
        return

    with LiveProgress() as progress, each_warning_once():
        ended = work_on(study, storage, show=progress, **options)
    _show(ended.result, ended.folder)


def check(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask each agent one question, which costs that much.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a study and foretell what it takes; free, and nothing is written.

    Exit code 2 if it cannot run: a fault in the file, a budget that reaches no verdict, or, with
    --probe, an agent that does not answer.
    """
    from moa_dspy.optimize.preflight import check_before

    with redirect_stdout(sys.stderr):
        found = check_before(study, asks=probe)
    if as_json:
        typer.echo(json.dumps(found.to_json(), allow_nan=False))
    else:
        _show_check(found)
    if found.too_small or any(agent.failure for agent in found.agents):
        raise typer.Exit(2)


def _ask_to_go_on(study: Path, ask_above: float) -> None:
    from moa_dspy.optimize.preflight import check_before

    found = check_before(study)
    most = found.most_usd
    if most is None:
        names = ", ".join(found.unpriced)
        typer.echo(f"The price of {names} is unknown, and so is what the study costs.", err=True)
    elif most <= ask_above:
        return
    else:
        typer.echo(f"The study may cost up to {most:.2f} usd.", err=True)
    if not typer.confirm("Go on?", default=False, err=True):
        raise typer.Exit(1)


def _show_check(found: Preflight) -> None:
    rows = ", ".join(f"{n} {name}" for name, n in found.n_rows.items())
    typer.echo(f"{found.name}: {len(found.agents)} agents, {rows} rows")
    _print(_agents_table(found))
    if found.stages:
        _print(_stages_table(found))
    for name, value in found.smallest.items():
        typer.echo(f"smallest budget.{name} that reaches a verdict: {value:,.10g}")
    for name, value in found.too_small.items():
        limit = getattr(found.budget, name)
        typer.echo(
            f"error: `budget.{name}` is {limit:.10g}, but a verdict needs about {value:.10g} at "
            "least. Allow that much, or give fewer rows.",
            err=True,
        )
    for note in found.notes:
        typer.echo(f"note: {note}")
    for agent in found.agents:
        if agent.failure:
            typer.echo(f"error: Agent {agent.name!r} does not answer: {agent.failure}", err=True)


def _agents_table(found: Preflight) -> Any:
    from rich.table import Table

    names = ("agent", "usd per million tokens", "source", "prompt", "reply", "seconds", "says")
    table = Table(*names)
    for agent in found.agents:
        usd, source = price_texts(agent.price)
        low, high = (agent.reply_tokens[level] for level in ("low", "high"))
        seconds = "" if agent.seconds is None else f"{agent.seconds:.2f}"
        table.add_row(
            agent.name,
            usd,
            source,
            f"{agent.prompt_tokens['likely']:,.0f}",
            f"{low:,.0f} to {high:,.0f}",
            seconds,
            agent.reply or "",
        )
    return table


def price_texts(price: Price | None) -> tuple[str, str]:
    """Return a price (prompt / reply) and its source, as tables show them."""
    if price is None:
        return "unknown", "give it in the pool"
    usd = (price.usd_per_million_prompt_tokens, price.usd_per_million_completion_tokens)
    source = {"pool": "pool file", "local": "this machine", "litellm": "LiteLLM's list"}
    shown = "free" if usd == (0, 0) else f"{usd[0]:g} / {usd[1]:g}"
    return shown, source.get(price.source, price.source)


def _stages_table(found: Preflight) -> Any:
    from rich.table import Table

    table = Table("stage", "calls", "usd", "time", show_footer=False)
    for stage in (*found.stages, found.whole):
        costs = [stage.costs[level] for level in ("low", "likely", "high")]
        low, likely, high = costs
        usd = f"{likely.usd:.4f} ({low.usd:.4f} to {high.usd:.4f})"
        table.add_row(
            stage.name,
            _ranged(*(f"{cost.calls:,.0f}" for cost in costs)),
            "unknown" if found.unpriced else usd,
            _ranged(*(clock(cost.seconds) for cost in costs)) if found.is_timed else "unknown",
        )
    return table


def _ranged(low: str, likely: str, high: str) -> str:
    return likely if low == high else f"{likely} ({low} to {high})"


class _Once(logging.Filter):
    """Lets every message of a handler through one time."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is new."""
        key = (record.name, record.getMessage())
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Show what DSPy logs, such as a reply cut at ``max_tokens``, once and not per question."""
    # One filter per handler: each must pass a message on once.
    filters = [(handler, _Once()) for handler in logging.getLogger("dspy").handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)


def _show(result: StudyResult, folder: Path) -> None:
    from moa_dspy.optimize.report import report
    from moa_dspy.optimize.run import RUN_FILES

    _print(report(result))
    for name in RUN_FILES:
        typer.echo(f"wrote {folder / name}")


def _print(shown: Any) -> None:
    from rich.console import Console

    # Rich takes 80 columns where there is no terminal; a log has room for the whole table.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    Console(width=width).print(shown)


def worker(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    storage: Annotated[str, typer.Option(help="URL of the database that all processes share.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results, here too.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Questions at a time; default: the study's.")
    ] = None,
) -> None:
    """Work on a study with others, on any number of machines, until it is finished."""
    from moa_dspy.optimize.run import work_on

    with LiveProgress() as progress, each_warning_once():
        ended = work_on(
            study,
            storage,
            out=out,
            is_helper=True,
            writes_files=out is not None,
            num_threads=threads,
            show=progress,
        )
    typer.echo(f"finished: {ended.result.recommended} is the program; {ended.n_tasks} tasks here")
    typer.echo(f"result: {ended.storage}, written to {ended.place}")
