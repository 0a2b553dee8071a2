"""The architectures that a study may try, and the Optuna parameters of their choices."""

from moa_dspy.optimize.space.programs import ProgramArchitecture, ProgramSpace
from moa_dspy.optimize.space.rules import ORDERS, OWN_PROMPT, Suggests, provider, providers_of
from moa_dspy.optimize.space.space import SearchSpace

__all__ = [
    "ORDERS",
    "OWN_PROMPT",
    "ProgramArchitecture",
    "ProgramSpace",
    "SearchSpace",
    "Suggests",
    "provider",
    "providers_of",
]
