"""The display of a running study on standard error: a live view, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from moa_dspy.optimize.progress import Snapshot
from moa_dspy.optimize.report import early_lines

if TYPE_CHECKING:
    from rich.console import RenderableType


EVERY = 10
"""Plain lines come with every change of stage and every so many trials."""


class LiveProgress:
    """Takes snapshots inside ``with``: it draws inside ``with`` and leaves nothing behind.

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
