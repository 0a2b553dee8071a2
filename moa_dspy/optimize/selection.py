"""From measured trials to one pick, and how much the picking flatters it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.winrate import selection_optimism


@dataclass(frozen=True, slots=True)
class Limits:
    """What a question may cost at most; None is no limit. A pick never goes beyond."""

    calls: float | None = None
    usd: float | None = None
    seconds: float | None = None

    def admit(self, trial: TrialRecord) -> bool:
        """Whether the trial stays within every limit."""
        pairs = ((self.calls, trial.calls), (self.usd, trial.usd), (self.seconds, trial.seconds))
        return all(limit is None or value <= limit for limit, value in pairs)


def pick(
    trials: Sequence[TrialRecord], *, limits: Limits | None = None, diversity_weight: float = 0.0
) -> TrialRecord:
    """Return the trial with the highest win rate; ties go to fewer calls, then less money.

    Only trials measured on all rows take part. ``diversity_weight`` is how much win
    rate a user gives away for a point of diversity: 0 unless the user says so.

    Raises:
        StudyError: If no trial stays within the limits.
    """
    fair = [t for t in trials if not t.is_stopped_early and (limits or Limits()).admit(t)]
    if not fair:
        raise StudyError(f"No architecture stays within {limits}; even single agents go beyond.")
    return min(
        fair,
        key=lambda t: (
            -round(t.win_rate + diversity_weight * t.diversity, 12),
            t.calls,
            t.usd,
            t.architecture,
        ),
    )


def optimism(
    scores: Sequence[tuple[Architecture, Sequence[float]]], *, seed: int, n_repeats: int = 200
) -> float:
    """Estimate by how much the best of these scores flatters itself; costs no call.

    Examples are resampled, the best architecture is chosen again on each resample
    and judged on the examples left out: the optimism of the whole choice. 0 where
    there is no choice, or a single example, of which nothing can be left out.
    """
    if len(scores) < 2 or len(scores[0][1]) < 2:
        return 0.0
    # The fewest calls first: argmax takes the first of equals, as the pick does.
    ordered = sorted(scores, key=lambda pair: (pair[0].calls, str(pair[0])))
    matrix = np.array([values for _, values in ordered], dtype=np.float64)
    return selection_optimism(matrix, n_repeats=n_repeats, seed=seed)
