"""How much of the references an agent may read, and what was cut to keep to it."""

from moa_dspy.references._fit import fit, fitted
from moa_dspy.references._limits import Cut, ReferenceLimits
from moa_dspy.references._prompt import built_tokens
from moa_dspy.references._tokens import count_tokens

__all__ = ["Cut", "ReferenceLimits", "built_tokens", "count_tokens", "fit", "fitted"]
