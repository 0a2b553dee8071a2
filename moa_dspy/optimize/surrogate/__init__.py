"""The surrogate model, which predicts scores of architectures from measured ones."""

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
