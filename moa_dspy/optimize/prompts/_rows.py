"""The rows of prompt optimisation: what tunes, what decides, what tests share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from moa_dspy.data import find_overlap
from moa_dspy.errors import DataError
from moa_dspy.optimize.rows import with_ids


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows with ids; no id comes twice, and no question is in two of the three.

    Attributes:
        train: The optimizer's.
        val: The guard's.
        test: May be empty.

    Raises:
        DataError: If ``train`` or ``val`` is empty, an id comes twice, or inputs overlap.
    """

    train: tuple[dspy.Example, ...]
    val: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...] = ()

    def __post_init__(self) -> None:
        named = {"trainset": self.train, "valset": self.val, "testset": self.test}
        for name in ("trainset", "valset"):
            if not named[name]:
                raise DataError(f"`{name}` must have at least one row, but is empty.")
        places: dict[str, str] = {}
        for name, rows in named.items():
            for row in rows:
                if row.id in places:
                    raise DataError(f"Id {row.id!r} is in {places[row.id]} and again in {name}.")
                places[row.id] = name
        for one, other in (("trainset", "valset"), ("trainset", "testset"), ("valset", "testset")):
            if pairs := find_overlap(named[one], named[other]):
                first, second = pairs[0]
                raise DataError(
                    f"`{one}` and `{other}` overlap: {first!r} and {second!r} have the same inputs."
                )

    @classmethod
    def of(
        cls,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example],
        testset: Sequence[dspy.Example] | None,
    ) -> PromptRows:
        """Name the rows and check them."""
        given = (("train", trainset), ("val", valset), ("test", testset or ()))
        return cls(**{name: tuple(with_ids(rows, name)) for name, rows in given})
