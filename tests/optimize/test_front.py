from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.optimize.objectives import OBJECTIVES, front, knee, names_of
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits

BLANK = TrialRecord(0, "x", "tpe", 0.5, 0.5, 0.0, 1.0, 0.0, 1.0, 10)


def records(*values: tuple[float, float]) -> list[TrialRecord]:
    """Return records of these win rates and prices."""
    return [
        replace(BLANK, number=i, architecture=f"m{i}", win_rate=win_rate, usd=usd)
        for i, (win_rate, usd) in enumerate(values)
    ]


def texts(found: Any) -> list[str]:
    return [record.architecture for record in found]


BOTH = ("win_rate", "usd")
FOUR = records((0.5, 1.0), (0.7, 2.0), (0.75, 9.0), (0.6, 3.0))


def test_the_front_leaves_out_who_is_worse_and_dearer() -> None:
    # m3 wins less than m1 and costs more.
    assert texts(front(FOUR, BOTH)) == ["m2", "m1", "m0"]


def test_the_knee_is_farthest_beyond_the_line() -> None:
    found = front(FOUR, BOTH)
    # Scaled, as (win rate, price saved): m2 (1, 0), m1 (0.8, 0.875), m0 (0, 1).
    chosen = knee(found, BOTH)
    assert chosen is not None
    assert chosen.architecture == "m1"


def test_there_is_no_knee_of_one_objective_or_one_point() -> None:
    assert front(FOUR, ("win_rate",)) == ()
    assert knee(FOUR, ("win_rate",)) is None
    alone = front(FOUR[1:2], BOTH)
    assert texts(alone) == ["m1"]
    assert knee(alone, BOTH) is None
    assert front([], BOTH) == ()


def test_of_two_points_the_better_one_is_the_knee() -> None:
    found = front(FOUR[:2], BOTH)
    assert knee(found, BOTH) == found[0] == FOUR[1]


def test_diversity_counts_only_in_the_score() -> None:
    plain, varied = (replace(r, diversity=d) for r, d in zip(FOUR[1:3], (0.1, 0.9), strict=True))
    worse = replace(varied, architecture="w", win_rate=0.6, usd=8.0)
    for_diversity = ("win_rate", "diversity", "usd")
    assert texts(front([plain, worse], for_diversity)) == ["m1"]
    weighed = {r.architecture: r.win_rate + 0.2 * r.diversity for r in (plain, worse)}
    assert texts(front([plain, worse], for_diversity, shrunk=weighed)) == ["w", "m1"]
    assert front([plain, worse], ("win_rate", "diversity")) == ()


def test_what_was_stopped_or_goes_beyond_a_limit_is_no_candidate() -> None:
    stopped = replace(BLANK, architecture="s", win_rate=1.0, is_stopped_early=True)
    assert texts(front([stopped, *FOUR], BOTH)) == ["m2", "m1", "m0"]
    assert texts(front(FOUR, BOTH, limits=Limits(usd=5.0))) == ["m1", "m0"]


def test_shrunk_values_take_the_place_of_win_rates() -> None:
    shrunk = {"m0": 0.5, "m1": 0.49, "m2": 0.6}
    assert texts(front(FOUR, BOTH, shrunk=shrunk)) == ["m2", "m0"]


def test_of_equals_the_one_with_fewest_calls_stays() -> None:
    dear = replace(BLANK, architecture="a", calls=3.0)
    assert texts(front([dear, BLANK], BOTH)) == ["x"]


def test_a_vote_that_gives_its_tie_breakers_answers_takes_no_place() -> None:
    # Of two members the second is not asked; only the shrunken scores differ.
    agent, vote = (replace(BLANK, architecture=name) for name in ("b", "a + b > vote(b)"))
    shrunk = {"b": 0.61, "a + b > vote(b)": 0.62}
    assert texts(front([agent, vote], BOTH, shrunk=shrunk)) == ["b"]
    # If the agent left questions unanswered, the other member answered them.
    better = replace(vote, score=0.6)
    assert texts(front([agent, better], BOTH, shrunk=shrunk)) == ["a + b > vote(b)"]


def test_every_objective_has_a_name() -> None:
    assert names_of([make() for make in OBJECTIVES.values()]) == tuple(OBJECTIVES)


NUMBERS = st.floats(0, 1).map(lambda x: round(x, 2))
MANY = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=25)
THREE = ("win_rate", "usd", "seconds")


def made(values: list[tuple[float, float, float]]) -> list[TrialRecord]:
    return [
        replace(BLANK, architecture=f"m{i}", win_rate=w, usd=u, seconds=s)
        for i, (w, u, s) in enumerate(values)
    ]


def beats(trial: TrialRecord, other: TrialRecord) -> bool:
    assert None not in (trial.usd, trial.seconds, other.usd, other.seconds)
    gains = [(r.win_rate, -(r.usd or 0.0), -(r.seconds or 0.0)) for r in (trial, other)]
    pairs = list(zip(*gains, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@settings(deadline=None, max_examples=150)
@given(MANY, st.randoms(use_true_random=False))
def test_the_front_is_what_nobody_beats(values: list[Any], rng: Any) -> None:
    everyone = made(values)
    found = front(everyone, THREE)
    for record in everyone:
        is_equal = any(
            (r.win_rate, r.usd, r.seconds) == (record.win_rate, record.usd, record.seconds)
            for r in found
        )
        assert is_equal != any(beats(other, record) for other in everyone)
    shuffled = rng.sample(everyone, len(everyone))
    assert front(shuffled, THREE) == found


@settings(deadline=None, max_examples=100)
@given(MANY, st.sampled_from([0.25, 8.0, 1024.0]))
def test_the_knee_is_on_the_front_and_blind_to_units(values: list[Any], unit: float) -> None:
    found = front(made(values), THREE)
    chosen = knee(found, THREE)
    assert (chosen is None) == (len(found) < 2)
    rescaled = [replace(record, usd=(record.usd or 0.0) * unit) for record in found]
    again = knee(rescaled, THREE)
    assert (again and again.architecture) == (chosen and chosen.architecture)
    if chosen is not None:
        assert chosen in found


@pytest.mark.parametrize("objectives", [("usd", "seconds"), ("score", "calls")])
def test_costs_are_low_and_scores_high(objectives: tuple[str, str]) -> None:
    good = replace(BLANK, architecture="g", score=0.9, usd=0.1, seconds=0.1, calls=1.0)
    bad = replace(BLANK, architecture="b", score=0.1, usd=0.9, seconds=0.9, calls=2.0)
    assert texts(front([bad, good], objectives)) == ["g"]
