"""Three splits from what an optimizer is given."""

from __future__ import annotations

import random
from collections.abc import Sequence

import dspy

from moa_dspy.data import Splits
from moa_dspy.errors import DataError


def make_splits(
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None,
    testset: Sequence[dspy.Example] | None,
    *,
    seed: int,
) -> Splits:
    """Return train, val and test; what is missing is cut from what is there, by seed.

    Without a ``valset``, half of the train rows stay and a quarter each becomes val
    and test; without a ``testset``, half of val is kept back for it.

    Raises:
        DataError: If rows are too few, share an id, or occur in two splits.
    """
    train, val, test = list(trainset), list(valset or ()), list(testset or ())
    rng = random.Random(f"splits-{seed}")
    if valset is None:
        rng.shuffle(train)
        n = len(train) // 4 if testset is None else len(train) // 2
        val, train = train[:n], train[n:]
        if testset is None:
            test, train = train[:n], train[n:]
    elif testset is None:
        rng.shuffle(val)
        test, val = val[: len(val) // 2], val[len(val) // 2 :]
    named = {"train": train, "val": val, "test": test}
    return Splits(**{name: tuple(with_ids(rows, name)) for name, rows in named.items()})


def with_ids(rows: Sequence[dspy.Example], split: str) -> list[dspy.Example]:
    """Return copies of the rows that each have a text as id; the split's name is part of new ones.

    Raises:
        DataError: If a row is no example, or has no inputs.
    """
    named = []
    for number, row in enumerate(rows):
        if not isinstance(row, dspy.Example):
            raise DataError(f"Row {number} of {split} must be a dspy.Example, but is {row!r}.")
        has_id = row.get("id", None) is not None
        try:
            inputs = row.inputs().keys()
        except ValueError as error:
            raise DataError(
                f"Row {number} of {split} has no inputs; set them with `.with_inputs(...)`."
            ) from error
        copy = row.copy(id=str(row.id) if has_id else f"{split}-{number}")
        named.append(copy.with_inputs(*inputs))
    return named
