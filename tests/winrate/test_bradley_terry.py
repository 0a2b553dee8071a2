from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.winrate import bradley_terry, bradley_terry_from_wins

INF = math.inf
# American League 1987, 13 games per pair: Agresti, Categorical Data Analysis, section 10.6
TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
WINS = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ],
    dtype=np.float64,
)
# Against Baltimore; strengths and standard errors as R's BradleyTerry2 gives them (Turner &
# Firth, Journal of Statistical Software 48, 2012, section 3.1)
ABOVE_BALTIMORE = [1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839]
ERRORS = [0.3433, 0.3396, 0.3367, 0.3359, 0.3339, 0.3319]

judgements = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), st.floats(0, 1)), min_size=1
)


def test_two_systems_by_hand() -> None:
    # 3 of 4: odds 3, ln 3 = 1.0986; variance of the difference 1 / (4 x 3/4 x 1/4) = 4/3
    result = bradley_terry([("a", "b", 1.0)] * 3 + [("b", "a", 1.0)], prior_sd=INF)
    assert result.strengths == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert result.standard_errors == pytest.approx([math.sqrt(1 / 3)] * 2)
    assert result.win_probability("a", "b") == pytest.approx(0.75)
    gap = result.difference("a", "b")
    assert (gap.high - gap.low) / 2 == pytest.approx(1.959964 * math.sqrt(4 / 3))


def test_baseball_is_as_published() -> None:
    result = bradley_terry_from_wins(WINS, TEAMS, prior_sd=INF)
    gaps = [result.difference(team, "Baltimore") for team in TEAMS[:-1]]
    assert [g.estimate for g in gaps] == pytest.approx(ABOVE_BALTIMORE, abs=1e-4)
    errors = [(g.high - g.estimate) / 1.959964 for g in gaps]
    assert errors == pytest.approx(ERRORS, abs=1e-4)
    assert result.strengths.mean() == pytest.approx(0, abs=1e-12)


def test_the_prior_hardly_moves_what_is_known() -> None:
    free = bradley_terry_from_wins(WINS, TEAMS, prior_sd=INF)
    held = bradley_terry_from_wins(WINS, TEAMS)
    moved = np.abs(held.strengths - free.strengths)
    assert np.all(moved < 0.05 * free.standard_errors)


def test_exact_shares_give_the_true_strengths() -> None:
    truth = np.array([0.9, 0.1, -1.0])
    share = 1 / (1 + np.exp(-(truth[:, None] - truth)))
    wins = 50 * share * (1 - np.eye(3))
    assert bradley_terry_from_wins(wins, "abc", prior_sd=INF).strengths == pytest.approx(truth)


def test_a_chain_links_systems_that_never_met() -> None:
    # a over b by odds 3, b over c by odds 3: a over c by odds 9
    judged = [("a", "b", 0.75), ("b", "c", 0.75)] * 10
    assert bradley_terry(judged, prior_sd=INF).win_probability("a", "c") == pytest.approx(0.9)


def test_winning_everything_is_not_certain() -> None:
    result = bradley_terry([("a", "b", 1.0)] * 10)
    # 10 (1 - sigmoid(g)) = g / (2 x 9), solved by g = 3.829
    assert result.difference("a", "b").estimate == pytest.approx(3.829, abs=1e-3)
    assert result.win_probability("a", "b") == pytest.approx(0.979, abs=1e-3)
    assert result.difference("a", "b").low < 0.1


def test_without_a_prior_winning_everything_has_no_answer() -> None:
    match = "The strength against 'a' is unbounded, because one side won every comparison: b, c"
    with pytest.raises(MetricError, match=match):
        bradley_terry([("a", "b", 1), ("a", "c", 1), ("b", "c", 0.5)], prior_sd=INF)


def test_groups_that_never_met_are_refused() -> None:
    with pytest.raises(
        MetricError,
        match="Not compared with 'a', nor with a system that was compared with it: c, d",
    ):
        bradley_terry([("a", "b", 0.5), ("c", "d", 0.5)])


@pytest.mark.slow
@given(judged=judgements)
def test_sides_and_order_do_not_matter(judged: list[tuple[str, str, float]]) -> None:
    linked = [*judged, ("a", "b", 0.5), ("b", "c", 0.4), ("c", "d", 0.6)]
    mirrored = [(b, a, 1 - p) for a, b, p in reversed(linked)]
    there, back = bradley_terry(linked), bradley_terry(mirrored)
    assert there.strengths == pytest.approx(back.strengths, abs=1e-8)
    assert there.win_probability("a", "d") == pytest.approx(1 - there.win_probability("d", "a"))


def test_refuses_bad_input() -> None:
    with pytest.raises(MetricError, match=r"in \[0, 1\], but 'a' against 'b' is nan"):
        bradley_terry([("a", "b", math.nan)])
    with pytest.raises(MetricError, match="'a' is compared with itself"):
        bradley_terry([("a", "a", 1.0)])
    with pytest.raises(MetricError, match=r"Two or more systems .* got \[\]"):
        bradley_terry([])
    with pytest.raises(MetricError, match=r"`wins` must be 2 by 2, but has shape \(3, 3\)"):
        bradley_terry_from_wins(np.zeros((3, 3)), "ab")
    with pytest.raises(MetricError, match="at least 0, and 0 on the diagonal"):
        bradley_terry_from_wins(np.array([[0, -1.0], [1, 0]]), "ab")
    with pytest.raises(MetricError, match="`prior_sd` must be above 0, but got 0"):
        bradley_terry([("a", "b", 0.5)], prior_sd=0)
    with pytest.raises(MetricError, match="Unknown system 'z'; known: a, b"):
        bradley_terry([("a", "b", 0.5)]).win_probability("a", "z")
