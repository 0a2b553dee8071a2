"""Weights learned from recorded answers, and votes judged on rows that they do not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.optimize.votes import Ballots
from moa_dspy.optimize.votes.weights import (
    RIDGES,
    CrossFittedVotes,
    cross_fit,
    learned_weights,
)
from tests.optimize.votes.worlds import names, world


def told(codes: list[list[int]]) -> Ballots:
    """Agents whose answer 0 is right; -1 is none."""
    given = np.array(codes, np.int16)
    return Ballots(names(len(codes)), given, (given == 0).astype(float))


def test_weights_of_two_agents_by_hand() -> None:
    # They differ on four rows: a0 is right on three, a1 on one, and both are right on a fifth.
    # Log-odds of 4/5 and 2/5 are 1.386 and -0.405: x = +-0.896. With a huge ridge the
    # difference of the weights is 2 b x, and the likelihood 3 log s(d) + log s(-d) is greatest
    # at d = log 3 = 1.0986; nothing is learned of the level, which stays 1.
    ballots = told([[0, 0, 0, 1, 0], [1, 1, 1, 0, 0]])
    weights, ridge = learned_weights(ballots, ridge=1e6)
    assert ridge == 1e6
    assert weights[0] - weights[1] == pytest.approx(np.log(3), rel=0.02)
    assert weights.mean() == pytest.approx(1)


def test_weights_of_three_agents_by_hand() -> None:
    # Two copies and one that is right where they are not, and the other way round, equally
    # often: the sum of the copies' weights is the third's.
    codes = [[0, 1] * 20, [0, 1] * 20, [1, 0] * 20]
    weights, _ = learned_weights(told(codes), ridge=1e-3)
    assert weights[0] == pytest.approx(weights[1])
    assert weights[0] + weights[1] == pytest.approx(weights[2], rel=1e-3)
    assert weights.tolist() == pytest.approx([0.75, 0.75, 1.5], rel=1e-3)


def test_the_ridge_is_one_of_the_powers_of_two_and_more_rows_ask_for_less_of_it() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((4, 2_000)) < np.array([0.85, 0.6, 0.6, 0.4])[:, None]
    many = told(np.where(right, 0, rng.integers(1, 4, right.shape)).tolist())
    weights, ridge = learned_weights(many)
    assert ridge in RIDGES
    assert weights[0] > weights[1] > weights[3]
    assert weights[1] == pytest.approx(weights[2], abs=0.25)


@pytest.mark.parametrize(
    "codes",
    [
        [[-1, -1], [-1, -1]],  # all abstain
        [[1, 2], [1, 2]],  # nobody is ever right
        [[0, 0], [0, 0]],  # all agree
        [[0, 1]],  # one member
    ],
)
def test_where_nothing_is_to_be_learned_all_count_alike(codes: list[list[int]]) -> None:
    weights, _ = learned_weights(told(codes))
    assert weights.tolist() == [1.0] * len(codes)


def test_an_agent_that_never_answers_neither_helps_nor_breaks_the_fit() -> None:
    ballots = told([[0, 0, 1, 0] * 5, [0, 1, 0, 1] * 5, [-1] * 20])
    weights, _ = learned_weights(ballots)
    assert np.isfinite(weights).all()
    assert weights[0] > weights[1]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), graded=st.booleans())
def test_order_and_names_of_members_do_not_matter(seed: int, graded: bool) -> None:
    ballots = world(5, 40, seed=seed)
    if graded:
        grades = np.random.default_rng(seed).random((4, 40))
        scores = np.take_along_axis(grades, np.maximum(ballots.codes, 0).astype(np.intp), 0)
        ballots = replace(ballots, scores=np.where(ballots.codes >= 0, scores, 0.0))
    order = np.random.default_rng(seed).permutation(5)
    shuffled = Ballots(tuple("edcba"), ballots.codes[order], ballots.scores[order])
    weights, ridge = learned_weights(ballots)
    other, same = learned_weights(shuffled)
    assert ridge == same
    assert weights[order] == pytest.approx(other, abs=1e-6)


@given(seed=st.integers(0, 10_000), weight=st.sampled_from([0.1, 1.0, 2.5]))
def test_equal_weights_are_the_plain_vote(seed: int, weight: float) -> None:
    # But for ties: with weights the best member decides, then the first by name, which here
    # is the order of the ranking too.
    ballots = world(6, 30, seed=seed).ranked()
    ballots = Ballots(names(6), ballots.codes, ballots.scores)
    weights = dict.fromkeys(names(6), weight)
    weighted = ballots.vote(names(6), ranking=names(6), weights=weights)
    assert weighted.tolist() == ballots.vote(names(6), ranking=names(6)).tolist()


def test_weights_decide_a_vote_and_equal_sums_are_tied() -> None:
    # a0 says 1; a1 and a2 say 0, which is right.
    ballots = told([[1], [0], [0]])
    votes = [
        ballots.vote(names(3), ranking=names(3), weights={"a0": a, "a1": 0.1, "a2": 0.2})[0]
        for a in (0.29, 0.3, 0.31)
    ]
    # 0.1 + 0.2 is as much as 0.3, and the best member decides.
    assert votes == [1.0, 0.0, 0.0]


def admit_all(members: tuple[str, ...]) -> bool:
    return True


def test_a_row_is_judged_by_votes_that_do_not_know_it() -> None:
    ballots = world(5, 40, seed=3)
    found = cross_fit(
        ballots, widths=(2, 3), seed=0, admits=admit_all, admits_weighted=admit_all, columns=400
    )
    best = next(i for i, vote in enumerate(found.votes) if len(vote) == 1)
    for part, fold in enumerate(found.folds):
        for k in range(10):
            inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            leader = ballots.take(inside).ranked().agents[0]
            scores = ballots.scores[ballots.agents.index(leader), outside]
            assert found.recorded[part, best, outside].tolist() == scores.tolist()


def test_no_two_votes_are_alike_and_weighted_ones_may_be_as_wide_as_the_pool() -> None:
    ballots = world(6, 60, seed=1)
    found = cross_fit(
        ballots, widths=(2, 3), seed=0, admits=admit_all, admits_weighted=admit_all, columns=300
    )
    assert len({tuple(sorted(vote.items())) for vote in found.votes}) == len(found.votes)
    equal = [vote for vote in found.votes if len(set(vote.values())) == 1]
    assert max(map(len, equal)) == 3
    assert max(map(len, found.votes)) == 6
    assert all(weight > 0 for vote in found.votes for weight in vote.values())


def weighted_votes(widths: tuple[int, int], n_agents: int) -> list[dict[str, float]]:
    found = cross_fit(
        world(n_agents, 80, seed=4),
        widths=widths,
        seed=0,
        admits=admit_all,
        admits_weighted=admit_all,
        columns=400,
    )
    return [dict(vote) for vote in found.votes if len(set(vote.values())) > 1]


def test_the_mean_of_the_two_votes_with_learned_weights_is_a_way_too() -> None:
    few, _, all_of_them, _, mean = weighted_votes((2, 3), 6)
    assert (len(few), len(all_of_them)) == (3, 6)
    # Weights of the three best sum to 3 and those of all to 6: half of each vote's share, times 6.
    assert sum(few.values()) == pytest.approx(3, abs=0.02)
    assert sum(all_of_them.values()) == pytest.approx(6, abs=0.03)
    by_hand = {name: few.get(name, 0.0) + weight / 2 for name, weight in all_of_them.items()}
    assert mean == pytest.approx(by_hand, abs=0.03)


def test_where_the_best_are_all_agents_there_is_one_vote_of_each_kind() -> None:
    learned, halfway = weighted_votes((2, 4), 4)
    assert halfway == pytest.approx({name: (w + 1) / 2 for name, w in learned.items()}, abs=0.01)


def test_votes_keep_to_what_is_admitted() -> None:
    ballots = world(5, 30, seed=2)
    best, *_ = ballots.ranked().agents

    def without_the_best(members: tuple[str, ...]) -> bool:
        return len(members) == 1 or best not in members

    found = cross_fit(
        ballots,
        widths=(2, 4),
        seed=0,
        admits=without_the_best,
        admits_weighted=without_the_best,
        columns=300,
    )
    assert any(len(vote) > 1 for vote in found.votes)
    assert not any(best in vote for vote in found.votes if len(vote) > 1)


def test_too_few_rows_learn_no_weights() -> None:
    found = cross_fit(
        world(3, 9), widths=(2, 3), seed=0, admits=admit_all, admits_weighted=admit_all, columns=90
    )
    assert all(len(set(vote.values())) == 1 for vote in found.votes)


def test_learned_weights_are_worth_more_than_equal_ones_where_agents_differ() -> None:
    # One agent is right on 85 % of rows and four on 45 %, all with the same few wrong answers.
    rng = np.random.default_rng(5)
    right = rng.random((5, 300)) < np.array([0.85, *[0.45] * 4])[:, None]
    ballots = told(np.where(right, 0, rng.integers(1, 3, right.shape)).tolist())
    found = cross_fit(
        ballots, widths=(5, 5), seed=0, admits=admit_all, admits_weighted=admit_all, columns=6_000
    )
    means = {
        "equal" if len(set(vote.values())) == 1 else "weighted": float(score)
        for vote, score in zip(found.votes, found.smoothed.mean(1), strict=True)
        if len(vote) == 5
    }
    assert means["weighted"] > means["equal"]


def test_the_error_of_a_gain_by_hand() -> None:
    # Recorded gaps 1, 0, 1, 1 (variance 1/4) and half of each on redrawn answers: these follow
    # them by 1/2, so of the sample there is 1/4 * 1/4 / 4. Both differ by 3/8 on average, of
    # which luck explains 1/16 / 4 in squares: the model's part is 9/64 - 1/64 = 1/8.
    recorded = np.array([[0.0, 0, 0, 0], [1, 0, 1, 1]])
    found = CrossFittedVotes(
        votes=({"a": 1.0}, {"b": 1.0}),
        smoothed=recorded / 2,
        recorded=recorded[None],
        folds=np.zeros((1, 4), np.intp),
        ranking=("a", "b"),
    )
    gains, errors = found.gains(0)
    assert gains.tolist() == [0.0, 0.375]
    assert errors.tolist() == pytest.approx([0.0, (1 / 64 + 1 / 8) ** 0.5])


def test_gains_that_were_never_seen_have_the_error_of_the_model_alone() -> None:
    same = np.zeros((2, 12))
    votes = ({"a": 1.0}, {"b": 1.0})
    found = CrossFittedVotes(votes, same, same[None], np.zeros((1, 12), np.intp), ("a", "b"))
    assert found.gains(1)[1].tolist() == [0.0, 0.0]
