"""Pools and tables at the edge of what a study may meet; a warning is an error in these tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.optimize.votes import Ballots, SmoothedVotes, smooth
from tests.optimize.votes.worlds import names, world


def smoothed(codes: object, scores: object = None, pseudo: int = 600) -> SmoothedVotes:
    table = np.array(codes, np.int16)
    values = (table == 0).astype(np.float64) if scores is None else np.array(scores, np.float64)
    ballots = Ballots(names(len(table)), table, values)
    return smooth(ballots, widths=(1, 7), seed=0, pseudo=pseudo)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(-1, 6),
    st.sampled_from(["codes", "random", "zeros", "ones"]),
    st.integers(0, 9999),
)
def test_nothing_but_scores_comes_out_of_any_table(
    n_agents: int, n_rows: int, largest_code: int, scored: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(-1, largest_code + 1, (n_agents, n_rows))
    scores = {
        "codes": (codes == 0).astype(np.float64),
        "random": random.random(codes.shape),
        "zeros": np.zeros(codes.shape),
        "ones": np.ones(codes.shape),
    }[scored]
    votes = smoothed(codes, scores, pseudo=50)
    assert len(votes.layers) == 2**n_agents - 1
    assert ((votes.per_row >= 0) & (votes.per_row <= 1)).all()
    gains, errors = votes.gains(votes.layers[-1])
    assert (np.isfinite(gains) & np.isfinite(errors) & (errors >= 0)).all()
    assert (gains[-1], errors[-1]) == (0, 0)


def test_one_agent_is_its_only_vote_and_keeps_its_answers() -> None:
    votes = smoothed([[0, 0, 1, -1]])
    assert votes.layers == (("a0",),)
    # Alone on every row, it is redrawn to a lone answer that scores its mean, 2 of 3 spoken,
    # or with chance 1/4 to none: 1/2 x recorded + 1/2 x 3/4 x 2/3
    assert votes.per_row[0] == pytest.approx([0.75, 0.75, 0.25, 0.25], abs=0.12)
    assert [a.tolist() for a in votes.gains(("a0",))] == [[0], [0]]


def test_two_agents_vote_as_the_better_one_where_both_always_answer() -> None:
    # Two different answers are a tie, and equal ones are equal
    votes = smoothed([[0, 0, 0, 1, 0], [0, 1, 0, 0, 1]])
    gains, errors = votes.gains(("a0", "a1"))
    assert votes.layers == (("a0",), ("a1",), ("a0", "a1"))
    assert (gains[0], errors[0]) == (0, 0)
    assert gains[1] < 0


def test_of_copies_every_vote_is_worth_the_same() -> None:
    votes = smoothed([[0, 1, 0, 2]] * 5)
    assert (votes.per_row == [1, 0, 1, 0]).all()
    gains, errors = votes.gains(votes.ranking)
    assert not gains.any()
    assert not errors.any()


def test_where_nothing_is_right_nothing_is_expected() -> None:
    ballots = world(5, 30, missing=0)
    assert not smoothed(ballots.codes, np.zeros((5, 30))).per_row.any()


def test_where_everything_is_right_everything_is_expected() -> None:
    ballots = world(5, 30, missing=0)
    assert (smoothed(ballots.codes, np.ones((5, 30))).per_row == 1).all()


def test_an_agent_that_never_answers_scores_nothing_and_sways_no_vote() -> None:
    ballots = world(4, 60)
    codes = np.concatenate([ballots.codes, np.full((1, 60), -1)])
    votes = smoothed(codes)
    row = {layer: votes.per_row[i] for i, layer in enumerate(votes.layers)}
    assert votes.ranking[-1] == "a4"
    assert not row["a4",].any()
    for layer in votes.layers:
        if "a4" in layer and len(layer) > 1:
            assert (row[layer] == row[layer[:-1]]).all()


def test_where_no_two_agents_ever_agree_a_vote_is_its_best_member() -> None:
    # Free text: every answer is its own, and graded
    scores = np.random.default_rng(0).random((5, 40))
    votes = smoothed(np.arange(5)[:, None].repeat(40, 1), scores)
    row = {layer: votes.per_row[i] for i, layer in enumerate(votes.layers)}
    assert all((row[layer] == row[layer[:1]]).all() for layer in votes.layers)
    gains, _ = votes.gains(votes.ranking)
    assert gains.max() == 0


@pytest.mark.parametrize(("n_agents", "n_rows"), [(12, 3), (18, 1), (20, 40)])
def test_many_agents_and_few_rows(n_agents: int, n_rows: int) -> None:
    ballots = world(n_agents, n_rows)
    votes = smoothed(ballots.codes)
    assert len(votes.layers) == 967
    assert len(votes.ranking) == n_agents
    gains, errors = votes.gains(votes.ranking[:7])
    assert np.isfinite(gains).all()
    assert np.isfinite(errors).all()


def test_one_row_shows_no_error_so_the_greatest_is_stated() -> None:
    votes = smoothed([[0], [1], [0]])
    gains, errors = votes.gains(("a0",))
    assert errors.tolist() == [0, 1, 1, 1, 1, 1, 1]
    # No gain of at most 1 beats 1.645 such errors
    assert (gains - 1.645 * errors).argmax() == 0


def test_more_rows_than_pseudo_rows_are_redrawn_once_each() -> None:
    votes = smoothed(world(3, 50).codes, pseudo=7)
    assert set(np.unique(votes.per_row)) <= {0.0, 1.0}
