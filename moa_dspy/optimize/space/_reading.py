"""In which orders a last step that asks a model may read the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ORDERS: Final = ("name", "best_first", "best_last")
"""By name, or by the scores of the single agents."""

OWN_PROMPT: Final = "own"
"""Among ``prompts``: the prompt that the seat has anyway, which an architecture does not name."""


def order_of(choice: str, layer: Sequence[str], ranking: Sequence[str]) -> tuple[str, ...]:
    """Return the agents of ``layer`` in the order that ``choice`` means; empty is by name."""
    if choice == "name":
        return ()
    names = sorted(set(layer), key=ranking.index)
    return tuple(names if choice == "best_first" else reversed(names))


def prompt_of(choice: str) -> str | None:
    """Return how an architecture names the prompt ``choice``."""
    return None if choice == OWN_PROMPT else choice
