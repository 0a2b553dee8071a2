"""Architectures as plain data (the agent in each seat), and their text notation.

They import neither DSPy nor Optuna: they can be hashed, stored in a trial and rebuilt later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, TypeAlias

from moa_dspy.errors import ArchitectureError

COMBINES: Final = ("synthesize", "select", "vote", "fuse", "knockout")
"""The combiners, by which a last step turns references into an answer."""

_NEED_AN_AGENT: Final = ("synthesize", "fuse", "knockout")

_NAME = re.compile(r"[^\s>+*()]+")
_Weights: TypeAlias = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """The proposers of each layer, the aggregator, and the combiner.

    The text notation reads in the order of the data flow: ``"a"`` is the single agent a,
    ``"a + b*2 > c + d > synthesize(e)"`` two layers and an aggregator. A repeated name means
    independent samples of one agent (Self-MoA). Options follow in brackets:
    ``"a + b > synthesize(c; order=b; prompt=paper)"``, ``"a + b > fuse(c; analyst=d)"``,
    ``"a + b + c > vote(a; weights=a:1.5 b:0.8; lead=0.6)"``.

    The order inside a layer is the order in which the next step reads the layer's responses.
    ``layers``, ``str`` and ``to_json`` keep it as given. ``==`` and ``hash`` ignore it: they
    compare ``canonical`` forms, with the names of each layer sorted. Both compare ``order``.

    Attributes:
        layers: Agent names per layer, first layer first, as given; empty for a single agent.
        aggregator: ``synthesize``: the agent that writes the answer. ``select``: the ranker; None
            is consensus, without a model. ``vote``: the proposer whose answer wins a tie; None is
            the first in the layer's order. ``fuse``: the agent that writes after an analysis.
            ``knockout``: the agent that compares. Depth 0: the agent itself.
        combine: One of ``COMBINES``.
        order: Order in which the last step reads the last layer and ties of a vote are decided:
            these agents first, then the others in the layer's order. Stored in its shortest form.
        prompt: Name of the aggregator's prompt, of this library or a search; None is its own.
        weights: For ``vote``: weight of each answer by the agent's name, to four significant
            digits; agents that are not named have weight 1. Weights of 1, and weights that are
            equal for all members, are left out: that is the plain vote.
        agree: For ``vote`` or consensus: number of members that are asked first, in the order of
            ``reading``; the others are asked only if these do not all give the same answer.
        analyst: For ``fuse``: the agent that compares the references; None is the aggregator.
        lead: For ``vote``: members are asked until an answer leads every other by at least this
            share of the weight not yet asked. None asks until it cannot be overtaken.

    Raises:
        ArchitectureError: If a layer is empty, a name is not a plain word, the combine is unknown,
            an aggregator is missing or is not a voter, or an option is out of range or useless.
    """

    layers: tuple[tuple[str, ...], ...]
    aggregator: str | None
    combine: str = "synthesize"
    order: tuple[str, ...] = ()
    prompt: str | None = None
    weights: tuple[tuple[str, float], ...] = ()
    agree: int | None = None
    analyst: str | None = None
    lead: float | None = None
    # Cached, because a search compares and hashes the same architectures many times.
    _key: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layers = tuple(map(tuple, self.layers))
        object.__setattr__(self, "layers", layers)
        if self.combine not in COMBINES:
            choices = ", ".join(COMBINES)
            raise ArchitectureError(f"Unknown combine {self.combine!r}; known ones are {choices}.")
        if () in layers:
            raise ArchitectureError(f"`layers[{layers.index(())}]` must name at least one agent.")
        for name in self.agents:
            if not _NAME.fullmatch(name):
                raise ArchitectureError(
                    f"Agent name {name!r} must not be empty or hold spaces or any of > + * ( )."
                )
        self._check_aggregator()
        self._check_reading()
        self._check_options()
        sorted_layers = tuple(tuple(sorted(layer)) for layer in layers)
        object.__setattr__(self, "order", _shortest(self.order, *layers[-1:], *sorted_layers[-1:]))
        weights = _canonical_weights(self.weights, layers[-1]) if self.weights else ()
        object.__setattr__(self, "weights", weights)
        if self.analyst == self.aggregator:
            object.__setattr__(self, "analyst", None)
        rest = (self.prompt, weights, self.agree, self.analyst, self.lead)
        order = _shortest(self.order, *sorted_layers[-1:])
        key = (sorted_layers, self.aggregator, self.combine, order, *rest)
        object.__setattr__(self, "_key", key)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Architecture) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def canonical(self) -> Architecture:
        """The equal architecture with the names of each layer sorted."""
        is_canonical = (self._key[0], self._key[3]) == (self.layers, self.order)
        return self if is_canonical else Architecture(*self._key)

    def _check_reading(self) -> None:
        read = self.layers[-1] if self.layers else ()
        for name in self.order:
            if name not in read or self.order.count(name) > 1:
                raise ArchitectureError(
                    f"`order` must list agents of the last layer ({', '.join(read) or 'none'}), "
                    f"each at most once, but got {', '.join(self.order)}."
                )
        prompt = self.prompt
        if prompt is not None and (self.combine != "synthesize" or not self.layers):
            raise ArchitectureError("`prompt` can only be set for an aggregator that synthesizes.")
        if prompt is not None and not _NAME.fullmatch(prompt):
            raise ArchitectureError(
                f"Prompt name {prompt!r} must not be empty or hold spaces or any of > + * ( )."
            )

    def _check_options(self) -> None:
        if (self.analyst, self.agree, self.lead, self.weights) == (None, None, None, ()):
            return
        members = self.layers[-1] if self.layers else ()
        if self.analyst is not None and self.combine != "fuse":
            raise ArchitectureError("`analyst` can only be set with `combine` fuse.")
        if self.weights and self.combine != "vote":
            raise ArchitectureError("`weights` can only be set with `combine` vote.")
        names = [name for name, _ in self.weights]
        if not set(names) <= set(members) or len(set(names)) < len(names):
            raise ArchitectureError(
                f"`weights` must list agents of the last layer ({', '.join(members) or 'none'}), "
                f"each at most once, but got {', '.join(names)}."
            )
        for name, weight in self.weights:
            if not 0 < _rounded(weight) < math.inf:
                raise ArchitectureError(
                    f"The weight of {name!r} must be positive and finite, but got {weight}."
                )
        self._check_stopping(members)

    def _check_stopping(self, members: Sequence[str]) -> None:
        agree, lead = self.agree, self.lead
        if lead is not None and not (_is_number(lead) and 0 < lead < 1):
            raise ArchitectureError(f"`lead` must be a number between 0 and 1, but got {lead!r}.")
        if lead is not None and (self.combine != "vote" or agree is not None):
            raise ArchitectureError("`lead` can only be set for a vote without `agree`.")
        if agree is None:
            return
        if not (_is(agree, int) and _is_number(agree)):
            raise ArchitectureError(f"`agree` must be a whole number, but got {agree!r}.")
        if self.combine != "vote" and (self.combine, self.aggregator) != ("select", None):
            raise ArchitectureError("`agree` needs a vote, or a select without an agent.")
        if not 2 <= agree < len(members):
            raise ArchitectureError(
                "`agree` must be at least 2 and below the number of members of the last layer, "
                f"{len(members)}, but got {agree}."
            )

    def _check_aggregator(self) -> None:
        needs_one = self.combine in _NEED_AN_AGENT or not self.layers
        if needs_one and self.aggregator is None:
            raise ArchitectureError("`aggregator` must name the last step's agent, but got None.")
        if not self.layers and self.combine != "synthesize":
            raise ArchitectureError(f"`combine` {self.combine} needs a layer of proposers.")
        if self.combine == "vote" and self.aggregator not in (None, *self.layers[-1]):
            raise ArchitectureError(
                "`aggregator` decides the ties of a vote: it must be a proposer of the last "
                f"layer ({', '.join(self.layers[-1])}), but got {self.aggregator!r}."
            )

    @classmethod
    def single(cls, agent: str) -> Architecture:
        """Return the architecture of depth 0 in which ``agent`` answers alone."""
        return cls((), agent)

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Parse the text notation that ``str`` returns.

        Raises:
            ArchitectureError: If a part cannot be read; the message names it.
        """
        layers, last = read_parts(text)
        if last is None:
            return cls.single(text.strip())
        return cls(layers, last.aggregator, last.combine, **last.options)

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Rebuild an architecture from the value of ``to_json``.

        Raises:
            ArchitectureError: If a key is missing or unknown, or a value is not a name.
        """
        needed = {"layers", "aggregator", "combine"}
        if not _is(value, dict) or not needed <= set(value) <= {*needed, *_OPTIONS}:
            raise ArchitectureError(
                "An architecture must have the keys layers, aggregator and combine, and may have "
                f"{', '.join(_OPTIONS)}, but got {value!r}."
            )
        layers, aggregator = value["layers"], value["aggregator"]
        order, weights = value.get("order", []), value.get("weights", {})
        agree, lead, *rest = (value.get(key) for key in ("agree", "lead", "prompt", "analyst"))
        lists = [*layers, order] if _is(layers, list) else [layers]
        is_listed = all(_is(layer, list) for layer in lists)
        names = [name for layer in lists for name in layer] if is_listed else []
        named = [*names, *(name for name in (aggregator, *rest) if name is not None)]
        if not is_listed or not all(_is(name, str) for name in named):
            raise ArchitectureError(
                f"`layers` must be lists of names, and `aggregator` a name, but got {value!r}."
            )
        if not _is(weights, dict) or not all(map(_is_number, weights.values())):
            raise ArchitectureError(f"`weights` must be numbers by name, but got {weights!r}.")
        options = (tuple(order), rest[0], tuple(weights.items()), agree, rest[1], lead)
        return cls(layers, aggregator, value["combine"], *options)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; options of the last step are included only if given."""
        layers = [list(layer) for layer in self.layers]
        plain = {"layers": layers, "aggregator": self.aggregator, "combine": self.combine}
        rest = {name: getattr(self, name) for name in _OPTIONS}
        rest |= {"order": list(self.order), "weights": dict(self.weights)}
        return plain | {key: value for key, value in rest.items() if value}

    def __str__(self) -> str:
        if not self.layers:
            return str(self.aggregator)
        return " > ".join([*map(format_layer, self.layers), format_last(self)])

    @property
    def depth(self) -> int:
        """Number of proposer layers; 0 is a single agent."""
        return len(self.layers)

    @property
    def agents(self) -> tuple[str, ...]:
        """Every agent of the architecture, sorted, without repetition."""
        seats: set[str | None] = {self.aggregator, self.analyst}.union(*self.layers)
        return tuple(sorted(name for name in seats if name is not None))

    @property
    def reading(self) -> tuple[int, ...]:
        """Seats of the last layer in the order in which the last step reads them."""
        layer = self.layers[-1] if self.layers else ()
        return tuple(_read(layer, self.order) if self.order else range(len(layer)))

    @property
    def integer_weights(self) -> dict[str, int]:
        """The weight of each member of the last layer, as whole numbers in the same ratio."""
        return dict(_integer_weights((self.layers or ((),))[-1], self.weights))

    @property
    def aggregator_calls_a_model(self) -> bool:
        """True if the last step asks a language model."""
        return self.combine in _NEED_AN_AGENT or (
            self.combine == "select" and self.aggregator is not None
        )

    @property
    def chooses_among_singles(self) -> bool:
        """True if its answer is always that of one of its agents alone, each asked once."""
        names = [name for layer in self.layers for name in layer]
        is_one_layer = self.depth < 2 and len(set(names)) == len(names)
        return is_one_layer and not self.aggregator_calls_a_model

    @property
    def last_step_rounds(self) -> tuple[tuple[str, ...], ...]:
        """Agents that the last step asks, round by round; for a single agent, that agent."""
        aggregator = str(self.aggregator)
        if self.combine == "fuse":
            return ((self.analyst or aggregator,), (aggregator,))
        if self.combine == "knockout":
            return ((aggregator, aggregator),) * (len(self.layers[-1]) - 1)
        return ((aggregator,),) if self.aggregator_calls_a_model else ()

    @property
    def last_step_agents(self) -> tuple[str, ...]:
        """Agents that the last step asks, repeated for each question."""
        return tuple(agent for round_ in self.last_step_rounds for agent in round_)

    @property
    def calls(self) -> int:
        """Most model calls per question when no answer is stored."""
        return sum(map(len, self.layers)) + len(self.last_step_agents)


_OPTIONS: Final = tuple(f.name for f in fields(Architecture) if f.init)[3:]
"""Names of the options that may follow the aggregator in the brackets of the last step."""


def _is(value: Any, kind: type) -> bool:
    # JSON stays Any: narrowing it to a bare `list` would leave elements of unknown type.
    return isinstance(value, kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rounded(weight: float) -> float:
    return float(f"{weight:.4g}") if weight < 1e300 else math.inf  # no float may hold it


@lru_cache(maxsize=1024)  # asked for with each question
def _integer_weights(members: Sequence[str], weights: _Weights) -> Mapping[str, int]:
    """Return weights whose sums are exact: 0.1 and 0.2 weigh as much as 0.3."""
    fractions = {name: Fraction(repr(weight)) for name, weight in weights}
    exact = {name: fractions.get(name, Fraction(1)) for name in members}
    unit = math.lcm(*(weight.denominator for weight in exact.values()))
    return {name: int(weight * unit) for name, weight in exact.items()}


def _canonical_weights(weights: _Weights, members: Sequence[str]) -> _Weights:
    """Return the weights in canonical form: rounded, sorted, without those that have no effect."""
    rounded = {name: _rounded(weight) for name, weight in weights}
    if len({rounded.get(name, 1.0) for name in members}) < 2:
        return ()
    return tuple((name, rounded[name]) for name in sorted(rounded) if rounded[name] != 1)


def _shortest(order: tuple[str, ...], *layers: Sequence[str]) -> tuple[str, ...]:
    """Drop names at the end of ``order`` that change no reading of the ``layers``."""
    for n in range(len(order)):
        if all(_read(layer, order[:n]) == _read(layer, order) for layer in layers):
            return order[:n]
    return order


def _read(layer: Sequence[str], order: Sequence[str]) -> list[int]:
    """Return the seats of a layer: first those of the agents in ``order``, then the others."""
    rank = {name: place for place, name in enumerate(order)}
    return sorted(range(len(layer)), key=lambda seat: rank.get(layer[seat], len(rank)))


_LAST = re.compile(rf"({'|'.join(COMBINES)})(?:\(([^>+*()]+)\))?")
_BETWEEN_OPTIONS = re.compile(r";\s+(?=\w+=)")  # a name may contain a semicolon, but no space


@dataclass(frozen=True, slots=True)
class LastStep:
    """The parsed part after the last ``>``."""

    combine: str
    aggregator: str | None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read_parts(text: str) -> tuple[tuple[tuple[str, ...], ...], LastStep | None]:
    """Return the layers and the last step, which is None for a single agent.

    Raises:
        ArchitectureError: If a part cannot be read; the message names it.
    """
    *heads, last = [part.strip() for part in text.split(">")]
    if not heads:
        return (), None
    match = _LAST.fullmatch(last)
    if match is None:
        raise ArchitectureError(
            f"The last part of {text!r} must be synthesize(NAME), select, select(NAME), vote, "
            f"vote(NAME), fuse(NAME) or knockout(NAME), but got {last!r}."
        )
    return tuple(_read_layer(part) for part in heads), _read_last(match[1], match[2])


def _read_last(combine: str, inside: str | None) -> LastStep:
    if inside is None:
        return LastStep(combine, None)
    aggregator, *rest = _BETWEEN_OPTIONS.split(inside.strip())
    options: dict[str, Any] = {}
    for part in rest:
        key, _, value = part.partition("=")
        if key not in _OPTIONS:
            raise ArchitectureError(
                f"Unknown option {key!r} of the last step; known ones are order=NAME NAME, "
                "prompt=NAME, weights=NAME:NUMBER NAME:NUMBER, agree=NUMBER, analyst=NAME and "
                "lead=NUMBER."
            )
        if key in options:
            raise ArchitectureError(f"The option {key!r} of the last step is given twice.")
        options[key] = _READ.get(key, str)(value)
    return LastStep(combine, aggregator.strip() or None, options)


def _read_number(text: str) -> float | str:
    try:
        return int(text) if text.strip().isdecimal() and float(text) < 1e300 else float(text)
    except ValueError:
        return text  # not a number; the check of the value reports it


def _read_weights(text: str) -> _Weights:
    weights: list[tuple[str, float]] = []
    for part in text.split():
        name, _, number = part.rpartition(":")  # a name may contain a colon
        if isinstance(weight := _read_number(number), str):
            raise ArchitectureError(f"`weights`: {part!r} must read NAME:NUMBER.")
        weights.append((name, float(weight)))
    return tuple(weights)


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("agree", "lead"), _read_number),
    "order": lambda text: tuple(text.split()),
    "weights": _read_weights,
}


def _read_layer(text: str) -> tuple[str, ...]:
    names: list[str] = []
    for part in text.split("+"):
        name, star, count = part.strip().partition("*")
        if star and not (re.fullmatch(r"\s*\d{1,4}\s*", count) and int(count) > 0):
            raise ArchitectureError(
                f"{part.strip()[:40]!r} must read NAME or NAME*COUNT (1 to 9999)."
            )
        names += [name.strip()] * (int(count) if star else 1)
    return tuple(names)


def format_layer(layer: tuple[str, ...]) -> str:
    """Return a layer as text, such as ``a + b*2``."""
    runs = [(name, len(list(run))) for name, run in groupby(layer)]
    return " + ".join(name if n == 1 else f"{name}*{n}" for name, n in runs)


def format_last(architecture: Architecture) -> str:
    """Return ``synthesize(c; order=b a; prompt=paper)``, without options that are not given."""
    # Without an exponent, as "+" separates agents.
    text = " ".join(f"{name}:{Decimal(repr(w)).normalize():f}" for name, w in architecture.weights)
    shown = {name: getattr(architecture, name) for name in _OPTIONS}
    shown |= {"order": " ".join(architecture.order), "weights": text}
    settings = [f"{key}={value}" for key, value in shown.items() if value not in ("", None)]
    parts = [architecture.aggregator or "", *settings]
    return f"{architecture.combine}({'; '.join(parts)})" if any(parts) else architecture.combine
