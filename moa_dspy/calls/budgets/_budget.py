"""What a study may spend, and what it has spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from moa_dspy.errors import StudyError

LIMITS = ("calls", "tokens", "usd", "seconds")


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits of a study; None is no limit.

    Attributes:
        calls: Calls really made; stored answers are free.
        tokens: Prompt and completion tokens of the calls made.
        usd: By the pool's prices.
        seconds: Wall time from the first call on, of all workers together and of runs before
            a resume too; while nobody works on the study it stands still.

    Raises:
        StudyError: If a limit is not positive.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise StudyError(f"`budget.{name}` must be positive, but got {value}.")


@dataclass(frozen=True, slots=True)
class Spending:
    """What was really spent: ``made`` calls were paid for, ``reused`` ones were not."""

    made: int = 0
    reused: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """An upper bound of what one call may use.

    Attributes:
        tokens: Bytes of the request, and the longest answer.
        usd: Their price.
        is_bounded: False if the request sets no longest answer: then there is no bound.
    """

    tokens: int = 0
    usd: float = 0.0
    is_bounded: bool = True


@dataclass(frozen=True, slots=True)
class Totals:
    """What is spent with what calls in flight, or of a process that died, may have spent."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0


class Book(Protocol):
    """Where a ledger writes: the memory of one process, or a store that workers share.

    Safe for threads. What is reserved is charged until it is settled.
    """

    def spending(self) -> Spending:
        """Return what was spent, calls in flight not included."""
        ...

    def totals(self) -> Totals:
        """Return what counts against a budget, calls in flight included."""
        ...

    def reserve(
        self, estimate: Estimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        """Reserve room for one call, all at once, or return None if it goes beyond a limit.

        Args:
            estimate: Of the call.
            limits: By name, of ``totals`` with the call; no name, no limit.
            key: Of the call, by which its cost is found if this process dies.
        """
        ...

    def settle(self, ticket: str, spent: Spending) -> None:
        """Replace a reservation by what was spent; without effect on one that is settled."""
        ...

    def add(self, spent: Spending) -> None:
        """Count what was spent elsewhere."""
        ...
