"""Who makes the choices of a search space."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
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


def anonymous(one: Architecture) -> Architecture:
    """Forget who decides the ties of a vote: scores settle that, so it is no choice."""
    return Architecture(one.layers, None, "vote") if one.combine == "vote" else one
