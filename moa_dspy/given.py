"""LMs that were given as objects become agents with names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.pool import Pool


def from_parts(
    layers: Sequence[Sequence[Any]], aggregator: Any, pool: Pool | None
) -> tuple[Architecture, Pool]:
    """Name LMs that were given as objects, equal objects alike, and build a pool of them."""
    if aggregator is None:
        raise ArchitectureError("`architecture`, or `layers` and `aggregator`, must be given.")
    given = [*(lm for layer in layers for lm in layer), aggregator]
    if all(isinstance(name, str) for name in given):
        if pool is None:
            raise ArchitectureError("`pool` must be given with agent names.")
        return Architecture(tuple(map(tuple, layers)), aggregator), pool
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
    return Architecture(named, names[id(aggregator)]), Pool.from_lms(lms)
