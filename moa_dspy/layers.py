"""Layers of proposers, and the parts of a mixture that DSPy saves, loads and optimizes.

A mark on each predictor lets optimizers tell the seats apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Final

import dspy
from dspy.predict.parameter import Parameter

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.files import shown_value

SEAT_MODULES: dict[str, Callable[[Any], Any]] = {
    "chain_of_thought": dspy.ChainOfThought,
    "predict": dspy.Predict,
}
"""Names that a study file or a saved program may use for the module of a seat."""


@dataclass(frozen=True, slots=True)
class ReplacedPredictor:
    """A predictor of a program, in whose place a mixture answers.

    Called with a signature it makes the module of a seat: of the predictor's class, and with
    its worked examples where the seat has the same inputs.

    Attributes:
        module: A ``dspy.Predict``, or the ``dspy.ChainOfThought`` around it.
        predictor: The ``dspy.Predict``.
    """

    module: Any
    predictor: Any

    @classmethod
    def at(cls, program: Any, path: str) -> ReplacedPredictor:
        """Find the predictor at a path such as ``answer`` or ``steps[0]``.

        Raises:
            ArchitectureError: If there is none, listing the paths that there are.
        """
        reasoning = {
            id(one.predict): one for _, one in program.named_sub_modules(dspy.ChainOfThought)
        }
        found: dict[str, ReplacedPredictor] = {}
        by_dspys_name: dict[str, ReplacedPredictor] = {}
        for name, predictor in program.named_predictors():
            module = reasoning.get(id(predictor), predictor)
            short = name if module is predictor else name.removesuffix(".predict")
            if not _is_seat(predictor):
                seat = by_dspys_name[name] = cls(module, predictor)
                found["self" if module is program else short] = seat
        one = found.get(path) or by_dspys_name.get(path)
        if one is None:
            known = ", ".join(found) or "none"
            raise ArchitectureError(
                f"`predictor` must be the path of a predictor of {type(program).__name__} "
                f"({known}), but got {path!r}."
            )
        return one

    @property
    def signature(self) -> Any:
        """The signature that the program's author gave it, with its instructions of now."""
        signature = self.predictor.signature
        return signature if self.module is self.predictor else signature.delete("reasoning")

    def __call__(self, signature: Any) -> Any:
        """Return the module of a seat."""
        made = (dspy.Predict if self.module is self.predictor else dspy.ChainOfThought)(signature)
        predictor: Any = made.predictors()[0]
        if set(predictor.signature.input_fields) == set(self.predictor.signature.input_fields):
            predictor.demos = list(self.predictor.demos)
        return made


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
        """Change nothing: no optimizer learned the architecture."""


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


SEAT_MARK: Final = "moa_dspy_seat"
"""Key of the seat's name in the first input field of its signature."""


def _is_seat(predictor: Any) -> bool:
    fields = predictor.signature.input_fields.values()
    return any(SEAT_MARK in field.json_schema_extra for field in fields)


def mark_seats(program: Any) -> None:
    """Give every predictor of ``program`` a signature of its own, marked with the seat's name.

    Proposers have the same fields and instructions, and optimizers tell predictors apart by
    their signatures: GEPA by ``equals``, Refine by the class. Without a mark, what one agent
    did is taken for what another one did. Copies, new instructions and loaded states keep
    the mark; adapters do not write it. The same seat of another program has the same mark,
    as a teacher's signatures must equal a student's.
    """
    for name, predictor in program.named_predictors():
        predictor.signature = _marked(predictor.signature, name)


def _marked(signature: Any, seat: str) -> Any:
    fields = dict(signature.fields)
    for name, field in signature.input_fields.items():
        # Fields may be shared with the caller's signature, so the marked one is a copy.
        fields[name] = copy(field)
        fields[name].json_schema_extra = {**field.json_schema_extra, SEAT_MARK: seat}
        break
    return dspy.make_signature(fields, signature.instructions)


def seated(architecture: Any, pool: Mapping[str, Any], module: Any) -> Architecture:
    """Return the architecture that was given, or whose text was, if its agents can be seated.

    Raises:
        ArchitectureError: If it is neither, cannot be read, or ``module`` makes no modules.
        PoolError: If the pool lacks an agent.
    """
    if isinstance(architecture, str):
        architecture = Architecture.parse(architecture)
    if not isinstance(architecture, Architecture):
        raise ArchitectureError(
            "`architecture` must be an Architecture or its text, such as 'a + b > synthesize(c)', "
            f"but got {shown_value(architecture)}; lists go into `layers` and `aggregator`."
        )
    if not callable(module) or isinstance(module, dspy.Module):
        raise ArchitectureError(
            "`module` must be a class such as dspy.ChainOfThought, or a function that makes a "
            f"module of a signature, but got {shown_value(module)}."
        )
    for name in architecture.agents:
        pool[name]
    return architecture


def from_parts(
    layers: Sequence[Sequence[Any]], aggregator: Any
) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture of names, or of LMs, and the LMs by the names that they are given."""
    if aggregator is None:
        raise ArchitectureError("`architecture`, or `layers` and `aggregator`, must be given.")
    for place, layer in enumerate(layers):
        if isinstance(layer, str) or not isinstance(layer, Sequence):
            raise ArchitectureError(
                f"`layers[{place}]` must be a list of LMs or of agent names, but got "
                f"{shown_value(layer)}."
            )
    given = [*(lm for layer in layers for lm in layer), aggregator]
    if all(isinstance(name, str) for name in given):
        return Architecture(tuple(map(tuple, layers)), aggregator), {}
    names: dict[int, str] = {}
    lms: dict[str, Any] = {}
    for lm in given:
        if not isinstance(lm, dspy.BaseLM):
            raise ArchitectureError(f"Seats must be all names or all LMs, but one is {lm!r}.")
        if id(lm) not in names:
            stem = re.sub(r"[\s>+*()]", "-", str(lm.model))
            numbered = (f"{stem}-{n}" for n in count(2))
            names[id(lm)] = next(name for name in chain([stem], numbered) if name not in lms)
            lms[names[id(lm)]] = lm
    named = tuple(tuple(names[id(lm)] for lm in layer) for layer in layers)
    return Architecture(named, names[id(aggregator)]), lms
