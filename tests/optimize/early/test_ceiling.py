from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moa_dspy.optimize import early_facts as ceiling
from moa_dspy.optimize.early_facts import vote_ceiling
from moa_dspy.optimize.votes import Ballots


@st.composite
def ballots(draw: st.DrawFn) -> Ballots:
    n, rows = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    codes = rng.integers(-1, 3, (n, rows)).astype(np.int16)
    # An answer scores the same whoever gives it, and graded scores are scores too.
    worth = rng.choice([0.0, 0.25, 1.0], (3, rows))
    scores = np.where(codes >= 0, np.take_along_axis(worth, np.maximum(codes, 0), 0), 0.0)
    return Ballots(tuple("abcde"[:n]), codes, scores)


def best_vote(found: Ballots, width: int) -> float:
    """Return the best mean of any set's plurality, ties for its best agent, by loops."""
    best, found = 0.0, found.ranked()
    for k in range(1, min(width, len(found.agents)) + 1):
        for seats in combinations(range(len(found.agents)), k):
            columns = zip(found.codes[list(seats)].T, found.scores[list(seats)].T, strict=True)
            best = max(best, float(np.mean([plurality(c, s) for c, s in columns])))
    return best


def plurality(codes: NDArray[np.int16], scores: NDArray[np.float64]) -> float:
    given = [code for code in codes.tolist() if code >= 0]
    if not given:
        return 0.0
    most = max(map(given.count, given))
    tied = [score for code, score in zip(codes, scores, strict=True) if given.count(code) == most]
    return float(tied[0])


@settings(deadline=None, max_examples=150)
@given(ballots(), st.integers(1, 6))
def test_the_ceiling_is_that_of_the_best_set(found: Ballots, width: int) -> None:
    assert vote_ceiling(found, max_width=width) == pytest.approx(best_vote(found, width), abs=1e-6)


@settings(deadline=None, max_examples=150)
@given(ballots(), st.integers(1, 6))
def test_the_bound_for_many_agents_holds_for_every_set(found: Ballots, width: int) -> None:
    scores = np.where(found.codes >= 0, found.scores, 0.0)
    width = min(width, len(found.agents))
    bound = ceiling._bound(found, width)
    assert best_vote(found, width) <= bound + 1e-9
    assert bound <= ceiling._best_cover(scores, width) <= scores.max(0).mean() + 1e-9


def test_a_vote_cannot_choose_what_a_minority_knows() -> None:
    # a is right on rows 0 and 1, b on row 2, c on row 3; the wrong ones agree (answer x).
    answers = {"a": "rrxx", "b": "xxrx", "c": "xxxr"}
    found = Ballots.of(
        {name: [(answer,) for answer in row] for name, row in answers.items()},
        {name: [float(answer == "r") for answer in row] for name, row in answers.items()},
    )
    # Choosing gets 4 of 4. Two voters tie wherever they differ, and one of them decides all ties:
    # that is the better agent alone. Three voters are outvoted on every row.
    assert vote_ceiling(found, max_width=1) == 0.5
    assert vote_ceiling(found, max_width=3) == 0.5


@pytest.mark.parametrize("n_agents", [5, 40])
def test_on_free_text_no_vote_beats_the_best_agent(n_agents: int) -> None:
    # No two answers are equal. Of 40 agents there are too many sets, so their votes are bounded.
    rng = np.random.default_rng(0)
    codes = np.arange(n_agents)[:, None].repeat(300, axis=1).astype(np.int16)
    right = (rng.random(codes.shape) < 0.6).astype(np.float64)
    found = Ballots(tuple(f"a{i}" for i in range(n_agents)), codes, right)
    assert vote_ceiling(found, max_width=6) == pytest.approx(right.mean(1).max())


def test_many_sets_are_bounded_without_trying_them() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((60, 300)) < 0.02
    found = Ballots(
        tuple(f"a{i}" for i in range(60)),
        np.where(right, 0, 1).astype(np.int16),
        right.astype(np.float64),
    )
    # Choosing among all 60 gets 0.7; 5 agents with about 6 rows each know 0.17 at most.
    assert right.any(0).mean() > 0.65
    assert vote_ceiling(found, max_width=5) < 0.25
