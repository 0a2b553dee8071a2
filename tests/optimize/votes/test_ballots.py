from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import DataError
from moa_dspy.optimize.votes import Ballots
from tests.optimize.votes.worlds import names, plain_vote, world

YES, NO = ("yes",), ("no",)


def test_equal_answers_of_a_row_get_equal_codes() -> None:
    ballots = Ballots.of(
        {"a": [YES, None], "b": [NO, YES], "c": [YES, YES]},
        {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 1.0]},
    )
    assert ballots.agents == ("a", "b", "c")
    assert ballots.codes.tolist() == [[0, -1], [1, 0], [0, 0]]
    assert ballots.scores.tolist() == [[1, 0], [0, 1], [1, 1]]


def test_answers_of_several_fields_are_equal_when_all_fields_are() -> None:
    answers = {"a": [("x", "y")], "b": [("x", "z")], "c": [("x", "y")]}
    assert Ballots.of(answers, {n: [0.0] for n in answers}).codes.ravel().tolist() == [0, 1, 0]


def test_the_best_mean_ranks_first_and_the_given_order_breaks_ties() -> None:
    scores = {"low": [0.0, 0.0], "late": [0.0, 1.0], "best": [1.0, 1.0], "last": [1.0, 0.0]}
    ballots = Ballots.of({name: [YES, NO] for name in scores}, scores)
    assert ballots.ranked().agents == ("best", "late", "last", "low")
    assert ballots.ranked().scores.tolist() == [[1, 1], [0, 1], [1, 0], [0, 0]]


def test_rows_can_be_taken_in_any_order() -> None:
    ballots = world(3, 10)
    some = ballots.take(np.array([7, 2]))
    assert some.agents == ballots.agents
    assert (some.codes == ballots.codes[:, [7, 2]]).all()
    assert (some.scores == ballots.scores[:, [7, 2]]).all()


def test_a_tie_goes_to_the_best_ranked_member_of_the_tied() -> None:
    # yes and no have two votes each; c alone is best of all but not among the tied
    ballots = Ballots.of(
        {"a": [YES, NO], "b": [NO, YES], "c": [("?",), YES], "d": [YES, NO], "e": [NO, YES]},
        {"a": [0.0, 0.0], "b": [0.5, 1.0], "c": [0.9, 1.0], "d": [0.0, 0.0], "e": [0.5, 1.0]},
    )
    assert ballots.vote(["a", "d", "e", "b", "c"]).tolist() == [0.5, 1.0]
    assert ballots.vote(["a", "d", "e", "b"], ranking=["a", "b", "c", "d", "e"]).tolist() == [0, 0]


def test_held_out_rows_can_keep_the_ranking_made_elsewhere() -> None:
    # On row 1 alone b is best; the ranking of both rows says a
    ballots = Ballots.of({"a": [YES, YES], "b": [NO, NO]}, {"a": [1.0, 0.4], "b": [0.0, 0.6]})
    held = ballots.take(np.array([1]))
    assert held.vote(["b", "a"]).tolist() == [0.6]
    assert held.vote(["b", "a"], ranking=ballots.ranked().agents).tolist() == [0.4]


def test_no_answer_never_wins_and_scores_nothing() -> None:
    ballots = Ballots.of(
        {"a": [None, None], "b": [None, None], "c": [YES, None]},
        {"a": [0.0, 0.3], "b": [0.0, 0.3], "c": [1.0, 0.3]},
    )
    assert ballots.vote(["a", "b", "c"]).tolist() == [1.0, 0.0]


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 10_000))
def test_votes_as_counted_in_plain_python(n_agents: int, n_rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(-1, 4, (n_agents, n_rows)).astype(np.int16)
    ballots = Ballots(names(n_agents), codes, random.random((n_agents, n_rows)))
    ranked = ballots.ranked()
    seats = tuple(np.flatnonzero(random.random(n_agents) < 0.6).tolist()) or (0,)
    layer = [ranked.agents[i] for i in seats]
    wanted = plain_vote(ranked.codes, ranked.scores, seats)
    assert ballots.vote(layer[::-1]).tolist() == wanted


def ballots_of(**change: object) -> Ballots:
    fields: dict[str, object] = {
        "agents": ("a", "b"),
        "codes": np.zeros((2, 3), np.int16),
        "scores": np.zeros((2, 3)),
    }
    return Ballots(**{**fields, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agents": ()}, "at least one"),
        ({"agents": ("a", "a")}, "different names"),
        ({"agents": ("a", "b", "c")}, "a line per agent (3)"),
        ({"scores": np.zeros((2, 4))}, "shapes (2, 3) and (2, 4)"),
        ({"codes": np.zeros(3), "scores": np.zeros(3)}, "must both be (agents, rows)"),
        ({"codes": np.zeros((2, 0)), "scores": np.zeros((2, 0))}, "at least one row"),
        ({"scores": np.full((2, 3), 1.01)}, "a number in [0, 1]"),
        ({"scores": np.full((2, 3), np.nan)}, "a number in [0, 1]"),
    ],
)
def test_ballots_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        ballots_of(**change)


def test_answers_and_scores_must_be_of_the_same_agents_and_rows() -> None:
    with pytest.raises(DataError, match="of a and of b"):
        Ballots.of({"a": [YES]}, {"b": [1.0]})
    with pytest.raises(DataError, match="the same rows"):
        Ballots.of({"a": [YES], "b": [YES, NO]}, {"a": [1.0], "b": [1.0, 1.0]})
    with pytest.raises(DataError, match="the same rows"):
        Ballots.of({"a": [YES]}, {"a": [1.0, 1.0]})
    with pytest.raises(DataError, match="at least one"):
        Ballots.of({}, {})


@pytest.mark.parametrize("layer", [[], ["a0", "a0"], ["a0", "stranger"]])
def test_only_different_known_agents_can_vote(layer: list[str]) -> None:
    with pytest.raises(DataError, match="`layer` must be different agents of a0, a1"):
        world(2, 3).vote(layer)


def test_who_votes_must_be_ranked() -> None:
    with pytest.raises(DataError, match="`layer`"):
        world(2, 3).vote(["a0", "a1"], ranking=["a0"])
