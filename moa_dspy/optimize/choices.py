"""Who makes the choices of a search space, and what there is to choose."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb
from typing import Any, Protocol

from moa_dspy.architecture import Architecture


class Suggests(Protocol):
    """What an Optuna trial can do; a plain mapping of choices can stand in for it."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """Return one of ``choices`` under a stable name."""
        ...

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        """Return an int in [low, high] under a stable name."""
        ...


@dataclass(frozen=True, slots=True)
class Dice:
    """Suggests at random; the kind is already decided."""

    rng: random.Random

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """Return any choice."""
        return "layers" if name == "kind" else self.rng.choice(list(choices))

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        """Return any number in range."""
        return self.rng.randint(low, high)


def multisets(kinds: int, size: int, most: int) -> int:
    """Count multisets of ``size`` from ``kinds`` things, each at most ``most`` times."""
    return sum(
        (-1) ** k * comb(kinds, k) * comb(kinds + size - k * (most + 1) - 1, kinds - 1)
        for k in range(kinds + 1)
        if size - k * (most + 1) >= 0
    )


def each_multiset(kinds: Sequence[str], size: int, most: int) -> Iterator[tuple[str, ...]]:
    """Yield what ``multisets`` counts."""
    for chosen in combinations_with_replacement(kinds, size):
        if all(chosen.count(kind) <= most for kind in chosen):
            yield chosen


def anonymous(one: Architecture) -> Architecture:
    """Forget who decides the ties of a vote: scores settle that, so it is no choice."""
    return Architecture(one.layers, None, "vote") if one.combine == "vote" else one
