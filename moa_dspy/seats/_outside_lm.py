"""LMs that somebody set on the predictors of a seat: DSPy would ask these, not the agent."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

import dspy

Trace: TypeAlias = list[tuple[Any, Any, Any]]
"""DSPy's trace: predictor, inputs, prediction."""


def outside_lms(module: Any) -> list[Any]:
    """Return the LMs that ``set_lm`` or an optimizer left on the module's predictors."""
    leaves = [module] if isinstance(module, dspy.Predict) else _leaves(module)
    return [leaf.lm for leaf in leaves if getattr(leaf, "lm", None) is not None]


def rollout(lms: Sequence[Any]) -> int | None:
    """Return the ``rollout_id`` that DSPy asks for: of these LMs, else of the one in settings."""
    for lm in [*lms, dspy.settings.lm]:
        number: int | None = getattr(lm, "kwargs", {}).get("rollout_id")
        if number is not None:
            return number
    return None


def without_lms(module: Any, lms: Sequence[Any]) -> Any:
    """Return a copy of ``module`` whose predictors have no LM of their own."""
    # An object that is in the memo is not copied but replaced, here by no LM.
    memo: dict[int, Any] = {id(lm): None for lm in lms}
    return copy.deepcopy(module, memo)


def renamed(trace: Trace, made_by: Any, stands_for: Any) -> Trace:
    """Return the trace of a copy as the trace of its original, which optimizers look for."""
    if made_by is stands_for:
        return trace
    originals = {id(c): o for c, o in zip(_leaves(made_by), _leaves(stands_for), strict=True)}
    return [(originals.get(id(who), who), inputs, output) for who, inputs, output in trace]


def _leaves(module: Any) -> list[Any]:
    return [module] if isinstance(module, dspy.Predict) else list(module.predictors())
