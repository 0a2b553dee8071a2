"""Layers of proposers, and what DSPy saves, loads and optimizes of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import dspy
from dspy.predict.parameter import Parameter

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError

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
        """Return every predictor by its name in the layer; if frozen, as ``FrozenPredictor``."""
        found: list[tuple[str, Any]] = super().named_parameters()
        return [(name, FrozenPredictor(one)) for name, one in found] if self.is_frozen else found


class FrozenPredictor(dspy.Module, Parameter):
    """Stands for a predictor where DSPy saves, loads and sets LMs; optimizers do not find it."""

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
    named = [(n, one) for n, one in program.named_parameters() if isinstance(one, dspy.Module)]
    return [(n, one.predictor if isinstance(one, FrozenPredictor) else one) for n, one in named]


_EMPTY_STATE: Final[dict[str, Any]] = {
    "traces": [],
    "train": [],
    "demos": [],
    "signature": {"instructions": "", "fields": []},
    "lm": None,
}
_KEPT: Final = ("demos", "signature", "fields")
"""What a state keeps of a predictor. An LM is the pool's, so no endpoint is ever in it."""


class ArchitectureState(Parameter):
    """A mixture's entry ``architecture`` in the states that DSPy writes and reads.

    DSPy loads a state predictor by predictor, into a program that has the same ones. The mixture
    that a search returns may have other seats than the program that loads it, so this entry
    holds the architecture and the prompts and demos of all seats. Loading it gives a mixture
    these seats.
    """

    def __init__(self, mixture: Any) -> None:
        self.mixture = mixture

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the architecture, and per seat what an optimizer may have changed."""
        found: dict[str, Any] = {}
        for name, seat in all_predictors(self.mixture):
            state = seat.dump_state(json_mode=json_mode)
            found[name] = {key: state[key] for key in _KEPT if key in state}
        return {**self.mixture.architecture.to_json(), "seats": found}

    def load_state(self, state: Any) -> None:
        """Give the mixture the architecture of ``state``, with its prompts and demos.

        Raises:
            ArchitectureError: If the state is of no mixture, or of one with other modules.
            PoolError: If the mixture's pool lacks an agent.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("seats"), Mapping):
            raise ArchitectureError("The state of a mixture must have `seats`, one per predictor.")
        plain = {key: value for key, value in state.items() if key != "seats"}
        made = self.mixture.with_architecture(Architecture.from_json(plain))
        seats, states = dict(all_predictors(made)), state["seats"]
        if set(seats) != set(states):
            raise ArchitectureError(
                f"The state of {made.architecture} has the predictors {_listed(states)}, but this "
                f"program's modules have {_listed(seats)}."
            )
        for name, seat in seats.items():
            kept = {key: states[name][key] for key in _KEPT if key in states[name]}
            seat.load_state({**_EMPTY_STATE, **kept})
        self.mixture.replace_seats(made)

    def reset(self) -> None:
        """Change nothing: who sits where is nothing that an optimizer learned."""


class FormerSeat(Parameter):
    """The entry, in DSPy's states, of a seat that a mixture had before it was searched.

    DSPy wants an entry for every predictor of the program that loads the state, which is most
    often the one that was searched. What it loads from here is then replaced by ``architecture``.
    """

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the state of a predictor without a prompt."""
        return dict(_EMPTY_STATE)

    def load_state(self, state: Any) -> None:
        """Change nothing: there is no such seat."""

    def reset(self) -> None:
        """Change nothing: there is no such seat."""


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
