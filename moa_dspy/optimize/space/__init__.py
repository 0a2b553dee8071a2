"""The architectures a study may try, and how Optuna names the choices."""

from moa_dspy.optimize.space._choices import Suggests
from moa_dspy.optimize.space._providers import provider, providers_of
from moa_dspy.optimize.space._reading import ORDERS, OWN_PROMPT
from moa_dspy.optimize.space._space import SearchSpace

__all__ = [
    "ORDERS",
    "OWN_PROMPT",
    "SearchSpace",
    "Suggests",
    "provider",
    "providers_of",
]
