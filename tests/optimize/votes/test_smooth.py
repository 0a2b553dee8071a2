from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.errors import DataError
from moa_dspy.optimize.votes import Ballots, SmoothedVotes, smooth
from tests.optimize.votes.worlds import names, world


def reordered(ballots: Ballots, order: list[int], agents: tuple[str, ...]) -> Ballots:
    return Ballots(agents, ballots.codes[order], ballots.scores[order])


def test_every_vote_of_the_shortlist_is_there_once_best_agent_first() -> None:
    ballots = world(7, 40)
    votes = smooth(ballots, widths=(3, 4), seed=0, pseudo=400, shortlist=5)
    assert votes.ranking == ballots.ranked().agents
    best = votes.ranking[:5]
    wanted = [*combinations(best, 1), *combinations(best, 3), *combinations(best, 4)]
    assert list(votes.layers) == wanted
    assert votes.per_row.shape == (5 + 10 + 5, 40)
    assert votes.per_row.dtype == np.float32
    assert ((votes.per_row >= 0) & (votes.per_row <= 1)).all()


def test_widths_are_a_pair_with_both_ends_or_a_range() -> None:
    ballots = world(6, 20)

    def widths(given: range | tuple[int, int]) -> list[int]:
        votes = smooth(ballots, widths=given, seed=0, pseudo=40)
        return sorted({len(layer) for layer in votes.layers})

    assert widths((2, 3)) == [1, 2, 3]
    assert widths(range(2, 4)) == [1, 2, 3]
    assert widths(range(1, 8, 2)) == [1, 3, 5]
    assert widths((1, 1)) == widths((0, 0)) == [1]


@pytest.mark.parametrize(("n_agents", "shortlist"), [(4, 10), (4, 2), (18, 10), (18, 12)])
def test_widths_beyond_the_agents_are_no_error(n_agents: int, shortlist: int) -> None:
    votes = smooth(world(n_agents, 10), widths=(1, 20), seed=0, pseudo=20, shortlist=shortlist)
    width = min(n_agents, shortlist)
    assert len(votes.layers) == sum(comb(width, k) for k in range(1, width + 1))
    assert votes.layers[-1] == votes.ranking[:width]
    assert len(votes.ranking) == n_agents


def test_what_is_not_admitted_is_left_out_but_for_single_agents() -> None:
    asked: list[tuple[str, ...]] = []

    def admits(layer: tuple[str, ...]) -> bool:
        asked.append(layer)
        return "a0" not in layer

    votes = smooth(world(4, 10), widths=(2, 4), seed=0, pseudo=20, admits=admits)
    assert len(asked) == 6 + 4 + 1
    assert {layer for layer in votes.layers if "a0" in layer} == {("a0",)}
    assert len(votes.layers) == 4 + 3 + 1


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    first, again, other = (
        smooth(world(5, 30), widths=(1, 5), seed=s, pseudo=300) for s in (1, 1, 2)
    )
    assert (first.per_row == again.per_row).all()
    assert (first.per_row != other.per_row).any()


@settings(max_examples=30)
@given(st.permutations(range(6)), st.integers(0, 999))
def test_names_order_and_codes_do_not_matter(order: list[int], seed: int) -> None:
    # Unequal means, so that no tie needs the given order
    ballots = world(6, 30, seed=seed)
    ballots = Ballots(
        ballots.agents, ballots.codes, ballots.scores * (1 - np.arange(6)[:, None] * 1e-6)
    )
    new = ("z", "b", "y", "d", "x", "f")
    other = reordered(ballots, order, tuple(new[i] for i in order))
    other = Ballots(other.agents, np.where(other.codes < 0, -1, 90 - other.codes), other.scores)
    smoothed = smooth(ballots, widths=(1, 4), seed=3, pseudo=90)
    two = smooth(other, widths=(1, 4), seed=3, pseudo=90)
    called = dict(zip(ballots.agents, new, strict=True))
    assert two.layers == tuple(tuple(called[a] for a in layer) for layer in smoothed.layers)
    assert (smoothed.per_row == two.per_row).all()


def test_expected_scores_are_means_over_rows() -> None:
    per_row = np.array([[0, 1], [0.5, 1]], np.float32)
    votes = SmoothedVotes((("a",), ("b",)), per_row, per_row, ("a", "b"))
    assert votes.expected().tolist() == [0.5, 0.75]


def test_gains_and_their_errors_by_hand() -> None:
    # b - a is (1, 0, 1, 1) on recorded answers, variance 1/4, and half of it on redrawn ones:
    # these follow by 1/2, so of the sample there is 1/4 * 1/4 / 4. Both differ by 3/8, of which
    # luck explains 1/16 / 4 in squares: 9/64 - 1/64 = 1/8. a + b is always a: the model's part
    # is the mean of both, 1/16.
    recorded = np.array([[0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    redrawn = recorded * np.float32(0.5)
    votes = SmoothedVotes((("a",), ("b",), ("a", "b")), redrawn, recorded, ("a", "b"))
    gains, errors = votes.gains(("a",))
    assert gains.tolist() == [0, 0.375, 0]
    assert errors == pytest.approx([0, (1 / 64 + 1 / 16) ** 0.5, 0])
    assert votes.gains(("b", "a"))[0][2] == 0


@pytest.mark.parametrize("is_graded", [False, True])
def test_recorded_scores_are_those_of_the_ballots(is_graded: bool) -> None:
    ballots = world(8, 40)
    if is_graded:
        scores = np.random.default_rng(0).random(ballots.codes.shape)
        ballots = Ballots(ballots.agents, ballots.codes, scores)
    votes = smooth(ballots, widths=(1, 8), seed=0, pseudo=40)
    assert len(votes.layers) == 255
    for layer, scores in zip(votes.layers, votes.recorded, strict=True):
        assert scores == pytest.approx(ballots.vote(layer))


@pytest.mark.parametrize("incumbent", [(), ("a1", "a1"), ("a9",), ("a0", "a1", "a2")])
def test_an_incumbent_must_be_among_the_layers(incumbent: tuple[str, ...]) -> None:
    votes = smooth(world(3, 5), widths=(1, 2), seed=0, pseudo=5)
    with pytest.raises(DataError, match="one of the 6 smoothed votes of"):
        votes.gains(incumbent)


@pytest.mark.parametrize(("pseudo", "shortlist"), [(0, 10), (60, 0), (60, 16)])
def test_numbers_out_of_range_are_refused(pseudo: int, shortlist: int) -> None:
    with pytest.raises(DataError, match="`shortlist` in 1 to 15"):
        smooth(world(3, 5), widths=(1, 3), seed=0, pseudo=pseudo, shortlist=shortlist)


def test_an_agent_alone_keeps_about_its_recorded_score() -> None:
    ballots = world(8, 300)
    votes = smooth(ballots, widths=(1, 1), seed=0, pseudo=60_000)
    assert votes.expected() == pytest.approx(ballots.ranked().scores.mean(1), abs=0.01)


def test_luck_of_one_set_of_agents_over_its_equals_is_smoothed_away() -> None:
    # Twelve agents equally good at everything: any spread between votes of five is luck
    random = np.random.default_rng(5)
    hard = random.uniform(0.2, 0.95, 100)
    wrong = random.integers(1, 4, (12, 100))
    codes = np.where(random.random((12, 100)) < hard, 0, wrong).astype(np.int16)
    ballots = Ballots(names(12), codes, (codes == 0).astype(np.float64))
    votes = smooth(ballots, widths=(5, 5), seed=0, pseudo=20_000)
    five = [layer for layer in votes.layers if len(layer) == 5]
    recorded = np.array([ballots.vote(layer).mean() for layer in five])
    smoothed = votes.expected()[-len(five) :]
    assert smoothed.std() < 0.7 * recorded.std()
    assert smoothed.max() - smoothed.mean() < 0.7 * (recorded.max() - recorded.mean())
