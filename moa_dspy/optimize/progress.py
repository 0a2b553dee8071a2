"""The progress of a running search: snapshots of it, and the state that a display draws."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget, Ledger, Spending
from moa_dspy.calls.scope import CallCount, CallTable
from moa_dspy.errors import StudyError
from moa_dspy.files import appending
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.result import TrialRecord

_logger = logging.getLogger(__name__)

SEARCH_STAGES: Final = (
    "probe",
    "single agents",
    "early facts",
    "search",
    "prompts",
    "random baseline",
    "expected score",
    "test",
)
"""The stages of a search, in order; ``search`` and ``prompts`` may alternate."""
N_LEADERS: Final = 10
"""Number of architectures on a leaderboard."""
_IN_FLIGHT: Final = 8
"""Assumed number of answers whose calls are counted although the answers are not scored yet."""


@dataclass(frozen=True, slots=True)
class Leader:
    """An architecture of the leaderboard: its mean score on val and the cost of a question."""

    architecture: str
    score: float
    calls: float
    usd: float | None
    rows: int

    @classmethod
    def of(cls, record: TrialRecord) -> Leader:
        """Return the line of a measured architecture."""
        return cls(record.architecture, record.score, record.calls, record.usd, record.rows)


@dataclass(frozen=True, slots=True)
class StageWork:
    """The work of a stage or of its current step, as far as it is known.

    Attributes:
        total: Number of units of the stage: trials if ``unit`` is ``trials``, else scored
            answers; None if unknown.
        unit: ``trials`` or ``answers``.
        rows: Questions of the current trial.
        calls: Calls per answer of the current architecture.
    """

    total: float | None = None
    unit: str = "answers"
    rows: int = 0
    calls: float = 1.0

    @classmethod
    def of_unknown(
        cls,
        knows: Callable[[Architecture, Sequence[Any]], bool],
        work: Iterable[tuple[Iterable[Architecture], Sequence[Any]]],
    ) -> StageWork:
        """Return the work of the architectures' answers that are not known yet."""
        parts = (
            (architecture, row) for every, rows in work for architecture in every for row in rows
        )
        return cls(sum(not knows(architecture, [row]) for architecture, row in parts))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a search at one moment.

    Attributes:
        stage: One of ``SEARCH_STAGES``, or the activity of a process that is not coordinator.
        trial: Number of architectures measured so far.
        n_trials: Maximum number of architectures that the search measures.
        current: The architecture or agent that is measured now, in text notation.
        best: The best architecture so far, in text notation.
        best_score: Its mean score on val.
        spending: Calls made and reused, usd, seconds.
        budget: The limits of the spending.
        early: Facts of the single agents, at the stage ``early facts``.
        leaders: The best architectures on all rows of val so far, best first.
        last: The trial that was finished last.
        work: Work of the stage.
        table: Counts of the calls of this process, which change between snapshots.
    """

    stage: str
    trial: int
    n_trials: int
    current: str
    best: str | None
    best_score: float | None
    spending: Spending
    budget: Budget
    early: EarlyFacts | None = None
    leaders: tuple[Leader, ...] = ()
    last: TrialRecord | None = None
    work: StageWork = StageWork()
    table: CallTable = field(default_factory=CallTable, compare=False)


ShowSnapshot: TypeAlias = Callable[[Snapshot], None]
"""Receives a snapshot at every step; it must return fast and not raise."""


def silent(snapshot: Snapshot, /) -> None:
    """Show nothing."""


@dataclass(slots=True)
class Progress:
    """Makes the snapshots of one search.

    Attributes:
        show_snapshot: Receives each snapshot.
        ledger: The ledger of the search's spending.
        n_trials: Maximum number of architectures that the search measures.
        table: Counts the calls by stage; its current stage is set here.
        admits: Whether a trial may be picked, and so be on the leaderboard.
        log: The file for the output of prompt optimizers; None means the logger of this module.
        leaders: The leaderboard, best first.
    """

    show_snapshot: ShowSnapshot
    ledger: Ledger
    n_trials: int
    table: CallTable = field(default_factory=CallTable)
    admits: Callable[[TrialRecord], bool] = lambda record: True
    log: Path | None = None
    leaders: tuple[Leader, ...] = ()

    def show(
        self,
        stage: str,
        *,
        current: str = "",
        trial: int = 0,
        best: TrialRecord | None = None,
        early: EarlyFacts | None = None,
        last: TrialRecord | None = None,
        work: StageWork | None = None,
    ) -> None:
        """Show the state of the search; see ``Snapshot`` for the arguments."""
        self.table.stage = stage
        if self.show_snapshot is silent:
            return
        if last is not None and not last.is_stopped_early and self.admits(last):
            self.lead(Leader.of(last))
        self.show_snapshot(
            Snapshot(
                stage=stage,
                trial=trial,
                n_trials=self.n_trials,
                current=current,
                best=best.architecture if best else None,
                best_score=best.score if best else None,
                spending=self.ledger.spending,
                budget=self.ledger.budget,
                early=early,
                leaders=self.leaders,
                last=last,
                work=work or StageWork(),
                table=self.table,
            )
        )

    @contextmanager
    def optimizer_output(self) -> Iterator[None]:
        """Redirect the output and log records of prompt optimizers away from the display.

        Raises:
            StudyError: If the log cannot be written; at the end, as optimizers suppress errors.
        """
        if self.show_snapshot is silent and self.log is None:
            yield
            return
        hint, log = " Every answer up to now is kept; the same command goes on.", self.log
        opened = _LogLines() if log is None else appending(log, error=StudyError, hint=hint)
        with opened as out, redirect_stdout(out), redirect_stderr(out):
            yield

    def lead(self, leader: Leader) -> None:
        """Put an architecture on the leaderboard, replacing its earlier entry."""
        others = [other for other in self.leaders if other.architecture != leader.architecture]
        # The sort is stable: ties go to the earlier architecture.
        ranked = sorted((*others, leader), key=lambda other: -other.score)
        self.leaders = tuple(ranked[:N_LEADERS])


class _LogLines(StringIO):
    """A text file whose lines are log records."""

    def write(self, text: str, /) -> int:
        for line in text.splitlines():
            if line.strip():
                _logger.info("%s", line.rstrip())
        return len(text)


@dataclass(slots=True)
class StageState:
    """One stage of the display.

    Attributes:
        name: Name of the stage.
        work: As far as it is known.
        seconds: Duration until its last pause.
        made: Number of calls until then.
        share: Share of the work done so far, in [0, 1]; it never decreases.
        done: Number of units done.
        is_over: Whether a later stage has begun.
    """

    name: str
    work: StageWork = field(default_factory=StageWork)
    seconds: float = 0.0
    made: int = 0
    share: float = 0.0
    done: float = 0.0
    is_over: bool = False

    def left_seconds(self, seconds: float) -> float | None:
        """Return the remaining time at the pace so far; None if too little is done to tell."""
        if self.share < 0.02 or seconds < 1:
            return None
        return seconds * (1 - self.share) / self.share


@dataclass(slots=True)
class SearchView:
    """The state of a search as a display shows it.

    Attributes:
        now: The clock, in seconds.
        snapshot: The last snapshot.
        stages: Stages that have begun, in order.
        early: Facts of the single agents, once they are known.
    """

    now: Callable[[], float] = time.monotonic
    snapshot: Snapshot | None = None
    stages: dict[str, StageState] = field(default_factory=dict)
    early: EarlyFacts | None = None
    _begun: float = field(init=False)
    _taken: float = 0.0
    _entered: float = 0.0
    _entered_made: int = 0
    _rows: int = 0
    _calls: int = 0
    _count: CallCount = field(default_factory=CallCount)

    def __post_init__(self) -> None:
        self._begun = self.now()

    def take(self, snapshot: Snapshot) -> None:
        """Update the state with a snapshot."""
        before = self.snapshot
        if before is None or snapshot.stage != before.stage:
            self._enter(snapshot.stage, snapshot.spending.made)
        stage, table = self.stages[snapshot.stage], snapshot.table
        if snapshot.work.total is not None:
            stage.work = snapshot.work
        if snapshot.early is not None:
            self.early = snapshot.early
        self._count = sum_of(table.by_agent().values())
        self._rows, self._calls = table.rows.get(stage.name, 0), table.n_calls(stage.name)
        self.snapshot, self._taken = snapshot, self.now()

    def _enter(self, name: str, n_made: int) -> None:
        if (current := self.current_stage()) is not None:
            left, _ = current
            left.seconds += self.now() - self._entered
            left.made += n_made - self._entered_made
            left.is_over = True
        self._entered, self._entered_made = self.now(), n_made
        self.stages.setdefault(name, StageState(name)).is_over = False

    @property
    def elapsed_seconds(self) -> float:
        """Time since the display began, or since the budget's clock started, if that is longer.

        The budget's clock runs from the first paid call, also across a resume, never in a replay.
        """
        spent = Spending() if self.snapshot is None else self.snapshot.spending
        since = self.now() - self._taken
        return max(spent.seconds + since if spent.seconds else 0.0, self.now() - self._begun)

    @property
    def spending(self) -> Spending:
        """The spending so far: that of the snapshot, plus that of this process since then."""
        if self.snapshot is None:
            return Spending()
        s, count = self.snapshot.spending, sum_of(self.snapshot.table.by_agent().values())
        return Spending(
            s.made + count.made - self._count.made,
            s.reused + count.reused - self._count.reused,
            s.tokens + count.tokens - self._count.tokens,
            s.usd + count.usd - self._count.usd,
            s.seconds + (self.now() - self._taken if s.seconds else 0.0),
        )

    def current_stage(self) -> tuple[StageState, float] | None:
        """Return the current stage, with its share of work updated, and its seconds."""
        if self.snapshot is None:
            return None
        stage = self.stages[self.snapshot.stage]
        total, stage.done = stage.work.total, max(stage.done, self._done(stage))
        if total:
            stage.done = min(stage.done, total)
            stage.share = max(stage.share, stage.done / total)
        return stage, stage.seconds + self.now() - self._entered

    def left(self, unit: Literal["calls", "seconds"]) -> float | None:
        """Return the remaining calls or seconds of the whole search; None while unknown.

        It is the forecast made after the single agents, times the ratio of actual to forecast.
        """
        estimate, current = (
            None if self.early is None else self.early.estimate,
            self.current_stage(),
        )
        if estimate is None or estimate.capped_by is not None or current is None:
            return None
        (now, seconds), n_made = current, self.spending.made - self._entered_made
        to_come: dict[str, float] = {n: getattr(cost, unit) for n, cost in estimate.stages.items()}
        singles = self.stages.get("single agents")
        # If the single agents' answers were stored, future answers may be stored as well.
        if now.name == "early facts" or not to_come or singles is None or not singles.made:
            return None
        to_come.pop("single agents", None)
        if unit == "calls" and now.name not in ("search", "prompts"):
            self._settle_search(to_come)
        taken = foretold = going = 0.0
        for name in [name for name in to_come if name in self.stages]:
            state, is_now = self.stages[name], name == now.name
            took = state.made + n_made * is_now if unit == "calls" else state.seconds
            took = seconds if is_now and unit == "seconds" else took
            # Search and prompts alternate, so the search is not over during prompts.
            if not is_now and (now.name, name) != ("prompts", "search"):
                taken, foretold = taken + took, foretold + to_come.pop(name)
                continue
            # Early trials make more calls than later ones, which find more answers stored.
            to_come[name] *= 1 - state.share
            going = max(going, took * (1 - state.share)) if unit == "calls" else going
        # The ratio is shrunk towards 1, as it is unreliable when little is done.
        few = 0.1 * sum(to_come.values())
        pace = (taken + few) / (foretold + few) if foretold + few else 1.0
        left, own = pace * to_come.pop(now.name, 0.0), now.left_seconds(seconds)
        left = max(left, going) if unit == "calls" or own is None else own
        return left + pace * sum(to_come.values())

    def _settle_search(self, foretold: dict[str, float]) -> None:
        """Move calls foretold for the random baseline to the search, as far as it made more.

        Both measure architectures of one space, and what one has asked the other finds stored.
        """
        took, baseline = self.stages.get("search"), foretold.get("random baseline", 0.0)
        if took is not None and "search" in foretold:
            moved = min(max(0.0, took.made - foretold["search"]), baseline)
            foretold["search"] += moved
            foretold["random baseline"] = baseline - moved

    def _done(self, stage: StageState) -> float:
        snapshot = self.snapshot
        assert snapshot is not None  # checked by the caller
        rows, calls = snapshot.table.rows.get(stage.name, 0), snapshot.table.n_calls(stage.name)
        if stage.work.unit != "trials":
            by_calls = calls / max(1.0, _calls_of(snapshot.current))
            return max(rows, min(by_calls, rows + _IN_FLIGHT * (1 - 1e-6)))
        work = stage.work
        if not work.rows:
            return snapshot.trial
        rows, calls = rows - self._rows, calls - self._calls
        by_calls = calls / max(1.0, work.calls)
        part = max(rows, min(by_calls, rows + _IN_FLIGHT)) / work.rows
        return snapshot.trial + min(part, 1.0)

    def shown_stages(self) -> list[tuple[StageState, float | None]]:
        """Return the stages with their seconds; None for those that are still to come."""
        current = self.current_stage()
        stages: list[tuple[StageState, float | None]] = []
        names = [*SEARCH_STAGES, *(name for name in self.stages if name not in SEARCH_STAGES)]
        for name in names:
            if (state := self.stages.get(name)) is None:
                # ``prompts`` is optional, and the other stages are shown once they begin.
                is_coming = name in ("single agents", "search", "random baseline", "test")
                stages += [(StageState(name), None)] if is_coming else []
            elif name != "early facts":
                is_now = current is not None and state is current[0]
                stages.append((state, current[1] if current and is_now else state.seconds))
        return stages


def sum_of(counts: Iterable[CallCount]) -> CallCount:
    """Return the sums of several counts."""
    total = CallCount()
    for count in counts:
        total.add(count)
    return total


def _calls_of(current: str) -> float:
    """Return the calls per answer of ``NAME: ARCHITECTURE``; 1 for any other text."""
    try:
        return Architecture.parse(current.rpartition(": ")[2]).calls
    except ValueError:
        return 1
