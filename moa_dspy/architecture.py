"""Architectures as plain data: which agent sits in which seat, and the text notation for it.

Nothing here calls a model or imports DSPy or Optuna, so an architecture can be compared,
hashed, printed, stored in a trial and rebuilt later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from moa_dspy.errors import ArchitectureError

COMBINES: Final = ("synthesize", "select", "vote")
"""How the last step turns references into an answer."""

_NAME = re.compile(r"[^\s>+*()]+")


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """Says who proposes in each layer, who aggregates, and how.

    The text notation reads in the order of the data flow:
    ``"a"`` is the single agent a, ``"a + b*2 > c + d > synthesize(e)"`` two layers
    and an aggregator. A name may repeat: independent samples of one agent, which is
    Self-MoA. What the last step does differently follows in its brackets:
    ``"a + b > synthesize(c; order=b; prompt=brief)"``.

    The order inside a layer is the order in which the next step reads the layer's
    responses. ``layers``, ``str`` and ``to_json`` keep it as it was given. ``==`` and
    ``hash`` ignore it: architectures are equal if their ``canonical`` forms, with the
    names of each layer sorted, are the same. So a search measures one seating of the
    same agents only, and ``"b + a > vote" == "a + b > vote"``, though the two texts differ.
    An ``order`` is a choice of its own, and counts.

    Attributes:
        layers: Agent names per layer, first layer first, as given; empty for a single agent.
        aggregator: ``synthesize``: who writes the answer. ``select``: who ranks; None
            is consensus, without a model. ``vote``: the proposer whose answer wins a
            tie; None is the first in the layer's order. Depth 0: the agent itself.
        combine: One of ``COMBINES``.
        order: In which order the last step reads the last layer, and ties of a vote are
            decided: these agents first, then the others as they sit. Kept as short as it can be.
        prompt: Name of the prompt that a search put into the aggregator's seat; None is the
            seat's own. It tells architectures apart; a mixture does not look it up.

    Raises:
        ArchitectureError: If a layer is empty, a name is not a plain word, the combine is
            unknown, an aggregator is missing or does not vote, or an order or a prompt
            is given to what does not read.
    """

    layers: tuple[tuple[str, ...], ...]
    aggregator: str | None
    combine: str = "synthesize"
    order: tuple[str, ...] = ()
    prompt: str | None = None
    # Stored, because a search compares and hashes the same architectures over and over.
    _key: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layers = tuple(map(tuple, self.layers))
        object.__setattr__(self, "layers", layers)
        if self.combine not in COMBINES:
            known = ", ".join(COMBINES)
            raise ArchitectureError(f"Unknown combine {self.combine!r}; known ones are {known}.")
        for depth, layer in enumerate(layers):
            if not layer:
                raise ArchitectureError(f"`layers[{depth}]` must name at least one agent.")
        for name in self.agents:
            if not _NAME.fullmatch(name):
                raise ArchitectureError(
                    f"Agent name {name!r} must not be empty or hold spaces or any of > + * ( )."
                )
        self._check_aggregator()
        self._check_reading()
        last = layers[-1] if layers else ()
        object.__setattr__(self, "order", _shortest(self.order, last, sorted(last)))
        sorted_layers = tuple(tuple(sorted(layer)) for layer in layers)
        order = _shortest(self.order, sorted(last))
        key = (sorted_layers, self.aggregator, self.combine, order, self.prompt)
        object.__setattr__(self, "_key", key)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Architecture) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def canonical(self) -> Architecture:
        """The equal architecture in which the names of each layer are sorted."""
        return Architecture(*self._key)

    def _check_reading(self) -> None:
        read = self.layers[-1] if self.layers else ()
        for name in self.order:
            if name not in read or self.order.count(name) > 1:
                raise ArchitectureError(
                    f"`order` must name agents of the last layer, {', '.join(read) or 'none here'},"
                    f" each once, but got {', '.join(self.order)}."
                )
        if self.prompt is None:
            return
        if self.combine != "synthesize" or not self.layers:
            raise ArchitectureError("`prompt` goes with an aggregator that synthesizes.")
        if not _NAME.fullmatch(self.prompt):
            raise ArchitectureError(
                f"Prompt name {self.prompt!r} must not be empty or hold spaces or any of > + * ( )."
            )

    def _check_aggregator(self) -> None:
        needs_one = self.combine == "synthesize" or not self.layers
        if needs_one and self.aggregator is None:
            raise ArchitectureError("`aggregator` must name an agent, but got None.")
        if not self.layers and self.combine != "synthesize":
            raise ArchitectureError(f"A single agent has nothing to {self.combine} among.")
        votes = self.combine == "vote" and self.aggregator is not None
        if votes and self.aggregator not in self.layers[-1]:
            raise ArchitectureError(
                f"{self.aggregator!r} cannot decide ties: it must be one of the last layer's "
                f"proposers, {', '.join(self.layers[-1])}."
            )

    @classmethod
    def single(cls, agent: str) -> Architecture:
        """Return the architecture of depth 0 in which ``agent`` answers alone."""
        return cls((), agent)

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Read the text notation that ``str`` writes.

        Raises:
            ArchitectureError: If a part cannot be read, naming it.
        """
        layers, last = read_parts(text)
        if last is None:
            return cls.single(text.strip())
        return cls(layers, last.aggregator, last.combine, last.order, last.prompt)

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Rebuild from what ``to_json`` returned.

        Raises:
            ArchitectureError: If a key is missing or unknown, or a value is no name.
        """
        needed = {"layers", "aggregator", "combine"}
        if not _is(value, dict) or not needed <= set(value) <= {*needed, "order", "prompt"}:
            raise ArchitectureError(
                "An architecture has the keys layers, aggregator, combine, but got "
                f"{value!r}; it may have order and prompt besides."
            )
        layers, aggregator = value["layers"], value["aggregator"]
        order, prompt = value.get("order", []), value.get("prompt")
        lists = [*layers, order] if _is(layers, list) else [layers]
        is_listed = all(_is(one, list) for one in lists)
        names = [name for one in lists for name in one] if is_listed else []
        named = [*names, *(one for one in (aggregator, prompt) if one is not None)]
        if not is_listed or not all(_is(name, str) for name in named):
            raise ArchitectureError(
                f"`layers` must be lists of names, and `aggregator` a name, but got {value!r}."
            )
        seats = tuple(tuple(layer) for layer in layers)
        return cls(seats, aggregator, value["combine"], tuple(order), prompt)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; an order and a prompt are in it only where they are given."""
        layers = [list(layer) for layer in self.layers]
        plain = {"layers": layers, "aggregator": self.aggregator, "combine": self.combine}
        rest = {"order": list(self.order), "prompt": self.prompt}
        return plain | {key: value for key, value in rest.items() if value}

    def __str__(self) -> str:
        if not self.layers:
            return str(self.aggregator)
        last = format_last(self.combine, self.aggregator, self.order, self.prompt)
        return " > ".join([*map(format_layer, self.layers), last])

    @property
    def depth(self) -> int:
        """Number of proposer layers; 0 is a single agent."""
        return len(self.layers)

    @property
    def agents(self) -> tuple[str, ...]:
        """Every agent that sits somewhere, sorted, each once."""
        seats = {name for layer in self.layers for name in layer}
        return tuple(sorted(seats | ({self.aggregator} if self.aggregator is not None else set())))

    @property
    def reading(self) -> tuple[int, ...]:
        """Seats of the last layer in the order in which the last step reads them."""
        layer = self.layers[-1] if self.layers else ()
        rank = {name: place for place, name in enumerate(self.order)}
        return tuple(sorted(range(len(layer)), key=lambda seat: rank.get(layer[seat], len(rank))))

    @property
    def aggregator_calls_a_model(self) -> bool:
        """Whether the last step asks a language model."""
        return self.combine == "synthesize" or (
            self.combine == "select" and self.aggregator is not None
        )

    @property
    def calls(self) -> int:
        """Model calls that one question costs when nothing is stored."""
        return sum(map(len, self.layers)) + int(self.aggregator_calls_a_model)


def _is(value: Any, kind: type) -> bool:
    # JSON stays Any: narrowing it to a bare `list` would leave elements of unknown type.
    return isinstance(value, kind)


def _shortest(order: tuple[str, ...], *layers: Sequence[str]) -> tuple[str, ...]:
    """Leave out the names at the end of ``order`` that stand there unnamed, in all ``layers``."""

    def read(named: tuple[str, ...], layer: Sequence[str]) -> list[str]:
        return [*named, *(name for name in dict.fromkeys(layer) if name not in named)]

    for n in range(len(order)):
        if all(read(order[:n], layer) == read(order, layer) for layer in layers):
            return order[:n]
    return order


_LAST = re.compile(r"(synthesize|select|vote)(?:\(([^>+*()]+)\))?")
_BETWEEN_OPTIONS = re.compile(r";\s+")
"""A name may hold a semicolon, but no space."""


@dataclass(frozen=True, slots=True)
class LastStep:
    """The part after the last ``>``."""

    combine: str
    aggregator: str | None
    order: tuple[str, ...] = ()
    prompt: str | None = None


def read_parts(text: str) -> tuple[tuple[tuple[str, ...], ...], LastStep | None]:
    """Return the layers and the last step; None for a single agent, which has none.

    Raises:
        ArchitectureError: If a part cannot be read, naming it.
    """
    *heads, last = [part.strip() for part in text.split(">")]
    if not heads:
        return (), None
    match = _LAST.fullmatch(last)
    if match is None:
        raise ArchitectureError(
            f"The last part of {text!r} must be synthesize(NAME), select, select(NAME), vote "
            f"or vote(NAME), but got {last!r}."
        )
    return tuple(_read_layer(part) for part in heads), _read_last(match[1], match[2])


def _read_last(combine: str, inside: str | None) -> LastStep:
    if inside is None:
        return LastStep(combine, None)
    who, *rest = _BETWEEN_OPTIONS.split(inside.strip())
    options: dict[str, str] = {}
    for part in rest:
        key, _, value = part.partition("=")
        options[key] = value
    if unknown := [key for key in options if key not in ("order", "prompt")]:
        raise ArchitectureError(
            f"The last step knows order=NAME NAME and prompt=NAME, but got {unknown[0]!r}."
        )
    order = tuple(options.get("order", "").split())
    return LastStep(combine, who.strip() or None, order, options.get("prompt"))


def _read_layer(text: str) -> tuple[str, ...]:
    names: list[str] = []
    for part in text.split("+"):
        name, star, count = part.strip().partition("*")
        if star and not (count.strip().isdecimal() and int(count) > 0):
            raise ArchitectureError(f"{part.strip()!r} must read NAME or NAME*COUNT.")
        names += [name.strip()] * (int(count) if star else 1)
    return tuple(names)


def format_layer(layer: tuple[str, ...]) -> str:
    """Write ``a + b*2``."""
    runs = [(name, len(list(run))) for name, run in groupby(layer)]
    return " + ".join(name if n == 1 else f"{name}*{n}" for name, n in runs)


def format_last(
    combine: str, aggregator: str | None, order: tuple[str, ...], prompt: str | None
) -> str:
    """Write ``synthesize(c; order=b a; prompt=brief)``; what is not given is left out."""
    parts = [aggregator or ""]
    parts += [f"order={' '.join(order)}"] if order else []
    parts += [f"prompt={prompt}"] if prompt is not None else []
    return f"{combine}({'; '.join(parts)})" if any(parts) else combine
