"""The waves of a vote over many rows at once, and what a question to it costs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from moa_dspy.optimize import SearchSpace
from moa_dspy.optimize.metric import Outcome
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.singles import SingleAgents
from moa_dspy.optimize.votes.ballots import waves_of
from moa_dspy.waves import Waves


def one_by_one(answers: list[int]) -> list[int]:
    """Return the wave of each member as ``Waves`` has it; -1 is not asked."""
    n = len(answers)
    waves, said = Waves((1,) * n, tuple(range(n))), dict[int, int | None]()
    found, number = [-1] * n, 0
    while due := waves.due(said):
        for place in due:
            found[place] = number
            said[place] = None if answers[place] < 0 else answers[place]
        number += 1
    return found


def test_waves_of_many_rows_are_those_of_each() -> None:
    rng = random.Random(0)
    for n in range(1, 8):
        rows = [[rng.choice([-1, 0, 0, 1, 2]) for _ in range(n)] for _ in range(300)]
        found = waves_of(np.array(rows, np.int16).T)
        assert found.T.tolist() == [one_by_one(row) for row in rows]


def test_three_that_agree_or_not() -> None:
    # Two are asked; the third only where both answer and differ: one alone wins its ties.
    codes = np.array([[0, 0, -1], [0, 1, 0], [1, 1, 0]], np.int16)
    assert waves_of(codes).T.tolist() == [[0, 0, -1], [0, 0, 1], [0, 0, -1]]


def singles(limits: Limits, **options: object) -> SingleAgents:
    """Three agents on two rows: a and b agree on the first row only."""

    def of(seconds: float, *answers: str) -> list[Outcome]:
        return [
            Outcome(
                float(answer == "r"), (answer,), calls=1, usd=1.0, seconds=seconds, ballot=(answer,)
            )
            for answer in answers
        ]

    outcomes = {"a": of(1.0, "r", "r"), "b": of(2.0, "r", "x"), "c": of(4.0, "x", "x")}
    space = SearchSpace(("a", "b", "c"), combines=("vote",), max_depth=1)
    return SingleAgents(outcomes, space, limits, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "options", "may"),
    [
        # Waves: 2 s, then 2 + 4 = 6 s: 4 on average, where all at once would take 4 each time.
        (Limits(seconds=4.0), {}, True),
        (Limits(seconds=3.9), {}, False),
        # 2 and 3 calls.
        (Limits(calls=2.5), {}, True),
        (Limits(calls=2.4), {}, False),
        (Limits(usd=2.5), {}, True),
        (Limits(usd=2.4), {}, False),
        (Limits(calls=2.5), {"stops_early": False}, False),
        (Limits(seconds=4.0), {"stops_early": False}, True),
        # No layer is waited for beyond its deadline: 2 and 5 s.
        (Limits(seconds=3.5), {"deadline_seconds": 5.0}, True),
        (Limits(seconds=3.4), {"deadline_seconds": 5.0}, False),
    ],
)
def test_limits_count_who_is_asked_and_the_waves(
    limits: Limits, options: dict[str, object], may: bool
) -> None:
    assert singles(limits, **options).admits(("a", "b", "c")) == may
