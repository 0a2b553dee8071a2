"""The order in which rows are measured, and where a race looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from random import Random

from moa_dspy.errors import StudyError

N_BLOCKS = 5
"""Equal blocks, so four looks. At a fixed error of the whole race, 40 arms and 200 rows, arms that
are 5 to 55 points worse take 69 % of the rows with three blocks, 66 % with five, 66 % with ten."""
FEWEST_ROWS = 20
"""Rows below which nobody is stopped."""

_GOLDEN = (sqrt(5) - 1) / 2


def looks(n_rows: int) -> tuple[int, ...]:
    """Return after how many rows a race looks, ascending; the end is no look."""
    ends = (n_rows * block // N_BLOCKS for block in range(1, N_BLOCKS))
    return tuple(end for end in ends if end >= FEWEST_ROWS)


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
