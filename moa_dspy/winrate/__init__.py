"""Win rates, paired tests, intervals and verdicts: statistics of stored scores, pure.

Scores are one number per example, in dataset order.
"""

from moa_dspy.winrate.bradley_terry import BradleyTerry, bradley_terry, bradley_terry_from_wins
from moa_dspy.winrate.intervals import (
    Interval,
    WinRate,
    co_failure,
    mean_interval,
    oracle,
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
from moa_dspy.winrate.preferences import (
    Agreement,
    PositionConsistency,
    RecordedPreferences,
    consistency_p,
    judge_agreement,
    length_correlation,
    position_consistency,
    preferences,
)
from moa_dspy.winrate.tests import (
    decision_interval,
    examples_needed,
    holm,
    holm_levels,
    non_inferiority_p,
    power_of,
    sign_flip_mid_p,
    simultaneous_intervals,
)
from moa_dspy.winrate.verdict import CostVerdict, Verdict, cost_verdict, cost_verdicts, verdict

__all__ = [
    "Agreement",
    "BradleyTerry",
    "Coefficients",
    "CostVerdict",
    "GamedRows",
    "Interval",
    "LengthControlled",
    "PositionConsistency",
    "RecordedPreferences",
    "Verdict",
    "WinRate",
    "bradley_terry",
    "bradley_terry_from_wins",
    "co_failure",
    "consistency_p",
    "cost_verdict",
    "cost_verdicts",
    "decision_interval",
    "examples_needed",
    "holm",
    "holm_levels",
    "judge_agreement",
    "length_controlled",
    "length_controlled_preference",
    "length_correlation",
    "mean_interval",
    "non_inferiority_p",
    "oracle",
    "paired_interval",
    "position_consistency",
    "power_of",
    "preferences",
    "sign_flip_mid_p",
    "simultaneous_intervals",
    "standardised_length_gaps",
    "verdict",
    "win_rate",
]
