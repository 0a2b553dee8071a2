"""The best architecture of a world, by its true surface."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace

N_STARTS = 4
"""Per depth."""

Surface = Callable[[Architecture], float]
Layers = list[tuple[str, ...]]


def best_of(space: SearchSpace, surface: Surface, seed: int) -> tuple[Architecture, float]:
    """Return the best layered architecture of ``surface``, and its value.

    A climb exchanges one whole layer, or the last step, for the best there is, until nothing
    helps; the best of several climbs per depth goes on with the last layer and the last step at
    once. That finds the optimum where earlier layers and the last step add up.
    """
    rng, layers = random.Random(f"optimum-{seed}"), list(space.layers())
    found = []
    for depth in range(1, space.max_depth + 1):
        starts = [
            Architecture(tuple(rng.choices(layers, k=depth)), None, "vote") for _ in range(N_STARTS)
        ]
        best = max((_climbed(start, space, layers, surface) for start in starts), key=surface)
        ends = (end for layer in layers for end in _ends(best, layer, space))
        found.append(_climbed(max((best, *ends), key=surface), space, layers, surface))
    return max(((arch, surface(arch)) for arch in found), key=lambda pair: pair[1])


def _climbed(
    arch: Architecture, space: SearchSpace, layers: Layers, surface: Surface
) -> Architecture:
    while True:
        value = surface(arch)
        for place in range(arch.depth):
            before, after = arch.layers[:place], arch.layers[place + 1 :]
            # Whoever is read first may not sit in another layer.
            bare = replace(arch, order=())
            tries = (replace(bare, layers=(*before, layer, *after)) for layer in layers)
            arch = max((arch, *tries), key=surface)
        arch = max((arch, *_ends(arch, arch.layers[-1], space)), key=surface)
        if surface(arch) <= value:
            return arch


def _ends(arch: Architecture, layer: tuple[str, ...], space: SearchSpace) -> Iterator[Architecture]:
    """Yield ``arch`` with another last layer and every last step."""
    layers = (*arch.layers[:-1], layer)
    yield Architecture(layers, None, "vote")
    for writer in space.combining_agents("synthesize"):
        bare = Architecture(layers, writer)
        yield from (replace(bare, order=space.reading_order(name, bare)) for name in space.orders)
