from __future__ import annotations

from collections.abc import Sequence

from moa_dspy.errors import StudyError
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection._limits import Limits


def admitted(trials: Sequence[TrialRecord], limits: Limits) -> list[TrialRecord]:
    """Return the trials that may be picked: measured on all rows, and within the limits.

    Raises:
        StudyError: If there is none.
    """
    fair = [trial for trial in trials if not trial.is_stopped_early and limits.admit(trial)]
    if not fair:
        raise StudyError(f"No architecture stays within {limits}; even single agents go beyond.")
    return fair


def best_on_val(
    trials: Sequence[TrialRecord], *, limits: Limits | None = None, diversity_weight: float = 0.0
) -> TrialRecord:
    """Return the trial with the highest win rate; ties go to fewer calls, then less money.

    This is how a random search chooses, and a rival does: what was luckiest on val wins.

    Raises:
        StudyError: If no trial stays within the limits.
    """
    return min(
        admitted(trials, limits or Limits()),
        key=lambda t: (
            -round(t.win_rate + diversity_weight * t.diversity, 12),
            t.calls,
            t.usd,
            t.architecture,
        ),
    )
