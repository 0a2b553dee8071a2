"""A layer of a mixture, which can be kept from optimizers and is saved all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dspy
from dspy.predict.parameter import Parameter

SEAT_MODULES: dict[str, Callable[[Any], Any]] = {
    "chain_of_thought": dspy.ChainOfThought,
    "predict": dspy.Predict,
}
"""Names that a study file or a saved program may use for the module of a seat."""


class Layer(dspy.Module):
    """Proposers that see the same input and do not see each other.

    ``is_frozen`` keeps their prompts from DSPy's optimizers and resets, as DSPy keeps a
    compiled sub-module; unlike one, the layer stays part of what DSPy saves and loads.
    """

    def __init__(self, proposers: Sequence[Any]) -> None:
        super().__init__()
        self.proposers = list(proposers)
        self.is_frozen = False

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return every predictor by its name in the layer; a frozen one only as ``Frozen``."""
        found: list[tuple[str, Any]] = super().named_parameters()
        return [(name, Frozen(one)) for name, one in found] if self.is_frozen else found


class Frozen(dspy.Module, Parameter):
    """Stands for a predictor where DSPy saves, loads and sets LMs; optimizers find predictors."""

    def __init__(self, predictor: Any) -> None:
        super().__init__()
        self.predictor = predictor

    @property
    def lm(self) -> Any:
        """The predictor's LM: also the rollouts that a wrapper asks for are those of all seats."""
        return self.predictor.lm

    @lm.setter
    def lm(self, value: Any) -> None:
        self.predictor.lm = value

    def dump_state(self, json_mode: bool = True) -> Any:
        """Return the predictor's own state."""
        return self.predictor.dump_state(json_mode=json_mode)

    def load_state(self, state: Any, *, allow_unsafe_lm_state: bool = False) -> None:
        """Put a saved state into the predictor."""
        self.predictor.load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)

    def reset(self) -> None:
        """Reset the predictor's LM alone: what it was taught is what is frozen."""
        self.predictor.lm = None


def all_predictors(program: Any) -> list[tuple[str, Any]]:
    """Return ``named_predictors`` with the frozen ones among them, each in its place."""
    named = program.named_parameters()
    return [(name, one.predictor if isinstance(one, Frozen) else one) for name, one in named]
