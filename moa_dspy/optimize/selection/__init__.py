"""From what was measured on val to one pick, and what it will score on new rows."""

from moa_dspy.optimize.selection._best import admitted, best_on_val
from moa_dspy.optimize.selection._choice import Choice, Option, choose
from moa_dspy.optimize.selection._crossfit import expected_score
from moa_dspy.optimize.selection._evidence import Evidence, Measured, Scores, Shrink
from moa_dspy.optimize.selection._keys import settled
from moa_dspy.optimize.selection._limits import Limits
from moa_dspy.optimize.selection._paired import paired

__all__ = [
    "Choice",
    "Evidence",
    "Limits",
    "Measured",
    "Option",
    "Scores",
    "Shrink",
    "admitted",
    "best_on_val",
    "choose",
    "expected_score",
    "paired",
    "settled",
]
