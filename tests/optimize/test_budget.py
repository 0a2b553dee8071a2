from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.calls import Budget, Calls, Ledger
from moa_dspy.data.splits import make_splits
from moa_dspy.errors import StudyError
from moa_dspy.optimize import Limits, ModelSearch, SearchSpace, Snapshot, StudyResult
from moa_dspy.optimize.metric import Outcome
from moa_dspy.optimize.progress import silent
from moa_dspy.optimize.search import run_search
from moa_dspy.optimize.shares import test_share as share_of_test
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]
N_VAL, N_TEST = 12, 12


@pytest.fixture
def experts(fails_on: Make) -> Callable[..., Pool]:
    """Return what makes three agents with disjoint errors, warm: samples cost calls."""

    def make(calls: Calls | None = None) -> Pool:
        scripts = {f"e{i}": fails_on(i, says=f"no{i}") for i in range(3)}
        prices = dict.fromkeys(scripts, 1e6)
        return scripted_pool(scripts, calls=calls, temperature=0.7, usd_per_million_tokens=prices)

    return make


@pytest.fixture
def spend(rows: Make, student: Make) -> Callable[..., StudyResult]:
    """Return what runs a search under a budget, one example at a time."""

    def run(pool: Pool, *, show: Any = silent, **options: Any) -> StudyResult:
        def exact(example: Any, prediction: Any) -> bool:
            return bool(prediction.answer == example.answer)

        search = ModelSearch(exact, pool, **{"n_trials": 60, "num_threads": 1, **options})
        val, test = rows("val", N_VAL), rows("test", N_TEST)
        splits = make_splits([], val, test, seed=search.options.seed)
        return run_search(search.options, student(pool), splits, show=show).result

    return run


@pytest.mark.slow
@pytest.mark.parametrize("calls", [100, 160, 240])
def test_calls_never_exceed_the_budget_and_the_test_still_runs(
    spend: Make, experts: Make, calls: int
) -> None:
    pool = experts()
    most = 0

    def watch(snapshot: Snapshot) -> None:
        nonlocal most
        most = max(most, snapshot.spending.made)
        assert snapshot.spending.made <= calls

    result = spend(pool, budget=Budget(calls=calls), show=watch)
    assert pool.calls.ledger.spending.made == result.calls_made <= calls
    assert most > 0
    assert result.stopped_by is not None
    assert f"The budget of {calls} calls is reached" in result.stopped_by
    assert result.test["best_single"].score is not None
    assert result.test["pick"].score is not None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("usd", 4000), ("tokens", 4000)])
def test_money_and_tokens_are_kept_back_too(
    spend: Make, experts: Make, name: str, limit: int
) -> None:
    # A call reserves an upper bound: some 200 bytes and 1024 tokens of answer, at 1 usd each.
    pool = experts()
    result = spend(pool, budget=Budget(**{name: limit}))
    assert getattr(pool.calls.ledger.spending, name) <= limit
    assert f"of {limit} {name} is reached" in str(result.stopped_by)
    assert result.test["pick"].score is not None


@pytest.mark.slow
def test_a_budget_that_reaches_no_verdict_is_refused_with_the_smallest_that_does(
    spend: Make, experts: Make
) -> None:
    # 3 agents on 12 rows of val are 36 calls; a vote of all of them on 12 of test, 36 more.
    pool = experts()
    with pytest.raises(StudyError, match=r"`budget.calls` is 71, but a verdict needs 72 at least"):
        spend(pool, budget=Budget(calls=71))
    # One probe of each.
    assert pool.calls.ledger.spending.made == 3
    result = spend(pool, budget=Budget(calls=69))
    assert result.verdict.n == N_TEST
    assert pool.calls.ledger.spending.made == 72


def test_a_budget_that_ends_among_the_single_agents_leaves_a_result(
    spend: Make,
) -> None:
    # The answer to the first question is a word, to every other one 800 words at 1 usd each: the
    # probe foretells far too little, and 6,000 usd end after some 6 of 36 questions.
    def reply(prompt: str) -> str:
        return "0" if prompt.endswith(" 0") else "x " * 800

    scripts = {f"e{i}": reply for i in range(3)}
    pool = scripted_pool(scripts, usd_per_million_tokens=dict.fromkeys(scripts, 1e6))
    result = spend(pool, budget=Budget(usd=6_000))
    assert 3 < result.calls_made < 12
    assert "of 6000 usd is reached" in str(result.stopped_by)
    assert result.recommended.agents == ("e0",)
    assert result.early is not None
    assert 1 <= result.early.n_rows < N_VAL
    assert result.verdict.n == 0


def test_a_budget_that_ends_in_the_probe_is_refused(spend: Make, experts: Make) -> None:
    with pytest.raises(
        StudyError, match=r"2 calls.* too small to ask each of the 3 agents one question; allow"
    ):
        spend(experts(), budget=Budget(calls=2))


def test_a_larger_program_is_checked_too(rows: Make, experts: Make, student: Make) -> None:
    class Program(dspy.Module):
        def __init__(self, mixture: Any) -> None:
            super().__init__()
            self.mixture = mixture

        def forward(self, question: str) -> Any:
            return self.mixture(question=question)

    # As of the mixture alone: 36 calls on val, a vote of all three on test is 36 more.
    pool = experts()
    exact = lambda example, prediction: prediction.answer == example.answer  # noqa: E731
    search = ModelSearch(exact, pool, budget=Budget(calls=71), num_threads=1, n_trials=4)
    splits = {"trainset": [], "valset": rows("val", N_VAL), "testset": rows("test", N_TEST)}
    with pytest.raises(StudyError, match=r"`budget.calls` is 71, but a verdict needs 72 at least"):
        search.compile(Program(student(pool)), **splits)
    assert pool.calls.ledger.spending.made == 3


@pytest.mark.slow
def test_stored_answers_do_not_hide_what_the_test_will_cost(spend: Make, experts: Make) -> None:
    calls = Calls()
    votes = SearchSpace(("e0", "e1", "e2"), combines=("vote",), max_depth=1)
    spend(experts(calls), n_trials=3, space=votes)
    # Another search over the same val rows: singles are free now, the test rows are stored too.
    # New rows would not be, so as much is kept back as if nothing were.
    result = spend(experts(calls), budget=Budget(calls=100))
    assert result.calls_made <= 100
    assert result.test["pick"].score is not None


@pytest.mark.slow
def test_a_large_budget_stops_nothing(spend: Make, experts: Make) -> None:
    result = spend(experts(), budget=Budget(calls=100_000), n_trials=8)
    assert result.stopped_by is None
    assert len(result.trials) == 8


def outcomes(n: int) -> dict[str, list[Outcome]]:
    outcome = Outcome(1.0, ("x",), calls=1, usd=0.5, seconds=4.0, tokens=100)
    return {name: [outcome] * n for name in ("a", "b")}


@pytest.mark.parametrize(
    ("budget", "possible_calls", "share"),
    [
        # 10 rows: the best single and a pick of 4 calls are 5 calls a row: 50 calls
        (Budget(calls=200), [4], 50 / 200),
        # All of 2 agents and half more are 3 calls a row, and a single pick needs 2: 30 calls
        (Budget(calls=200), [1], 30 / 200),
        # 50 calls at 100 tokens; at 0.5 usd; at 4 seconds, 8 at once
        (Budget(tokens=20_000), [4], 5000 / 20_000),
        (Budget(usd=100), [1, 4], 25 / 100),
        (Budget(seconds=100), [4], 25 / 100),
        # The scarcest counts, and there is no more than everything.
        (Budget(calls=200, usd=50), [4], 25 / 50),
        (Budget(calls=20), [4], 1.0),
        (Budget(), [4], 0.0),
    ],
)
def test_the_test_keeps_what_its_calls_will_cost(
    budget: Budget, possible_calls: list[float], share: float
) -> None:
    kept = share_of_test(
        budget, outcomes(20), n_test=10, num_threads=8, possible_calls=possible_calls
    )
    assert kept == pytest.approx(share)


@pytest.mark.slow
def test_a_resumed_ledger_changes_no_decision(spend: Make, experts: Make, rows: Make) -> None:
    whole = spend(experts(), budget=Budget(calls=200))
    calls = Calls()
    pool = experts(calls)

    def stop(snapshot: Snapshot) -> None:
        if snapshot.trial == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spend(pool, budget=Budget(calls=200), show=stop)
    spent = calls.ledger.spending
    resumed = Calls(calls.store, ledger=Ledger(Budget(calls=200), spent=spent))
    rest = spend(experts(resumed))
    assert [t.architecture for t in rest.trials] == [t.architecture for t in whole.trials]
    assert spent.made + rest.calls_made == whole.calls_made


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"budget": Budget(usd=5)}, "budget.usd"),
        ({"limits": Limits(usd=0.01)}, "limits.usd"),
        ({"objectives": ("score", "usd")}, "objectives"),
    ],
)
def test_money_is_not_counted_where_a_price_is_unknown(
    rows: Make, options: dict[str, Any], name: str
) -> None:
    class Silent(dspy.BaseLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("nothing may be asked")

    lms: dict[str, dspy.BaseLM] = {"dear": Silent("x/dear"), "odd": Silent("x/odd")}
    pool = Pool.from_lms(lms, usd_per_million_tokens={"dear": (1.0, 2.0)})
    search = ModelSearch(lambda example, prediction: True, pool, **options)
    with pytest.raises(StudyError, match=rf"`{name}` counts usd, but the price of .*odd.* unknown"):
        search.compile(
            dspy.Predict("question -> answer"),
            trainset=[],
            valset=rows("val", 4),
            testset=rows("test", 4),
        )


@pytest.mark.slow
def test_questions_at_the_same_time_leave_no_part_of_the_budget_unused(
    spend: Make, fails_on: Make
) -> None:
    # The whole study costs less than 0.4 usd. A call reserves up to 0.24 usd for an answer of 1024
    # tokens, so eight at once reserve more than the search's part of 3 usd.
    def slow(place: int) -> Callable[[str], str]:
        says = fails_on(place, says=f"no{place}")

        def reply(prompt: str) -> str:
            time.sleep(0.005)
            return str(says(prompt))

        return reply

    scripts = {f"e{place}": slow(place) for place in range(3)}
    prices = dict.fromkeys(scripts, 200.0)
    pool = scripted_pool(scripts, temperature=0.7, usd_per_million_tokens=prices)
    result = spend(pool, budget=Budget(usd=3), num_threads=8)
    assert result.stopped_by is None
    assert result.usd is not None
    assert result.usd < 0.5


def test_limits_that_no_agent_can_keep_end_the_search_after_the_probe(
    spend: Make, experts: Make
) -> None:
    # A question costs several usd, and a quarter of that is compared.
    pool = experts()
    with pytest.raises(StudyError, match=r"e0 takes at least about .* usd; e1 takes .* Raise them"):
        spend(pool, limits=Limits(usd=0.1))
    assert pool.calls.ledger.spending.made == 3
