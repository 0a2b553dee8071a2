from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits, optimism, pick


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
    assert pick([trial("a", 0.5), trial("b", 0.7), trial("c", 0.6)]).architecture == "b"


def test_ties_go_to_fewer_calls_then_less_money_then_the_name() -> None:
    tied = [
        trial("d", 0.6, calls=3, usd=0),
        trial("c", 0.6, calls=2, usd=5),
        trial("b", 0.6, calls=2, usd=4),
        trial("a", 0.6, calls=2, usd=4),
    ]
    assert pick(tied).architecture == "a"
    assert pick(tied[:3]).architecture == "b"
    assert pick(tied[:2]).architecture == "c"


def test_rounding_errors_are_ties() -> None:
    # 0.1 + 0.2 is 0.30000000000000004
    assert pick([trial("a", 0.1 + 0.2, calls=3), trial("b", 0.3)]).architecture == "b"


def test_a_trial_that_stopped_early_is_never_picked() -> None:
    lucky = trial("a", 1.0, rows=3, is_stopped_early=True)
    assert pick([lucky, trial("b", 0.1)]).architecture == "b"
    with pytest.raises(StudyError, match="No architecture stays within"):
        pick([lucky])


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
    assert pick(trials, limits=limits).architecture == picked


def test_limits_that_nobody_keeps_are_an_error() -> None:
    with pytest.raises(StudyError, match=r"stays within Limits\(calls=0.5,.*even single agents"):
        pick([trial("a", 0.5)], limits=Limits(calls=0.5))


def test_diversity_counts_as_much_as_the_user_says() -> None:
    # 0.6 + w * 0.0 against 0.55 + w * 0.5: level at w = 0.1
    trials = [trial("same", 0.6), trial("mixed", 0.55, diversity=0.5)]
    for weight, picked in ((0.0, "same"), (0.09, "same"), (0.11, "mixed")):
        assert pick(trials, diversity_weight=weight).architecture == picked


def noise(n: int) -> list[tuple[Architecture, list[float]]]:
    rng = np.random.default_rng(0)
    names = [Architecture.single(f"m{i}") for i in range(n)]
    return [(name, (rng.random(100) < 0.6).astype(float).tolist()) for name in names]


def test_a_choice_without_rivals_or_rows_to_leave_out_has_no_optimism() -> None:
    assert optimism(noise(1), seed=0) == 0
    assert optimism([(one, scores[:1]) for one, scores in noise(5)], seed=0) == 0


def test_choosing_among_noise_flatters() -> None:
    # The maximum of 30 means of sd sqrt(.24 / 100) = .049 is 2.04 sd = 10 points too high.
    assert optimism(noise(30), seed=0) == pytest.approx(0.10, abs=0.05)
    assert optimism(noise(30), seed=0) == optimism(noise(30)[::-1], seed=0)
