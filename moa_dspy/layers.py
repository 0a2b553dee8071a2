"""Layers of proposers, and the state of a mixture that DSPy saves, loads and optimizes.

A mark on each predictor lets optimizers distinguish the seats (the places of agents).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Final

import dspy
from dspy.predict.parameter import Parameter
from pydantic_core import to_jsonable_python

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.files import shown_value

SEAT_MODULES: dict[str, Callable[[Any], Any]] = {
    "chain_of_thought": dspy.ChainOfThought,
    "predict": dspy.Predict,
}
"""Modules that a study file or a saved program may name for a seat."""


@dataclass(frozen=True, slots=True)
class ReplacedPredictor:
    """A predictor of a program that a mixture replaces.

    Called with a signature, it makes the module of a seat: of the predictor's class, and with its
    demos if the seat has the same inputs.

    Attributes:
        module: The ``dspy.Predict``, or the ``dspy.ChainOfThought`` around it.
        predictor: The ``dspy.Predict`` itself.
    """

    module: Any
    predictor: Any

    @classmethod
    def at(cls, program: Any, path: str) -> ReplacedPredictor:
        """Find the predictor at a path such as ``answer`` or ``steps[0]``.

        Raises:
            ArchitectureError: If there is none; the message lists the existing paths.
        """
        reasoning = {
            id(parent.predict): parent
            for _, parent in program.named_sub_modules(dspy.ChainOfThought)
        }
        by_path: dict[str, ReplacedPredictor] = {}
        by_dspys_name: dict[str, ReplacedPredictor] = {}
        for name, predictor in program.named_predictors():
            module = reasoning.get(id(predictor), predictor)
            short = name if module is predictor else name.removesuffix(".predict")
            if not _is_seat(predictor):
                seat = by_dspys_name[name] = cls(module, predictor)
                by_path["self" if module is program else short] = seat
        replaced = by_path.get(path) or by_dspys_name.get(path)
        if replaced is None:
            paths = ", ".join(by_path) or "none"
            raise ArchitectureError(
                f"`predictor` must be the path of a predictor of {type(program).__name__} "
                f"({paths}), but got {path!r}."
            )
        return replaced

    @property
    def signature(self) -> Any:
        """The signature of the program's author, with its present instructions."""
        signature = self.predictor.signature
        return signature if self.is_plain else signature.delete("reasoning")

    @property
    def is_plain(self) -> bool:
        """Whether it is a ``dspy.Predict``, which adds no field to its signature."""
        return self.module is self.predictor

    def __call__(self, signature: Any) -> Any:
        """Return the module of a seat."""
        module = (dspy.Predict if self.is_plain else dspy.ChainOfThought)(signature)
        predictor: Any = module.predictors()[0]
        if set(predictor.signature.input_fields) == set(self.predictor.signature.input_fields):
            predictor.demos = list(self.predictor.demos)
        return module


class Layer(dspy.Module):
    """Proposers that read the same input and do not read each other's responses.

    ``is_frozen`` protects their prompts from DSPy's optimizers and resets, like those of a compiled
    sub-module; unlike such a module, the layer is still saved and loaded by DSPy.
    """

    def __init__(self, proposers: Sequence[Any]) -> None:
        super().__init__()
        self.proposers = list(proposers)
        self.is_frozen = False

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return every predictor by its name in the layer, in a ``FrozenPredictor`` if frozen."""
        parameters: list[tuple[str, Any]] = super().named_parameters()
        return (
            [(name, FrozenPredictor(predictor)) for name, predictor in parameters]
            if self.is_frozen
            else parameters
        )


class FrozenPredictor(dspy.Module, Parameter):
    """Wrapper of a predictor that lets DSPy save, load and set LMs but hides it from optimizers."""

    def __init__(self, predictor: Any) -> None:
        super().__init__()
        self.predictor = predictor

    @property
    def lm(self) -> Any:
        """The predictor's LM, so that the rollouts of DSPy's wrappers reach frozen seats too."""
        return self.predictor.lm

    @lm.setter
    def lm(self, value: Any) -> None:
        self.predictor.lm = value

    def dump_state(self, json_mode: bool = True) -> Any:
        """Return the predictor's state."""
        return self.predictor.dump_state(json_mode=json_mode)

    def load_state(self, state: Any, *, allow_unsafe_lm_state: bool = False) -> None:
        """Load a saved state into the predictor."""
        self.predictor.load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)

    def reset(self) -> None:
        """Reset only the predictor's LM, as instructions and demos are frozen."""
        self.predictor.lm = None


def all_predictors(program: Any) -> list[tuple[str, Any]]:
    """Return ``named_predictors`` including frozen predictors, in the order of the program."""
    named = [
        (n, predictor)
        for n, predictor in program.named_parameters()
        if isinstance(predictor, dspy.Module)
    ]
    return [
        (n, predictor.predictor if isinstance(predictor, FrozenPredictor) else predictor)
        for n, predictor in named
    ]


_EMPTY_STATE: Final[dict[str, Any]] = {
    "traces": [],
    "train": [],
    "demos": [],
    "signature": {"instructions": "", "fields": []},
    "lm": None,
}
_KEPT: Final = ("demos", "signature", "fields")
"""Parts of a predictor in a state. LMs belong to the pool, so a state holds no endpoint."""


class ArchitectureState(Parameter):
    """The entry ``architecture`` of a mixture in states that DSPy writes and reads.

    DSPy loads a state into a program with the same predictors. A mixture returned by a search may
    have other seats than the program that loads it, so this entry holds the architecture with the
    prompts and demos of all seats, and loading it gives a mixture these seats.

    Attributes:
        mixture: The mixture.
        entries: Names of the mixture's other entries, if DSPy loads them one by one after this one.
    """

    def __init__(self, mixture: Any, entries: Sequence[str] = ()) -> None:
        self.mixture, self.entries = mixture, tuple(entries)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the architecture, and the parts of each seat that optimizers may change."""
        seats: dict[str, Any] = {}
        for name, seat in all_predictors(self.mixture):
            state = seat.dump_state(json_mode=json_mode)
            seats[name] = {key: state[key] for key in _KEPT if key in state}
        content = {**self.mixture.architecture.to_json(), "seats": seats}
        return {**content, "entries": list(self.entries)} if self.entries else content

    def load_state(self, state: Any) -> None:
        """Give the mixture the architecture of ``state``, with its prompts and demos.

        Raises:
            ArchitectureError: If the state is not of a mixture, or of a mixture with other modules,
                or DSPy would not find an entry for each predictor of the program that loads it.
            PoolError: If the mixture's pool lacks an agent.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("seats"), Mapping):
            raise ArchitectureError("The state of a mixture must have `seats`, one per predictor.")
        plain = {key: value for key, value in state.items() if key not in ("seats", "entries")}
        self._check_entries(plain, state.get("entries", self.entries))
        clone = self.mixture.with_architecture(Architecture.from_json(plain))
        seats, states = dict(all_predictors(clone)), state["seats"]
        if set(seats) != set(states):
            raise ArchitectureError(
                f"The state of {clone.architecture} has the predictors {_listed(states)}, but this "
                f"program's modules have {_listed(seats)}."
            )
        for name, seat in seats.items():
            kept = {key: states[name][key] for key in _KEPT if key in states[name]}
            seat.load_state({**_EMPTY_STATE, **kept})
        self.mixture.replace_seats(clone)

    def _check_entries(self, saved: Mapping[str, Any], entries: Sequence[str]) -> None:
        """Check that the state has an entry for all that DSPy looks up in it after this one."""
        if lacking := [name for name in self.entries if name not in entries]:
            architecture = Architecture.from_json(saved)
            raise ArchitectureError(
                f"The state is of a program with the mixture {architecture}, but the program that "
                f"loads it has {self.mixture.architecture}, and DSPy needs the same predictors: "
                f"the state lacks {', '.join(lacking)}. Make the program that loads it with "
                f"{str(architecture)!r}, or with a single agent, which loads every state."
            )

    def reset(self) -> None:
        """Do nothing: the architecture is not learned by an optimizer."""


class FormerSeat(Parameter):
    """The entry in DSPy's states for a seat that a mixture had before a search.

    DSPy requires an entry for every predictor of the program that loads the state, usually the
    program before the search. Loading ``architecture`` then replaces what was loaded from this
    entry.
    """

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the state of a predictor without a prompt."""
        return dict(_EMPTY_STATE)

    def load_state(self, state: Any) -> None:
        """Do nothing: the seat no longer exists."""

    def reset(self) -> None:
        """Do nothing: the seat no longer exists."""


def former_seats(seats: Sequence[str], former: Sequence[str]) -> list[tuple[str, FormerSeat]]:
    """Return entries for the seats of the mixture before a search, and of a single agent.

    So a program with a single agent there, as most have before a search, loads every state.

    Args:
        seats: Names of the mixture's predictors.
        former: Names of those that it had.
    """
    first = "layers[0].proposers[0]"
    rests = [name.removeprefix(first) for name in seats if name.startswith(first)]
    alone = [f"aggregator{rest}" for rest in rests]
    names = dict.fromkeys((*alone, *former))
    return [(name, FormerSeat()) for name in names if name not in seats]


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


SEAT_MARK: Final = "moa_dspy_seat"
"""Key of the seat's name in the first input field of its signature."""


def _is_seat(predictor: Any) -> bool:
    fields = predictor.signature.input_fields.values()
    return any(SEAT_MARK in field.json_schema_extra for field in fields)


def mark_seats(program: Any) -> None:
    """Give every predictor of ``program`` its own signature, marked with the seat's name.

    Proposers have the same fields and instructions, and optimizers distinguish predictors by their
    signatures: GEPA by ``equals``, Refine by the class. Without a mark they would confuse the
    traces of different agents. Copies, new instructions and loaded states keep the mark; adapters
    do not print it. The same seat of another program has the same mark, as a teacher's signatures
    must equal a student's.
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
    """Return the given architecture (an object or text) if its agents can be seated.

    Raises:
        ArchitectureError: If it is neither, cannot be read, or ``module`` does not make modules.
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
    """Return the architecture of agent names or LMs, and the LMs by their new names."""
    if aggregator is None:
        raise ArchitectureError("`architecture`, or `layers` and `aggregator`, must be given.")
    for place, layer in enumerate(layers):
        if isinstance(layer, str) or not isinstance(layer, Sequence):
            raise ArchitectureError(
                f"`layers[{place}]` must be a list of LMs or of agent names, but got "
                f"{shown_value(layer)}."
            )
    parts = [*(lm for layer in layers for lm in layer), aggregator]
    if all(isinstance(name, str) for name in parts):
        return Architecture(tuple(map(tuple, layers)), aggregator), {}
    names: dict[int, str] = {}
    lms: dict[str, Any] = {}
    for lm in parts:
        if not isinstance(lm, dspy.BaseLM):
            raise ArchitectureError(
                "`layers` and `aggregator` must be all agent names or all LMs, but one is "
                f"{shown_value(lm)}."
            )
        if id(lm) not in names:
            stem = re.sub(r"[\s>+*()]", "-", str(lm.model))
            numbered = (f"{stem}-{n}" for n in count(2))
            names[id(lm)] = next(name for name in chain([stem], numbered) if name not in lms)
            lms[names[id(lm)]] = lm
    named = tuple(tuple(names[id(lm)] for lm in layer) for layer in layers)
    return Architecture(named, names[id(aggregator)]), lms


def is_for_plain_chat(signature: Any, module: Any, pool: Mapping[str, Any]) -> bool:
    """Return whether plain chat is the default, as small models often break DSPy's formats."""
    outputs = list(signature.output_fields.values())
    is_text = len(outputs) == 1 and outputs[0].annotation is str
    is_plain = module is dspy.Predict or getattr(module, "is_plain", False)
    is_default = dspy.settings.adapter is None and is_plain
    return is_text and is_default and all(pool[name].is_local for name in pool)


def json_data(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return ``values`` as plain JSON data in the form of DSPy's prompts.

    An enum is written by its value, a date in ISO format, a set as a list.

    Raises:
        ArchitectureError: If a value is no data; with the place and its name.
    """
    data: dict[str, Any] = {}
    for name, value in values.items():
        try:
            data[name] = to_jsonable_python(value)
            json.dumps(data[name], allow_nan=False)
        except (TypeError, ValueError) as reason:
            raise ArchitectureError(
                f"{where}: the field {name!r} cannot be written as JSON: {reason}."
            ) from reason
    return data
