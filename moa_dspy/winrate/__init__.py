"""Who is better, by how much, how sure that is, and what more examples would tell.

Pure statistics on stored scores, one number per example; no call is made here.
"""

from moa_dspy.winrate.bradley_terry import BradleyTerry, bradley_terry, bradley_terry_from_wins
from moa_dspy.winrate.diagnostics import (
    Agreement,
    PositionConsistency,
    co_failure,
    judge_agreement,
    length_correlation,
    oracle,
    position_consistency,
)
from moa_dspy.winrate.intervals import (
    Interval,
    WinRate,
    mean_interval,
    paired_bootstrap,
    paired_interval,
    win_rate,
)
from moa_dspy.winrate.length_control import (
    Coefficients,
    GamedRows,
    LengthControlled,
    length_controlled,
    length_controlled_preference,
    standardised_length_gaps,
)
from moa_dspy.winrate.recorded import RecordedPreferences, preferences
from moa_dspy.winrate.shrinkage import ShrunkMeans, selection_optimism, shrunk_means
from moa_dspy.winrate.tests import (
    examples_needed,
    holm,
    sign_flip_mid_p,
    simultaneous_intervals,
    superiority_p,
)
from moa_dspy.winrate.verdict import Verdict, verdict

__all__ = [
    "Agreement",
    "BradleyTerry",
    "Coefficients",
    "GamedRows",
    "Interval",
    "LengthControlled",
    "PositionConsistency",
    "RecordedPreferences",
    "ShrunkMeans",
    "Verdict",
    "WinRate",
    "bradley_terry",
    "bradley_terry_from_wins",
    "co_failure",
    "examples_needed",
    "holm",
    "judge_agreement",
    "length_controlled",
    "length_controlled_preference",
    "length_correlation",
    "mean_interval",
    "oracle",
    "paired_bootstrap",
    "paired_interval",
    "position_consistency",
    "preferences",
    "selection_optimism",
    "shrunk_means",
    "sign_flip_mid_p",
    "simultaneous_intervals",
    "standardised_length_gaps",
    "superiority_p",
    "verdict",
    "win_rate",
]
