"""What a study may maximise or minimise."""

from collections.abc import Callable

from moa_dspy.optimize.objectives._base import Measured, Objective
from moa_dspy.optimize.objectives._cost import CallsObjective, SecondsObjective, UsdObjective
from moa_dspy.optimize.objectives._diversity import DiversityObjective
from moa_dspy.optimize.objectives._win_rate import ScoreObjective, WinRateObjective

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "calls": CallsObjective,
    "diversity": DiversityObjective,
    "score": ScoreObjective,
    "seconds": SecondsObjective,
    "usd": UsdObjective,
    "win_rate": WinRateObjective,
}
"""Names that a study file may use. Adding a line here is the registration."""

__all__ = [
    "OBJECTIVES",
    "CallsObjective",
    "DiversityObjective",
    "Measured",
    "Objective",
    "ScoreObjective",
    "SecondsObjective",
    "UsdObjective",
    "WinRateObjective",
]
