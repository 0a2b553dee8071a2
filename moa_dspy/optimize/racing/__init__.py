"""Who may stop early: races with one error for all of them, and the referee that runs them."""

from moa_dspy.optimize.racing._blocks import balanced_order, looks
from moa_dspy.optimize.racing._dominance import Standing, is_dominated
from moa_dspy.optimize.racing._race import Race
from moa_dspy.optimize.racing._referee import Referee

__all__ = [
    "Race",
    "Referee",
    "Standing",
    "balanced_order",
    "is_dominated",
    "looks",
]
