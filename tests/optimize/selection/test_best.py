from __future__ import annotations

from typing import Any

import pytest

from moa_dspy.errors import StudyError
from moa_dspy.optimize.objectives import best_on_val
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits


def trial(name: str, win_rate: float, **rest: Any) -> TrialRecord:
    facts = {
        "number": 0,
        "origin": "test",
        "score": win_rate,
        "diversity": 0.0,
        "calls": 1.0,
        "usd": 0.0,
        "seconds": 0.0,
        "rows": 9,
    }
    return TrialRecord(architecture=name, win_rate=win_rate, **{**facts, **rest})


def test_the_highest_win_rate_is_picked() -> None:
    assert best_on_val([trial("a", 0.5), trial("b", 0.7), trial("c", 0.6)]).architecture == "b"


def test_ties_go_to_fewer_calls_then_less_money_then_the_name() -> None:
    tied = [
        trial("d", 0.6, calls=3, usd=0),
        trial("c", 0.6, calls=2, usd=5),
        trial("b", 0.6, calls=2, usd=4),
        trial("a", 0.6, calls=2, usd=4),
    ]
    assert best_on_val(tied).architecture == "a"
    assert best_on_val(tied[:3]).architecture == "b"
    assert best_on_val(tied[:2]).architecture == "c"


def test_rounding_errors_are_ties() -> None:
    # 0.1 + 0.2 is 0.30000000000000004
    assert best_on_val([trial("a", 0.1 + 0.2, calls=3), trial("b", 0.3)]).architecture == "b"


def test_a_trial_that_stopped_early_is_never_picked() -> None:
    lucky = trial("a", 1.0, rows=3, is_stopped_early=True)
    assert best_on_val([lucky, trial("b", 0.1)]).architecture == "b"
    with pytest.raises(StudyError, match="No architecture stays within"):
        best_on_val([lucky])


@pytest.mark.parametrize(
    ("limits", "picked"),
    [
        (Limits(), "costly"),
        (Limits(calls=5, usd=0.3, seconds=9), "costly"),
        (Limits(calls=4.9), "cheap"),
        (Limits(usd=0.29), "cheap"),
        (Limits(seconds=8.9), "cheap"),
    ],
)
def test_a_pick_never_goes_beyond_a_limit(limits: Limits, picked: str) -> None:
    trials = [trial("cheap", 0.5), trial("costly", 0.9, calls=5.0, usd=0.3, seconds=9.0)]
    assert best_on_val(trials, limits=limits).architecture == picked


def test_limits_that_nobody_keeps_are_an_error() -> None:
    with pytest.raises(
        StudyError, match=r"stays within the limits \(calls = 0.5\); even the single agents"
    ):
        best_on_val([trial("a", 0.5)], limits=Limits(calls=0.5))


def test_diversity_counts_as_much_as_the_user_says() -> None:
    # 0.6 + w * 0.0 against 0.55 + w * 0.5: level at w = 0.1
    trials = [trial("same", 0.6), trial("mixed", 0.55, diversity=0.5)]
    for weight, picked in ((0.0, "same"), (0.09, "same"), (0.11, "mixed")):
        assert best_on_val(trials, diversity_weight=weight).architecture == picked
