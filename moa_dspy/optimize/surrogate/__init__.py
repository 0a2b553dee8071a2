"""The surrogate model: scores of architectures, predicted from what was measured."""

from moa_dspy.optimize.surrogate.acquisition import Acquisition, Forecast, Prices, nodes_of
from moa_dspy.optimize.surrogate.gp import Kernels, Prediction, SurrogateModel, Traits

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
