"""What the single agents tell before more money is spent."""

from moa_dspy.optimize.early._ceiling import vote_ceiling
from moa_dspy.optimize.early._facts import EarlyFacts, Estimate, early_facts
from moa_dspy.optimize.early._forecast import forecast

__all__ = [
    "EarlyFacts",
    "Estimate",
    "early_facts",
    "forecast",
    "vote_ceiling",
]
