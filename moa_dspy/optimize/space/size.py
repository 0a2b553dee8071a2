"""The number of different architectures of a space, counted without listing them where possible."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from moa_dspy.optimize.space.rules import SpaceRules, order_of

MOST_STEPS: Final = 30_000
"""Layers listed, or sets of agents tried, after which a space is not counted: half a second."""


@dataclass(frozen=True, slots=True)
class LastStepChoice:
    """One way of the last step: who may do it (None: no model is asked), in how many variants."""

    aggregators: tuple[str | None, ...]
    variants: int = 1


@dataclass(slots=True)
class Counter:
    """Counts the layered architectures of a space.

    Args:
        rules: To be kept.
        ways: Of the last step.
        max_depth: Most proposer layers.
        orders: In which the last layer may be read by a model.
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
        """Return the number; None where counting would take too long."""
        try:
            return self._agreeing(frozenset(self.rules.agents))
        except _TooManyError:
            return None

    def _agreeing(self, agents: frozenset[str]) -> int:
        """Count the architectures of ``agents`` that hold no pair that is never together.

        With an agent x of such a pair: those without x, and those with x, which are without
        all that x avoids, less those of them without x.
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
        found = [1]
        for group in groups:
            sizes = _sizes(group, needed, rules.max_samples, rules.max_width)
            found = _times(found, sizes if cap is None else sizes[: cap + 1], rules.max_width)
        return sum(found[widths])

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
    """Counting takes too long."""


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
    """Return the number of multisets of ``group`` by size, each member ``most`` times at most."""
    found = [1]
    for name in group:
        # A needed agent has at least one sample.
        own = [0 if name in needed else 1] + [1] * most
        found = _times(found, own, widest)
    return found


def _times(left: Sequence[int], right: Sequence[int], widest: int) -> list[int]:
    product = [0] * min(len(left) + len(right) - 1, widest + 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right[: len(product) - i]):
            product[i + j] += a * b
    return product
