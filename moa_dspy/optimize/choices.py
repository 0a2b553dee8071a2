"""Who makes the choices of a search space, and how many multisets there are to choose."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Protocol


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
