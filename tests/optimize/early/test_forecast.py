from __future__ import annotations

from dataclasses import replace

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.optimize.early_facts import Cost
from moa_dspy.optimize.forecast import forecast, stage_costs
from moa_dspy.optimize.nodes import Outcome
from moa_dspy.optimize.prompts.options import TuningEffort
from moa_dspy.optimize.space import ProgramSpace, SearchSpace

ONE = Outcome(score=1.0, layer=("x",), calls=1, usd=0.01, seconds=2.0, tokens=100)
SINGLES = {name: (ONE,) * 10 for name in ("a", "b")}
VOTES = SearchSpace(("a", "b"), ("vote",), max_depth=1)


def test_votes_of_stored_answers_cost_nothing() -> None:
    found = forecast(SINGLES, VOTES, n_trials=30, n_test=5, num_threads=4)
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
    found = forecast(SINGLES, space, n_trials=50, n_test=0, num_threads=1)
    # On 10 rows: two singles, and it, once for the search and the baseline together.
    assert found.calls == 20 + 40
    assert found.seconds == pytest.approx(20 * 2 + 10 * 6)


def test_what_two_architectures_ask_alike_is_asked_once() -> None:
    listed = tuple(
        Architecture.parse(text)
        for text in ("a + b > a*2 > synthesize(a)", "a + b > a + b > synthesize(a)", "a + b > vote")
    )
    space = replace(VOTES, max_depth=0, listed=listed)
    found = forecast(SINGLES, space, n_trials=50, n_test=0, num_threads=1)
    # Second layers: a, a again, and b, once each; then two aggregators. The vote is free.
    assert found.calls == 20 + (3 + 2) * 10


def test_no_more_is_tried_than_there_is() -> None:
    space = SearchSpace(("a", "b"), ("synthesize",), max_depth=1)
    few, many = (forecast(SINGLES, space, n_trials=n, n_test=1, num_threads=1) for n in (4, 4_000))
    # 2 singles, and a + b with either aggregator.
    assert space.size == 4
    assert few == many


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
    found = forecast(SINGLES, VOTES, n_trials=30, n_test=5, num_threads=4, budget=budget)
    # Half of 40 calls in every case; what the whole study would take is still said.
    assert (found.calls, found.capped_by) == (40, capped_by)
    assert found.ceiling == getattr(budget, capped_by)
    assert found.share == pytest.approx(0.5)
    assert found.usd == pytest.approx(0.4)
    assert found.seconds == pytest.approx(20.0)


def test_a_large_budget_changes_nothing_and_the_seed_decides() -> None:
    space = SearchSpace(("a", "b"))
    free, wide = (
        forecast(SINGLES, space, n_trials=9, n_test=1, num_threads=1, budget=budget, seed=3)
        for budget in (None, Budget(calls=130))
    )
    assert free == wide
    assert 65 < free.calls < 130


def test_tuning_of_prompts_is_foretold() -> None:
    listed = (Architecture.parse("a + b > synthesize(a)"),)
    space = replace(VOTES, max_depth=0, listed=listed)
    without, with_tuning = (
        forecast(SINGLES, space, n_trials=50, n_test=5, num_threads=1, effort=effort)
        for effort in (None, TuningEffort(1, 8, answers_per_row=4, written=3, writer="b"))
    )
    # 8 train rows: two references and four answers of a each. Three prompts of b. On 5 test rows
    # the aggregator is asked once more, with its own prompt.
    more = 8 * (2 + 4) + 3 + 5 * 1
    assert with_tuning.calls - without.calls == more
    assert with_tuning.usd is not None
    assert without.usd is not None
    assert with_tuning.usd - without.usd == pytest.approx(0.01 * more)


def test_without_tuning_prompts_cost_no_more_than_their_row_on_test() -> None:
    effort = TuningEffort(0, 8, answers_per_row=4, written=3, writer=None)
    space = SearchSpace(("a", "b"), ("vote",), max_depth=1)
    with_prompts = forecast(SINGLES, space, n_trials=30, n_test=5, num_threads=4, effort=effort)
    assert with_prompts == forecast(SINGLES, space, n_trials=30, n_test=5, num_threads=4)


@pytest.mark.parametrize("combine", ["fuse", "knockout"])
def test_a_last_step_of_several_rounds_is_foretold(combine: str) -> None:
    agents = {"a": Cost(calls=1), "b": Cost(calls=1)}
    space = SearchSpace(("a", "b"), combines=(combine,), max_depth=1)
    found = stage_costs(agents, space, n_trials=4, n_val=10, n_test=1)
    # Two agents, and their pair ended by a or by b: an analysis and an answer of each, or two
    # comparisons, on 10 rows.
    assert found["search"].calls == 2 * 2 * 10


def test_a_mixture_of_a_program_is_asked_again_where_it_reads_something_else() -> None:
    agents = {"a": Cost(calls=2), "b": Cost(calls=2)}
    votes = SearchSpace(("a", "b"), combines=("vote",), max_depth=1)
    space = ProgramSpace.of({"query": votes, "answer": votes})
    found = stage_costs(agents, space, n_trials=9, n_val=1, n_test=1)
    # For each of 3 queries (a, b, their vote) a and b answer, one call each; the queries are known.
    assert found["search"].calls == 3 * 2
