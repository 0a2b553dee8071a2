"""A result as text."""

from moa_dspy.optimize.report._facts import early_lines, facts
from moa_dspy.optimize.report._numbers import amount, duration, points
from moa_dspy.optimize.report._report import fitting, report, report_text

__all__ = [
    "amount",
    "duration",
    "early_lines",
    "facts",
    "fitting",
    "points",
    "report",
    "report_text",
]
