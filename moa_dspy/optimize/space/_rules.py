"""What a searched layered architecture must keep to; no single agent or listed one has to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """The constraints of a search space.

    Attributes:
        agents: Who may sit in a searched architecture.
        min_width: Fewest proposers of a layer.
        max_width: Most proposers of a layer.
        max_samples: Most samples of one agent in a layer.
        must_include: Who proposes in every first layer.
        never_together: Pairs of whom one architecture holds one at most, in any seats.
        provider_of: The provider of each agent; read only with ``max_per_provider``.
        max_per_provider: Most proposers of one provider in a layer; None is no limit.
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
        """Whether ``names`` hold no pair that is never together."""
        return not any(a in names and b in names for a, b in self.never_together)

    def has_room(self, layer: Sequence[str], name: str) -> bool:
        """Whether ``layer`` may take one sample more of ``name``."""
        if len(layer) >= self.max_width or layer.count(name) >= self.max_samples:
            return False
        if self.max_per_provider is None:
            return True
        same = [one for one in layer if self.provider_of[one] == self.provider_of[name]]
        return len(same) < self.max_per_provider

    def allow(self, layers: Sequence[Sequence[str]], aggregator: str | None) -> bool:
        """Whether an architecture of these seats may be searched."""
        return all(map(self._is_layer, layers)) and self.demand(layers, aggregator)

    def demand(self, layers: Sequence[Sequence[str]], aggregator: str | None) -> bool:
        """Whether these seats keep to what was demanded of members, whatever their number."""
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
            # Names come in the order of ``agents``, so that no layer is met twice.
            if self.has_room(layer, name) and self.agree({*layer, name}):
                yield from self._wider((*layer, name), agents[place:], width)
