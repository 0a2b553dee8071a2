"""The display of a running search: live in a terminal or notebook, lines in a log.

It is drawn from the last snapshot and from the table of calls, which changes between snapshots.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from textwrap import wrap
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TextIO, TypeAlias

from moa_dspy.calls.scope import CallCount
from moa_dspy.optimize.progress import (
    SearchView,
    ShowSnapshot,
    Snapshot,
    StageState,
    silent,
    sum_of,
)
from moa_dspy.optimize.report import amount, early_lines
from moa_dspy.winrate.intervals import points

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.table import Table

Mode: TypeAlias = Literal["live", "notebook", "lines", "none"]
EVERY: Final = 10
"""Trials between plain lines; there is also a line at every change of stage."""
SILENCE_SECONDS: Final = 60.0
"""Longest time without a plain line, so that a log shows the wait for a slow model."""
_REFRESH_SECONDS: Final = 1.0
"""Time between frames; a frame takes some 20 ms, which is 2 % of a processor."""
_FEWEST_LEADERS: Final = 3
_ROOM_FOR_FACTS: Final = 8
"""Minimum lines of leaderboard and agents for which all facts of the agents are shown."""


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours if there are any; at least 0."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitting_mode(stream: TextIO) -> Mode:
    """Return the mode for the stream: in a notebook's kernel, a terminal, or anything else."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and getattr(shell, "kernel", None) is not None:
        return "notebook"
    return "live" if stream.isatty() else "lines"


def lines(view: SearchView) -> Iterator[str]:
    """Yield the current stage, best so far, spending, time and pending requests."""
    snapshot, current = view.snapshot, view.current_stage()
    if snapshot is None or current is None:
        return
    stage, seconds = current
    trials = f", trial {snapshot.trial}/{snapshot.n_trials}" if _has_trials(snapshot) else ""
    yield f"{snapshot.stage}{trials}{_pace(stage, seconds)}"
    if snapshot.best is not None and snapshot.best_score is not None:
        yield f"best {points(snapshot.best_score)} %: {snapshot.best}"
    yield spent_line(view)
    yield time_line(view)
    if waiting := waited_for(snapshot):
        yield f"waiting for {waiting}"


def _has_trials(snapshot: Snapshot) -> bool:
    return snapshot.n_trials > 0 and snapshot.stage in ("search", "prompts", "random baseline")


def _pace(stage: StageState, seconds: float) -> str:
    left = stage.left_seconds(seconds)
    return "" if left is None else f", {100 * stage.share:.0f} %, about {clock(left)} left"


def spent_line(view: SearchView) -> str:
    """Return calls and usd against the budget."""
    spent = view.spending
    budget = None if view.snapshot is None else view.snapshot.budget
    of_calls = "" if budget is None or budget.calls is None else f" of {budget.calls:,}"
    of_usd = "" if budget is None or budget.usd is None else f" of {budget.usd:g}"
    tokens = "" if budget is None or budget.tokens is None else f", {_tokens(view)} tokens"
    left = view.left("calls")
    to_come = "" if left is None else f", about {left:,.0f} to come"
    calls = f"{spent.made:,}{of_calls} calls made{to_come}, {spent.reused:,} reused"
    return f"{calls}, {amount(spent.usd)}{of_usd} usd{tokens}"


def _tokens(view: SearchView) -> str:
    limit = view.snapshot.budget.tokens if view.snapshot else None
    return f"{view.spending.tokens:,} of {limit:,}"


def time_line(view: SearchView) -> str:
    """Return the elapsed time, the remaining time, and its maximum under a budget."""
    limit = None if view.snapshot is None else view.snapshot.budget.seconds
    seconds = view.left("seconds")
    left = "" if seconds is None else f", about {clock(seconds)} left in all"
    most = "" if limit is None else f", at most {clock(limit - view.spending.seconds)} left"
    return f"{clock(view.elapsed_seconds)} elapsed{left}{most}"


def waited_for(snapshot: Snapshot) -> str:
    """Return the agents with pending requests, longest wait first."""
    waits = sorted(snapshot.table.waiting().items(), key=lambda item: -item[1][1])
    return ", ".join(f"{agent} ({_waiting(n, seconds)})" for agent, (n, seconds) in waits)


def _waiting(n: int, seconds: float) -> str:
    return clock(seconds) if n == 1 else f"{n} calls, {clock(seconds)}"


def trial_line(snapshot: Snapshot) -> str | None:
    """Return the trial that was finished last, in one line."""
    if (last := snapshot.last) is None:
        return None
    stopped = ", stopped early" if last.is_stopped_early else ""
    return (
        f"trial {last.number + 1} ({last.origin}): {points(last.score)} % on {last.rows:,} "
        f"questions{stopped}: {last.architecture}"
    )


@dataclass(frozen=True, slots=True)
class ViewFrame:
    """Draws a view with rich, within the available height.

    Attributes:
        view: The view to draw.
        is_verbose: Whether all agents and leaders are shown, as far as there is room.
    """

    view: SearchView
    is_verbose: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield stages, leaderboard, agents and the current work."""
        from rich.text import Text

        view, snapshot = self.view, self.view.snapshot
        if snapshot is None:
            yield Text("starting")
            return
        stages = view.shown_stages()
        facts = () if view.early is None else tuple(early_lines(view.early))
        early = [wrap(line, options.max_width) for line in facts]
        # The last of these lines, the estimate, is shown in any terminal.
        height = (options.height or console.size.height) - len(stages) - 11
        fact_lines = list(chain(*early))
        if height - len(fact_lines) < _ROOM_FOR_FACTS:
            fact_lines = early[-1] if early else []
        room = height - len(fact_lines)
        counts = snapshot.table.by_agent()
        n_agents = len(counts) if self.is_verbose else min(len(counts), max(3, room // 2))
        n_leaders = max(_FEWEST_LEADERS, min(room - n_agents, 10 if self.is_verbose else 5))
        yield _stage_table(stages, snapshot.stage)
        if snapshot.leaders:
            yield Text("")
            yield _leader_table(snapshot, n_leaders, options.max_width)
        if counts:
            yield Text("")
            yield _agent_table(snapshot, counts, n_agents, options.max_width)
        yield Text("")
        for part in (fact_lines, [""] if fact_lines else [], self._last_lines()):
            yield from (Text(line, no_wrap=True, overflow="ellipsis") for line in part)

    def _last_lines(self) -> Iterator[str]:
        view, snapshot = self.view, self.view.snapshot
        if snapshot is not None and snapshot.current:
            yield f"now: {snapshot.current}"
        yield f"{spent_line(view)}; {time_line(view)}"


def _stage_table(stages: Sequence[tuple[StageState, float | None]], current: str) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for stage, seconds in stages:
        is_now, work = stage.name == current, stage.work
        style = "bold" if is_now else "dim" if seconds is None else ""
        mark = ">" if is_now else " " if seconds is None else "*"
        is_known = work.total is not None or seconds is None or stage.is_over
        share = 1.0 if stage.is_over else stage.share
        bar = ProgressBar(
            total=1.0 if is_known else None, completed=share, width=24, complete_style="cyan"
        )
        done = "" if not work.total else f"{int(stage.done):,} of {int(work.total):,} {work.unit}"
        left = None if seconds is None or not is_now else stage.left_seconds(seconds)
        times = ["" if seconds is None else clock(seconds)]
        times += [] if left is None else [f"about {clock(left)} left"]
        cells = (f"{mark} {stage.name}", bar, done, ", ".join(times))
        table.add_row(
            *(Text(cell, style=style) if isinstance(cell, str) else cell for cell in cells)
        )
    return table


_NAME_WIDTH: Final = 16
"""Columns of a terminal that an agent or architecture gets before a number is left out."""


def _plain_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, least: Sequence[str]
) -> Table:
    """Return a table whose heads are all whole: what does not fit is left out, ``least`` first."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    columns = zip(heads, *rows, strict=True)
    name_size, *sizes = (max(map(cell_len, column)) for column in columns)
    taken = {head: size + 2 for head, size in zip(heads[1:], sizes, strict=True)}
    for head in least:
        if _NAME_WIDTH + sum(taken.values()) > width:
            del taken[head]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    room = max(1, width - sum(taken.values()))
    table.add_column(heads[0], no_wrap=True, overflow="ellipsis", width=min(name_size, room))
    shown = [heads[0], *taken]
    for head in taken:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[heads.index(head)]) for head in shown))
    return table


def _leader_table(snapshot: Snapshot, n: int, width: int) -> Table:
    rows = []
    for leader in snapshot.leaders[:n]:
        usd = "unknown" if leader.usd is None else amount(1000 * leader.usd)
        numbers = (points(leader.score), f"{leader.rows:,}", f"{leader.calls:.1f}", usd)
        rows.append((leader.architecture, *numbers))
    heads = ("leaderboard", "val %", "questions", "calls", "usd/1,000")
    table = _plain_table(heads, rows, width, least=("calls", "questions", "usd/1,000"))
    table.rows[0].style = "bold"
    return table


def _agent_table(snapshot: Snapshot, counts: dict[str, CallCount], n: int, width: int) -> Table:
    waiting = snapshot.table.waiting()
    busiest = sorted(counts, key=lambda name: (name not in waiting, -counts[name].made))
    shown = [name for name in counts if name in busiest[:n]]
    named = [(name, counts[name]) for name in shown]
    if rest := [counts[name] for name in counts if name not in shown]:
        named.append((f"{len(rest)} more", sum_of(rest)))
    rows = []
    for name, count in named:
        numbers = (f"{count.made:,}", f"{count.reused:,}", f"{count.failed:,}", f"{count.tokens:,}")
        wait = _waiting(*waiting[name]) if name in waiting else ""
        rows.append((name, *numbers, amount(count.usd), wait))
    heads = ("agent", "made", "reused", "failed", "tokens", "usd", "waiting for")
    return _plain_table(heads, rows, width, least=("tokens", "reused", "usd", "failed"))


class LiveProgress:
    """A progress display that is drawn inside ``with``; a live one is removed at its end.

    Args:
        stream: Default: standard error.
        mode: Default: see ``fitting_mode``. ``live`` redraws a view, ``notebook`` does so in a
            cell's output, ``lines`` writes a line per stage and per ``EVERY`` trials, and at
            least one every minute; ``none`` shows nothing.
        is_verbose: Whether every trial gets a line, or a live view all agents.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        mode: Mode | None = None,
        is_verbose: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._mode: Mode = fitting_mode(self._stream) if mode is None else mode
        self._is_verbose, self._now = is_verbose, now
        self.view = SearchView(now)
        self._last_line: tuple[str, int] | None = None
        self._printed = now()
        self._display: Any = None
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._mode == "live":
            from rich.console import Console
            from rich.live import Live

            console, frame = Console(file=self._stream, force_terminal=True), self.frame
            self._display = Live(
                frame, console=console, transient=True, refresh_per_second=1 / _REFRESH_SECONDS
            )
            self._display.start()
        elif self._mode != "none":
            threading.Thread(target=self._repeat, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._mode == "live":
            self._display.stop()
        elif self._mode == "notebook":
            self._update()

    @property
    def show(self) -> ShowSnapshot:
        """The callback for a search: this display, or a function that shows nothing."""
        return silent if self._mode == "none" else self

    @property
    def frame(self) -> ViewFrame:
        """The text that a live display draws."""
        return ViewFrame(self.view, self._is_verbose)

    def __call__(self, snapshot: Snapshot, /) -> None:
        """Show ``snapshot``; a live view draws it with its next frame."""
        self.view.take(snapshot)
        if self._mode != "lines":
            return
        if self._is_verbose and (line := trial_line(snapshot)) is not None:
            self._print(line)
        now = (snapshot.stage, snapshot.trial // EVERY)
        if now != self._last_line:
            self._last_line = now
            self._print("; ".join(lines(self.view)))
            for line in () if snapshot.early is None else early_lines(snapshot.early):
                self._print(line)

    def _print(self, line: str) -> None:
        # A closed pipe (`2>&1 | head`) must not end a study.
        with suppress(OSError, ValueError), self._lock:
            self._printed = self._now()
            print(line, file=self._stream, flush=True)

    def _repeat(self) -> None:
        while not self._ended.wait(_REFRESH_SECONDS):
            if self._mode == "notebook":
                self._update()
            else:
                self.beat()

    def beat(self) -> None:
        """Write a line if there was none for a minute."""
        if self.view.snapshot is not None and self._now() - self._printed >= SILENCE_SECONDS:
            self._print("; ".join(lines(self.view)))

    def _update(self) -> None:
        from IPython.display import (  # pyright: ignore[reportMissingImports]
            HTML,
            display,
        )

        shown = HTML(frame_html(self.frame))
        # The last update may come while the thread makes the display.
        with self._lock:
            if self._display is None:
                self._display = display(shown, display_id=True)
            else:
                self._display.update(shown)


def printed_text(shown: ConsoleRenderable, *, width: int = 100, height: int = 40) -> str:
    """Return the output of rich as plain text, without trailing spaces."""
    from rich.console import Console

    console = Console(
        file=StringIO(), width=width, height=height, color_system=None, force_jupyter=False
    )
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def frame_html(frame: ViewFrame, *, width: int = 100, height: int = 50) -> str:
    """Return a frame as HTML, for the output of a notebook's cell."""
    from rich.console import Console

    # In a notebook rich would otherwise show each print as a separate output.
    console = Console(file=StringIO(), width=width, height=height, record=True, force_jupyter=False)
    console.print(frame)
    block = '<pre style="line-height:1.2;font-family:monospace">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=block)
