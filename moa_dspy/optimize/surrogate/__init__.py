"""What an architecture will score, from what others scored and what its agents do alone."""

from moa_dspy.optimize.forecast import Forecast, Prices
from moa_dspy.optimize.surrogate.acquisition import Proposer, nodes_of
from moa_dspy.optimize.surrogate.features import Kernels, Traits
from moa_dspy.optimize.surrogate.gp import Prediction, ResponseModel

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
