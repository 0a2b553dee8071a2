"""Who is better, by how much, how sure that is, and what more examples would tell.

Pure statistics on stored scores, one number per example; no call is made here.
"""

from moa_dspy.winrate._ceiling import co_failure, oracle
from moa_dspy.winrate._holm import holm, simultaneous_intervals
from moa_dspy.winrate._intervals import (
    Interval,
    WinRate,
    mean_interval,
    paired_interval,
    win_rate,
)
from moa_dspy.winrate._optimism import selection_optimism
from moa_dspy.winrate._power import examples_needed
from moa_dspy.winrate._preference import preferences
from moa_dspy.winrate._shrinkage import ShrunkMeans, shrunk_means
from moa_dspy.winrate._tests import superiority_p
from moa_dspy.winrate._verdict import Verdict, verdict

__all__ = [
    "Interval",
    "ShrunkMeans",
    "Verdict",
    "WinRate",
    "co_failure",
    "examples_needed",
    "holm",
    "mean_interval",
    "oracle",
    "paired_interval",
    "preferences",
    "selection_optimism",
    "shrunk_means",
    "simultaneous_intervals",
    "superiority_p",
    "verdict",
    "win_rate",
]
