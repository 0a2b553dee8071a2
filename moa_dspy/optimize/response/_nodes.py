from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache

from moa_dspy.architecture import Architecture


@lru_cache(maxsize=100_000)
def nodes_of(one: Architecture) -> frozenset[Hashable]:
    """Return every call of a question: who is asked, as which sample, having read what."""
    read: tuple[Hashable, ...] = ()
    found: set[Hashable] = set()
    for layer in one.layers:
        read = tuple((name, layer[:seat].count(name), read) for seat, name in enumerate(layer))
        found.update(read)
    if not one.layers:
        found.add((str(one.aggregator), 0, ()))
    elif one.aggregator_calls_a_model:
        parents = tuple(read[seat] for seat in one.reading)
        found.add((one.aggregator, 0, parents, one.combine, one.prompt))
    return frozenset(found)
