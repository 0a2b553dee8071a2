"""What a mixture *is*, as plain data: which agent sits in which seat.

Nothing here calls a model or imports DSPy or Optuna, so an architecture can be
compared, hashed, printed, stored in a trial and rebuilt years later.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from moa_dspy.errors import ArchitectureError

COMBINES: Final = ("synthesize", "select", "vote")
"""How the last step turns references into an answer."""

_NAME = re.compile(r"[^\s>+*()]+")
_LAST = re.compile(r"(synthesize|select|vote)(?:\(([^\s>+*()]+)\))?")


@dataclass(frozen=True, slots=True)
class Architecture:
    """Says who proposes in each layer, who aggregates, and how.

    The text notation reads in the order of the data flow:
    ``"a"`` is the single agent a, ``"a + b*2 > c + d > synthesize(e)"`` two layers
    and an aggregator. Order inside a layer does not matter (layers are kept
    sorted, so equal architectures are equal objects) and a name may repeat:
    independent samples of one agent, which is Self-MoA.

    Attributes:
        layers: Agent names per layer, first layer first; empty for a single agent.
        aggregator: ``synthesize``: who writes the answer. ``select``: who ranks; None
            is consensus, without a model. ``vote``: the proposer whose answer wins a
            tie; None is the first in the layer's order. Depth 0: the agent itself.
        combine: One of ``COMBINES``.

    Raises:
        ArchitectureError: If a layer is empty, a name is not a plain word, the
            combine is unknown, or an aggregator is missing or does not vote.
    """

    layers: tuple[tuple[str, ...], ...]
    aggregator: str | None
    combine: str = "synthesize"

    def __post_init__(self) -> None:
        layers = tuple(tuple(sorted(layer)) for layer in self.layers)
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
        *heads, last = [part.strip() for part in text.split(">")]
        if not heads:
            return cls.single(last)
        match = _LAST.fullmatch(last)
        if match is None:
            raise ArchitectureError(
                f"The last part of {text!r} must be synthesize(NAME), select, select(NAME), vote "
                f"or vote(NAME), but got {last!r}."
            )
        return cls(tuple(_parse_layer(part) for part in heads), match[2], match[1])

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Rebuild from what ``to_json`` returned.

        Raises:
            ArchitectureError: If a key is missing or unknown, or a value is no name.
        """
        if not _is(value, dict) or set(value) != {"layers", "aggregator", "combine"}:
            raise ArchitectureError(
                f"An architecture has the keys layers, aggregator, combine, but got {value!r}."
            )
        layers, aggregator = value["layers"], value["aggregator"]
        is_listed = _is(layers, list) and all(_is(layer, list) for layer in layers)
        names = [name for layer in layers for name in layer] if is_listed else []
        named = [*names, *([] if aggregator is None else [aggregator])]
        if not is_listed or not all(_is(name, str) for name in named):
            raise ArchitectureError(
                f"`layers` must be lists of names, and `aggregator` a name, but got {value!r}."
            )
        return cls(tuple(tuple(layer) for layer in layers), aggregator, value["combine"])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        layers = [list(layer) for layer in self.layers]
        return {"layers": layers, "aggregator": self.aggregator, "combine": self.combine}

    def __str__(self) -> str:
        if not self.layers:
            return str(self.aggregator)
        who = f"({self.aggregator})" if self.aggregator else ""
        return " > ".join([*(_format_layer(layer) for layer in self.layers), self.combine + who])

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


def _parse_layer(text: str) -> tuple[str, ...]:
    names: list[str] = []
    for part in text.split("+"):
        name, star, count = part.strip().partition("*")
        if star and not (count.strip().isdecimal() and int(count) > 0):
            raise ArchitectureError(f"{part.strip()!r} must read NAME or NAME*COUNT.")
        names += [name.strip()] * (int(count) if star else 1)
    return tuple(names)


def _format_layer(layer: tuple[str, ...]) -> str:
    counts = Counter(layer)
    return " + ".join(name if n == 1 else f"{name}*{n}" for name, n in counts.items())
