"""What an architecture will score, from what others scored and what its agents do alone."""

from moa_dspy.optimize.response._kernels import Kernels
from moa_dspy.optimize.response._model import Prediction, ResponseModel
from moa_dspy.optimize.response._nodes import nodes_of
from moa_dspy.optimize.response._prices import Forecast, Prices
from moa_dspy.optimize.response._propose import Proposer
from moa_dspy.optimize.response._traits import Traits

__all__ = [
    "Forecast",
    "Kernels",
    "Prediction",
    "Prices",
    "Proposer",
    "ResponseModel",
    "Traits",
    "nodes_of",
]
