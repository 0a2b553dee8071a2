"""Who is better, by how much, how sure that is, and what more examples would tell.

Pure statistics on stored scores, one number per example; no call is made here.
"""

from moa_dspy.winrate._bootstrap import paired_bootstrap
from moa_dspy.winrate._bradley_terry import (
    BradleyTerry,
    bradley_terry,
    bradley_terry_from_wins,
)
from moa_dspy.winrate._ceiling import co_failure, oracle
from moa_dspy.winrate._diagnostics import (
    Agreement,
    PositionConsistency,
    judge_agreement,
    length_correlation,
    position_consistency,
)
from moa_dspy.winrate._holm import holm, simultaneous_intervals
from moa_dspy.winrate._intervals import (
    Interval,
    WinRate,
    mean_interval,
    paired_interval,
    win_rate,
)
from moa_dspy.winrate._length_controlled import (
    Coefficients,
    GamedRows,
    LengthControlled,
    length_controlled,
    length_controlled_preference,
    standardised_length_gaps,
)
from moa_dspy.winrate._optimism import selection_optimism
from moa_dspy.winrate._power import examples_needed
from moa_dspy.winrate._preference import preferences
from moa_dspy.winrate._recorded import RecordedPreferences
from moa_dspy.winrate._shrinkage import ShrunkMeans, shrunk_means
from moa_dspy.winrate._sign_flips import sign_flip_mid_p
from moa_dspy.winrate._tests import superiority_p
from moa_dspy.winrate._verdict import Verdict, verdict

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
