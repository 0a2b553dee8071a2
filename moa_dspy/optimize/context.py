"""What every stage of a search needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moa_dspy.diversity import DiversityMetric
from moa_dspy.optimize.early import EarlyFacts
from moa_dspy.optimize.objectives import Objective
from moa_dspy.optimize.progress import Snapshot, Watcher
from moa_dspy.optimize.prompts import PromptOptions
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.pool import Pool


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
