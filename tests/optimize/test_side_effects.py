"""A search changes nothing of its caller's: pool, ledger, settings, student; nor its neighbour."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget, Calls
from moa_dspy.data.splits import make_splits
from moa_dspy.diversity import DIVERSITY_METRICS
from moa_dspy.errors import BudgetReachedError, StudyError, UnknownCallError
from moa_dspy.optimize import ModelSearch, SearchSpace, StudyResult
from moa_dspy.optimize.metric import Outcome
from moa_dspy.optimize.search import run_search
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.singles import SingleAgents
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]
N_VAL, N_TEST = 12, 12


def exact(example: Any, prediction: Any) -> bool:
    return bool(prediction.answer == example.answer)


@pytest.fixture
def experts(fails_on: Make) -> Callable[..., Pool]:
    """Return what makes three agents with disjoint errors, warm: samples cost calls."""

    def make(calls: Calls | None = None) -> Pool:
        scripts = {f"e{i}": fails_on(i, says=f"no{i}") for i in range(3)}
        return scripted_pool(scripts, calls=calls, temperature=0.7)

    return make


@pytest.fixture
def searched(rows: Make, student: Make) -> Callable[..., tuple[Any, ModelSearch]]:
    """Return what compiles a search of a pool on rows of its own."""

    def run(pool: Pool, *, named: str = "", **options: Any) -> tuple[Any, ModelSearch]:
        search = ModelSearch(exact, pool, **{"n_trials": 8, "num_threads": 2, **options})
        val, test = rows(f"{named}val", N_VAL), rows(f"{named}test", N_TEST)
        return search.compile(student(pool), trainset=[], valset=val, testset=test), search

    return run


@pytest.mark.slow
def test_the_returned_program_is_under_no_budget_of_the_search(
    searched: Make, experts: Make
) -> None:
    pool = experts()
    ledger = pool.calls.ledger
    program, search = searched(pool, budget=Budget(calls=80))
    assert search.result.calls_made <= 80
    assert pool.calls.ledger is ledger
    assert ledger.budget == Budget()
    for i in range(100):
        assert program(question=f"new {i}").answer
    # The pool counts both.
    asked = 100 * program.architecture.calls
    assert ledger.spending.made == search.result.calls_made + asked


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_pool_settings_and_student_are_what_they_were(
    experts: Make, rows: Make, student: Make, fails: bool
) -> None:
    def metric(example: Any, prediction: Any) -> bool:
        if fails and example.id == "test-3":
            raise ValueError("no")
        return exact(example, prediction)

    pool = experts()
    mixture, ledger = student(pool), pool.calls.ledger
    before = (mixture.dump_state(), str(mixture.architecture), dict(dspy.settings.config))
    n_traced = len(dspy.settings.trace)
    search = ModelSearch(metric, pool, n_trials=6, budget=Budget(calls=200))
    splits = {"trainset": [], "valset": rows("val", N_VAL), "testset": rows("test", N_TEST)}
    if fails:
        with pytest.raises(Exception, match="test-3"):
            search.compile(mixture, **splits)
    else:
        search.compile(mixture, **splits)
    assert (mixture.dump_state(), str(mixture.architecture), dict(dspy.settings.config)) == before
    assert (pool.calls.ledger, ledger.budget) == (ledger, Budget())
    assert len(dspy.settings.trace) == n_traced
    # Nothing is refused: no share of the search is in force any more.
    assert mixture(question="new 7").answer == "7"


@pytest.mark.slow
def test_two_searches_share_a_pool_one_after_the_other(searched: Make, experts: Make) -> None:
    pool = experts()
    _, first = searched(pool, budget=Budget(calls=80))
    _, second = searched(pool, named="other ", budget=Budget(calls=80))
    alone = searched(experts(), named="other ", budget=Budget(calls=80))[1]
    assert second.result.calls_made == alone.result.calls_made
    assert [t.architecture for t in second.result.trials] == [
        t.architecture for t in alone.result.trials
    ]
    made = first.result.calls_made + second.result.calls_made
    assert pool.calls.ledger.spending.made == made


@pytest.mark.slow
def test_two_searches_share_a_pool_at_the_same_time(searched: Make, experts: Make) -> None:
    pool, budgets = experts(), {"a ": 80, "b ": 120}
    with ThreadPoolExecutor(2) as threads:
        both = {
            name: threads.submit(searched, pool, named=name, budget=Budget(calls=calls))
            for name, calls in budgets.items()
        }
        found = {name: future.result()[1].result for name, future in both.items()}
    for name, calls in budgets.items():
        alone = searched(experts(), named=name, budget=Budget(calls=calls))[1].result
        assert found[name].calls_made <= calls
        assert found[name].calls_made == alone.calls_made
        assert [t.architecture for t in found[name].trials] == [
            t.architecture for t in alone.trials
        ]
    made = sum(result.calls_made for result in found.values())
    assert pool.calls.ledger.spending.made == made


def test_study_and_result_need_a_compile(experts: Make) -> None:
    search = ModelSearch(exact, experts())
    for name in ("study", "result"):
        with pytest.raises(StudyError, match="call `compile` first"):
            getattr(search, name)


@pytest.mark.slow
def test_callbacks_see_the_study_and_each_finished_trial(searched: Make, experts: Make) -> None:
    seen: list[tuple[int, str]] = []

    def callback(study: Any, trial: Any) -> None:
        seen.append((len(study.trials), trial.user_attrs["architecture"]))

    _, search = searched(experts(), callbacks=[callback])
    texts = [trial.user_attrs["architecture"] for trial in search.study.get_trials()]
    assert seen == [(n + 1, text) for n, text in enumerate(texts)]
    assert {text for _, text in seen} <= {t.architecture for t in search.result.trials}


def test_each_diversity_metric_has_its_own_numbers() -> None:
    def outcomes(*texts: str) -> list[Outcome]:
        return [Outcome(1.0, (text,), calls=1, usd=0.0, seconds=0.0) for text in texts]

    found = SingleAgents(
        {"a": outcomes("x y", "x"), "b": outcomes("x z", "x")},
        SearchSpace(("a", "b")),
        Limits(),
    )
    # One of two answers differs; {x, y} and {x, z} share 1 of 3 words, so distance 2/3 and 0.
    disagreement = found.pair(DIVERSITY_METRICS["disagreement"]())
    jaccard = found.pair(DIVERSITY_METRICS["jaccard"]())
    assert disagreement("a", "b") == pytest.approx(1 / 2)
    assert jaccard("b", "a") == pytest.approx(1 / 3)
    assert disagreement("a", "a") == jaccard("b", "b") == 0


def recorded(experts: Make, rows: Make, student: Make) -> Calls:
    """Calls of the single agents alone, to be replayed."""
    calls = Calls()
    pool = experts(calls)
    for agent in pool:
        mixture = student(pool).with_architecture(Architecture.single(agent))
        for row in (*rows("val", N_VAL), *rows("test", N_TEST)):
            mixture(question=row.question)
    return Calls(calls.store, replay_only=True)


@pytest.mark.slow
def test_a_baseline_outside_of_the_space_may_be_missing_from_a_recording(
    searched: Make, experts: Make, rows: Make, student: Make
) -> None:
    calls = recorded(experts, rows, student)
    votes = SearchSpace(("e0", "e1", "e2"), combines=("vote",), max_depth=1)
    _, search = searched(experts(calls), space=votes)
    assert search.result.verdict.kind == "mixture"
    assert search.result.test["self_moa"].note == "not in the recording"


def test_a_hole_inside_the_space_is_an_error(
    searched: Make, experts: Make, rows: Make, student: Make
) -> None:
    calls = recorded(experts, rows, student)
    samples = SearchSpace(("e0", "e1", "e2"), combines=("vote",), max_depth=1, max_samples=3)
    with pytest.raises(UnknownCallError, match="The recording has no call of agent"):
        searched(experts(calls), space=samples)


class Closing:
    """Leaves a pool's ledger no more than some calls when the test begins."""

    def __init__(self, pool: Pool, n_left: int) -> None:
        self._ledger, self._n_left = pool.calls.ledger, n_left

    def __call__(self, snapshot: Any) -> None:
        if snapshot.stage == "test" and self._ledger.budget == Budget():
            self._ledger.budget = Budget(calls=self._ledger.spending.made + self._n_left)


@pytest.mark.slow
@pytest.mark.parametrize(
    # The best single agent takes 12 calls, then the vote one or two more on each row. The 12
    # rows of val count beside those of test.
    ("n_left", "kind", "n", "note"),
    [
        (1, "not_enough_examples", 0, "The budget of"),
        (12 + 5, "mixture", 3 + 12, "3 of 12 rows: The budget of"),
    ],
)
def test_a_budget_that_ends_in_the_test_leaves_a_result_and_a_program(
    experts: Make, rows: Make, student: Make, n_left: int, kind: str, n: int, note: str
) -> None:
    pool = experts()
    space = SearchSpace(("e0", "e1", "e2"), combines=("vote",), max_depth=1)
    search = ModelSearch(exact, pool, space=space, n_trials=8, num_threads=1)
    splits = make_splits([], rows("val", N_VAL), rows("test", N_TEST), seed=0)
    outcome = run_search(search.options, student(pool), splits, show=Closing(pool, n_left))
    result = outcome.result
    assert str(result.pick) == "e0 + e1 + e2 > vote(e0)"
    assert (result.verdict.kind, result.verdict.n) == (kind, n)
    assert (result.test["pick"].score is None) is (n == 0)
    assert result.test["pick"].note.startswith(note)
    handed_over = str(result.pick) if kind == "mixture" else "e0"
    assert str(result.recommended) == str(outcome.program.architecture) == handed_over
    assert (result.verdict.n_more > 0) is (kind != "mixture")
    assert StudyResult.from_json(result.to_json()) == result


@pytest.mark.slow
def test_a_budget_of_the_pool_is_kept_by_the_caller(searched: Make, experts: Make) -> None:
    pool = experts()
    program, _ = searched(pool)
    pool.calls.ledger.budget = Budget(calls=pool.calls.ledger.spending.made)
    with pytest.raises(BudgetReachedError):
        program(question="new 1")
