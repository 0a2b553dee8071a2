"""What an architecture will score, from what others scored and what its agents do alone."""

from moa_dspy.optimize.forecast import Forecast, Prices
from moa_dspy.optimize.surrogate.acquisition import Acquisition, nodes_of
from moa_dspy.optimize.surrogate.features import Kernels, Traits
from moa_dspy.optimize.surrogate.gp import Prediction, SurrogateModel

__all__ = [
    "Acquisition",
    "Forecast",
    "Kernels",
    "Prediction",
    "Prices",
    "SurrogateModel",
    "Traits",
    "nodes_of",
]
