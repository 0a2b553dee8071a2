from __future__ import annotations

from dataclasses import replace

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.optimize.forecast import forecast
from moa_dspy.optimize.measure import Outcome
from moa_dspy.optimize.space import SearchSpace

ONE = Outcome(score=1.0, layer=("x",), calls=1, usd=0.01, seconds=2.0, tokens=100)
SINGLES = {name: (ONE,) * 10 for name in ("a", "b")}
VOTES = SearchSpace(("a", "b"), ("vote",), max_depth=1)


def test_votes_of_stored_answers_cost_nothing() -> None:
    found = forecast(SINGLES, VOTES, n_trials=30, n_test=5, n_threads=4)
    # val: 2 agents on 10 rows. Test: 2 agents and 2 more samples of Self-MoA on 5 rows.
    assert found.calls == 2 * 10 + (2 + 2) * 5
    assert found.usd == pytest.approx(0.01 * 40)
    assert found.seconds == pytest.approx(2.0 * 40 / 4)
    assert found.capped_by is None


def test_layers_and_aggregators_are_asked_anew() -> None:
    # One architecture takes part besides the singles: a*2 + b > a + b > synthesize(a). Its first
    # layer asks a again, the second both, then the aggregator: 4 calls, of 2 + 2 + 2 seconds.
    listed = (Architecture.parse("a*2 + b > a + b > synthesize(a)"),)
    space = replace(VOTES, max_depth=0, listed=listed)
    found = forecast(SINGLES, space, n_trials=5, n_test=0, n_threads=1)
    only = forecast(SINGLES, space, n_trials=2, n_test=0, n_threads=1)
    # 3 trials more in the search and 3 in the baseline, on 10 rows; singles are drawn as often as
    # 2 of 3 times, and ask nothing.
    share = (found.calls - only.calls) / (6 * 10 * 4)
    assert share == pytest.approx(1 / 3, abs=0.1)
    assert (found.seconds - only.seconds) / (6 * 10 * 6) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("budget", "capped_by"),
    [
        (Budget(calls=20), "calls"),
        (Budget(tokens=2_000), "tokens"),
        (Budget(usd=0.2), "usd"),
        (Budget(seconds=10.0), "seconds"),
        (Budget(calls=30, usd=0.2), "usd"),
    ],
)
def test_a_budget_ends_the_study_at_its_first_limit(budget: Budget, capped_by: str) -> None:
    found = forecast(SINGLES, VOTES, n_trials=30, n_test=5, n_threads=4, budget=budget)
    # Half of 40 calls in every case.
    assert (found.calls, found.capped_by) == (20, capped_by)
    assert found.usd == pytest.approx(0.2)
    assert found.seconds == pytest.approx(10.0)


def test_a_large_budget_changes_nothing_and_the_seed_decides() -> None:
    space = SearchSpace(("a", "b"))
    calls = [
        forecast(SINGLES, space, n_trials=9, n_test=1, n_threads=1, budget=b, seed=3)
        for b in (None, Budget(calls=10**9))
    ]
    assert calls[0] == calls[1]
    assert calls[0].calls > 9 * 10
