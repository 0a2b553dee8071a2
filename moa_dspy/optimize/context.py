"""What a running study tells whoever watches."""

# DOCS: optimize/context: What every stage of a search needs to know.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moa_dspy.calls import Budget, Spending
from moa_dspy.diversity import DiversityMetric
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.objectives import Objective
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.pool import Pool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a study at one moment.

    Attributes:
        stage: ``probe``, ``single agents``, ``early facts``, ``search``, ``random baseline``
            or ``test``.
        trial: Architectures measured up to now.
        n_trials: Architectures the search will measure at most.
        current: What is being measured, in text notation.
        best: The best architecture up to now, in text notation.
        best_score: Its mean score on val.
        spending: Calls made and reused, usd, seconds.
        budget: The limits they count against.
        early: What the single agents tell, at the stage ``early facts``.
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


class Watcher(Protocol):
    """Is shown a snapshot at every step; must return fast and not raise."""

    def __call__(self, snapshot: Snapshot, /) -> None:
        """Show it."""
        ...


def silent(snapshot: Snapshot, /) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class StageCounts:
    """How far a finished study got, so that running it again does the same and no more.

    ``phases`` are the trials at the end of each time that it composed, before prompts were tuned.
    """

    trials: int
    random: int
    stopped_by: str | None = None
    phases: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchContext:
    """The options of ``ModelSearch``, checked; see there."""

    pool: Pool
    space: SearchSpace
    objectives: Sequence[Objective]
    diversity: DiversityMetric
    diversity_weight: float
    n_trials: int
    limits: Limits
    random_share: float
    gain: float
    seed: int
    sampler: Any
    watcher: Watcher
    counts: StageCounts | None
    prompts: PromptOptions | None = None

    def show(
        self,
        stage: str,
        *,
        current: str,
        trial: int = 0,
        best: TrialRecord | None = None,
        early: EarlyFacts | None = None,
    ) -> None:
        """Tell the watcher where the study is."""
        ledger = self.pool.calls.ledger
        self.watcher(
            Snapshot(
                stage=stage,
                trial=trial,
                n_trials=self.n_trials,
                current=current,
                best=best.architecture if best else None,
                best_score=best.score if best else None,
                spending=ledger.spending,
                budget=ledger.budget,
                early=early,
            )
        )
