"""Rules of searched layered architectures (limits, repairs, reading orders), and their count."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from moa_dspy.agent import Agent
from moa_dspy.architecture import COMBINES, Architecture
from moa_dspy.files import WHOLE, Kinds

SPACE_NAMES: Final = (
    *("agents", "combines", "aggregators", "rankers", "listed"),
    *("must_include", "providers", "orders", "prompts"),
)
"""Options of a space that are lists of names without duplicates."""
SPACE_KINDS: Final[Kinds] = {
    **dict.fromkeys(SPACE_NAMES, (tuple | list, "a list, such as ('a', 'b')")),
    **dict.fromkeys(("max_depth", "min_width", "max_width", "max_samples"), WHOLE),
}


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """The constraints of a search space.

    Attributes:
        agents: Agents that a searched architecture may have.
        min_width: Minimum number of proposers of a layer.
        max_width: Maximum number of proposers of a layer.
        max_samples: Maximum number of samples of one agent in a layer.
        must_include: Agents that propose in every first layer.
        never_together: Pairs of agents that may not be in one architecture, in any seats.
        provider_of: The provider of each agent; read only with ``max_per_provider``.
        max_per_provider: Maximum number of proposers of one provider in a layer; None: no limit.
    """

    agents: tuple[str, ...]
    min_width: int
    max_width: int
    max_samples: int
    must_include: tuple[str, ...]
    never_together: tuple[tuple[str, str], ...]
    provider_of: Mapping[str, str]
    max_per_provider: int | None

    def agree(self, names: Collection[str]) -> bool:
        """True if ``names`` contain no pair of ``never_together``."""
        return not any(a in names and b in names for a, b in self.never_together)

    def has_room(self, layer: Sequence[str], name: str) -> bool:
        """True if ``layer`` may have one more sample of ``name``."""
        if len(layer) >= self.max_width or layer.count(name) >= self.max_samples:
            return False
        if self.max_per_provider is None:
            return True
        same = [other for other in layer if self.provider_of[other] == self.provider_of[name]]
        return len(same) < self.max_per_provider

    def allow(self, layers: Sequence[Sequence[str]], aggregator: str | None) -> bool:
        """True if an architecture of these seats may be searched."""
        return all(map(self._is_layer, layers)) and self.demand(layers, aggregator)

    def demand(self, layers: Sequence[Sequence[str]], aggregator: str | None) -> bool:
        """True if these seats satisfy the constraints on members, without regard to widths."""
        seats = {name for layer in layers for name in layer}
        seats |= {aggregator} if aggregator is not None else set()
        return (
            seats <= set(self.agents)
            and set(self.must_include) <= set(layers[0])
            and self.agree(seats)
            and all(map(self._is_spread, layers))
        )

    def _is_layer(self, layer: Sequence[str]) -> bool:
        fits = self.min_width <= len(layer) <= self.max_width
        return fits and max(Counter(layer).values()) <= self.max_samples

    def _is_spread(self, layer: Sequence[str]) -> bool:
        if self.max_per_provider is None:
            return True
        sizes = Counter(self.provider_of[name] for name in layer)
        return max(sizes.values()) <= self.max_per_provider

    def layers(self, agents: Sequence[str], *, is_first: bool) -> Iterator[tuple[str, ...]]:
        """Yield every layer of ``agents`` whose members agree, narrow ones first."""
        needed = set(self.must_include) if is_first else set[str]()
        for width in range(self.min_width, self.max_width + 1):
            for layer in self._wider((), agents, width):
                if needed <= set(layer):
                    yield layer

    def _wider(
        self, layer: tuple[str, ...], agents: Sequence[str], width: int
    ) -> Iterator[tuple[str, ...]]:
        if len(layer) == width:
            yield layer
            return
        for place, name in enumerate(agents):
            # Names are in the order of ``agents``, so that no layer is yielded twice.
            if self.has_room(layer, name) and self.agree({*layer, name}):
                yield from self._wider((*layer, name), agents[place:], width)


Layers = tuple[tuple[str, ...], ...]


def repaired(
    rules: SpaceRules,
    suggested: Sequence[Sequence[str]],
    aggregators: Sequence[str | None],
    ranking: Sequence[str],
) -> tuple[Layers, str | None] | None:
    """Return layers and an aggregator that satisfy ``rules``; None if there are none.

    Wanted seats that satisfy the rules are returned as they are. Otherwise the first aggregator
    for which layers exist is kept, with the best ranked of the wanted proposers that agree with
    it and with earlier layers; layers that are too narrow are filled with the best other agents.

    Args:
        rules: The constraints.
        suggested: Proposers per layer.
        aggregators: The wanted aggregator, then its possible replacements; None is no model.
        ranking: All agents that may be used, best first.
    """
    for aggregator in aggregators:
        layers = _seated(rules, suggested, aggregator, ranking)
        if layers is not None:
            return layers, aggregator
    return None


def _seated(
    rules: SpaceRules,
    suggested: Sequence[Sequence[str]],
    aggregator: str | None,
    ranking: Sequence[str],
) -> Layers | None:
    team = {*rules.must_include, *([] if aggregator is None else [aggregator])}
    if not rules.agree(team):
        return None
    layers: list[tuple[str, ...]] = []
    for number, names in enumerate(suggested):
        needed = rules.must_include if number == 0 else ()
        rest = (Counter(names) - Counter(needed)).elements() if needed else names
        more = sorted(rest, key=ranking.index)
        # One sample of each agent comes before a second sample of any.
        seats = [*more, *(list(ranking) * rules.max_samples)]
        allies, n_wanted = _allies(rules, team, seats, len(more))
        layer = _filled(rules, needed, allies, n_wanted)
        # Later layers can always be filled: the first layer's agents agree and are enough.
        if layer is None:
            return None
        layers.append(layer)
        team |= set(layer)
    return tuple(layers)


def _filled(
    rules: SpaceRules, layer: tuple[str, ...], seats: Sequence[str], n_wanted: int
) -> tuple[str, ...] | None:
    """Add the wanted seats (the first ``n_wanted``) while there is room, then others to min_width.

    An earlier seat is given up only if no layer is possible with it.
    """
    if not rules.never_together:
        return _filled_in_order(rules, layer, seats, n_wanted)
    for place, name in enumerate(seats):
        if len(layer) >= rules.min_width and place >= n_wanted:
            return layer
        if len(layer) + len(seats) - place < rules.min_width:
            return None
        if rules.has_room(layer, name):
            more, n_left = (*layer, name), max(0, n_wanted - place - 1)
            filled = _filled(rules, more, *_allies(rules, more, seats[place + 1 :], n_left))
            if filled is not None:
                return filled
    return layer if len(layer) >= rules.min_width else None


def _filled_in_order(
    rules: SpaceRules, layer: tuple[str, ...], seats: Sequence[str], n_wanted: int
) -> tuple[str, ...] | None:
    """Do as ``_filled`` if any two agents agree, so that no seat has to be given up."""
    for place, name in enumerate(seats):
        if len(layer) >= rules.min_width and place >= n_wanted:
            break
        if rules.has_room(layer, name):
            layer = (*layer, name)
    return layer if len(layer) >= rules.min_width else None


def _allies(
    rules: SpaceRules, team: Collection[str], seats: Sequence[str], n_wanted: int
) -> tuple[Sequence[str], int]:
    """Return the seats that agree with ``team``, and how many of the first ``n_wanted`` do."""
    if not rules.never_together:
        return seats, n_wanted
    kept = [rules.agree({*team, name}) for name in seats]
    return list(compress(seats, kept)), sum(kept[:n_wanted])


class Suggests(Protocol):
    """The suggestions of an Optuna trial, or of an object that replaces it."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """Return one of ``choices`` under a stable name."""
        ...

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        """Return an int in [low, high] under a stable name."""
        ...


@dataclass(frozen=True, slots=True)
class RandomSuggestions:
    """Suggests random choices; the kind is always ``layers``."""

    rng: random.Random

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """Return a random choice."""
        return "layers" if name == "kind" else self.rng.choice(choices)

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        """Return a random number in the range."""
        return self.rng.randint(low, high)


def one_of(trial: Suggests, name: str, choices: Sequence[str]) -> str:
    """Return one of the choices; a single choice makes no parameter of the trial."""
    return str(trial.suggest_categorical(name, choices)) if len(choices) > 1 else choices[0]


def without_tie_breaker(architecture: Architecture) -> Architecture:
    """Return a vote without its tie-breaker, which is not searched as scores determine it."""
    return (
        Architecture(architecture.layers, None, "vote")
        if architecture.combine == "vote"
        else architecture
    )


class Combining(Protocol):
    """The ways of the last step in a ``SearchSpace``."""

    @property
    def combines(self) -> Sequence[str]:
        """Kinds of last step that are searched."""
        ...

    @property
    def listed(self) -> Sequence[Architecture]:
        """Further architectures."""
        ...


def combine_features(space: Combining) -> tuple[str, ...]:
    """Return the kinds of last step with a feature of the surrogate: three, and others in use.

    Three are always there, as the number of features affects the weight of each.
    """
    named = {*space.combines, *(architecture.combine for architecture in space.listed)}
    return (*COMBINES[:3], *(name for name in COMBINES[3:] if name in named))


ORDERS: Final = ("name", "best_first", "best_last")
"""Reading orders: by name, or by the scores of the single agents."""

OWN_PROMPT: Final = "own"
"""Name in ``prompts`` of the seat's default prompt, which an architecture does not name."""


def order_of(choice: str, layer: Sequence[str], ranking: Sequence[str]) -> tuple[str, ...]:
    """Return the agents of ``layer`` in the order ``choice``; empty means by name."""
    if choice == "name":
        return ()
    names = sorted(set(layer), key=ranking.index)
    return tuple(names if choice == "best_first" else reversed(names))


def prompt_of(choice: str) -> str | None:
    """Return the name in an architecture of the prompt ``choice``."""
    return None if choice == OWN_PROMPT else choice


def provider(agent: Agent) -> str:
    """Return ``local``, the host of the agent's own endpoint, or its vendor.

    ``openai/NAME`` with an ``api_base`` is run by that host, and not by the named vendor.
    """
    if agent.is_local or agent.api_base is None:
        return agent.model.partition("/")[0]
    return urlsplit(agent.api_base).hostname or agent.api_base


def providers_of(agents: Iterable[Agent]) -> dict[str, str]:
    """Return the provider of each agent by the agent's name, as ``SearchSpace`` takes it."""
    return {agent.name: provider(agent) for agent in agents}


MOST_STEPS: Final = 30_000
"""Maximum number of steps of counting a space, which take half a second."""


@dataclass(frozen=True, slots=True)
class LastStepChoice:
    """One kind of last step: agents that may do it (None: no model is asked), and variants."""

    aggregators: tuple[str | None, ...]
    variants: int = 1


@dataclass(slots=True)
class SizeCounter:
    """Counts the layered architectures of a space.

    Args:
        rules: The constraints.
        ways: Choices of the last step.
        max_depth: Maximum number of proposer layers.
        orders: Orders in which a model may read the last layer.
        ranking: All agents, best first.
    """

    rules: SpaceRules
    ways: Sequence[LastStepChoice]
    max_depth: int
    orders: Sequence[str]
    ranking: Sequence[str]
    _known: dict[frozenset[str], int] = field(default_factory=dict)
    _steps: int = 0

    def count(self) -> int | None:
        """Return the number of architectures; None if counting would take too long."""
        try:
            return self._agreeing(frozenset(self.rules.agents))
        except _TooManyError:
            return None

    def _agreeing(self, agents: frozenset[str]) -> int:
        """Count the architectures of ``agents`` without a pair of ``never_together``.

        With an agent x of such a pair: the architectures without x, plus those without the agents
        that x avoids, minus those without both (inclusion and exclusion).
        """
        if agents not in self._known:
            pairs = [pair for pair in self.rules.never_together if set(pair) <= agents]
            if not pairs:
                self._known[agents] = self._stacks(agents)
            else:
                self._step(1)
                x = pairs[0][0]
                avoided = {name for pair in pairs if x in pair for name in pair} - {x}
                without = self._agreeing(agents - {x})
                beside = self._agreeing(agents - avoided)
                self._known[agents] = without + beside - self._agreeing(agents - avoided - {x})
        return self._known[agents]

    def _stacks(self, agents: frozenset[str]) -> int:
        first, later = self._n_layers(agents, is_first=True), self._n_layers(agents, is_first=False)
        plain = sum(first * later**before for before in range(self.max_depth))
        read = plain
        if len(self.orders) > 1 and any(way.aggregators != (None,) for way in self.ways):
            ends = self._n_read(agents, is_first=False) if self.max_depth > 1 else 0
            between = sum(first * later**before for before in range(self.max_depth - 1))
            read = self._n_read(agents, is_first=True) + between * ends
        total = 0
        for way in self.ways:
            if way.aggregators == (None,):
                total += plain
            else:
                total += read * way.variants * len(agents.intersection(way.aggregators))
        return total

    def _n_layers(self, agents: frozenset[str], *, is_first: bool) -> int:
        needed = self.rules.must_include if is_first else ()
        if not agents.issuperset(needed):
            return 0
        rules, widths = self.rules, slice(self.rules.min_width, self.rules.max_width + 1)
        cap = rules.max_per_provider
        groups = [agents] if cap is None else _grouped(agents, rules.provider_of)
        counts = [1]
        for group in groups:
            sizes = _sizes(group, needed, rules.max_samples, rules.max_width)
            counts = _times(counts, sizes if cap is None else sizes[: cap + 1], rules.max_width)
        return sum(counts[widths])

    def _n_read(self, agents: frozenset[str], *, is_first: bool) -> int:
        """Count pairs of a layer and an order in which it is read."""
        total = 0
        for layer in self.rules.layers(sorted(agents), is_first=is_first):
            self._step(1)
            total += n_orders(layer, self.orders, self.ranking)
        return total

    def _step(self, n: int) -> None:
        self._steps += n
        if self._steps > MOST_STEPS:
            raise _TooManyError


class _TooManyError(Exception):
    """The count takes too long."""


def n_orders(layer: Sequence[str], orders: Sequence[str], ranking: Sequence[str]) -> int:
    """Return how many of ``orders`` differ for ``layer``."""
    by_name = tuple(sorted(set(layer)))
    return len({order_of(order, by_name, ranking) or by_name for order in orders})


def _grouped(agents: Collection[str], provider_of: Mapping[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in agents:
        groups.setdefault(provider_of[name], []).append(name)
    return list(groups.values())


def _sizes(group: Collection[str], needed: Collection[str], most: int, widest: int) -> list[int]:
    """Return the number of multisets of ``group`` by size, each member at most ``most`` times."""
    counts = [1]
    for name in group:
        # A needed agent has at least one sample.
        own = [0 if name in needed else 1] + [1] * most
        counts = _times(counts, own, widest)
    return counts


def _times(left: Sequence[int], right: Sequence[int], widest: int) -> list[int]:
    product = [0] * min(len(left) + len(right) - 1, widest + 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right[: len(product) - i]):
            product[i + j] += a * b
    return product
