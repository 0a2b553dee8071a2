"""Three splits from what an optimizer is given."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import sqrt
from random import Random

import dspy

from moa_dspy.data import Splits
from moa_dspy.errors import DataError, StudyError


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


_GOLDEN = (sqrt(5) - 1) / 2


def balanced_order(scores: Mapping[str, Sequence[float]], *, seed: int) -> tuple[int, ...]:
    """Return places of rows, each once, such that every prefix has about the same difficulty.

    The difficulty of a row is the mean score of the single agents. Rows sorted by it are drawn
    along a golden-ratio sequence: of any run of neighbours in difficulty, a prefix holds its
    share of the rows up to a number that grows like log n (Kuipers & Niederreiter 1974, ch. 2),
    so no number of strata has to be chosen. Only single agents are looked at, all in the same
    way, and no row is left out: the order favours no architecture.

    Args:
        scores: Of each agent on the rows, in the rows' order. An agent with fewer rows than the
            others does not count: its rows would look harder, or easier, than the rest.
        seed: Breaks ties between equally difficult rows, and where the sequence starts.

    Raises:
        StudyError: If there is no score.
    """
    n_rows = max(map(len, scores.values()), default=0)
    if n_rows == 0:
        raise StudyError("Rows can only be ordered by the scores of at least one single agent.")
    whole = [values for _, values in sorted(scores.items()) if len(values) == n_rows]
    rng = Random(f"blocks-{seed}")
    means = [round(sum(column) / len(whole), 12) for column in zip(*whole, strict=True)]
    ties = rng.sample(range(n_rows), n_rows)
    by_difficulty = sorted(range(n_rows), key=lambda row: (means[row], ties[row]))
    start = rng.random()
    places = {row: (start + rank * _GOLDEN) % 1.0 for rank, row in enumerate(by_difficulty)}
    return tuple(sorted(range(n_rows), key=places.__getitem__))
