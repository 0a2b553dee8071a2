from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.data.splits import make_splits
from moa_dspy.errors import PoolError, StudyError
from moa_dspy.optimize import Limits, ModelSearch, SearchSpace, Snapshot, StudyResult
from moa_dspy.optimize.search import run_search
from moa_dspy.optimize.space.programs import (
    listed_notes,
    n_listed_untried,
    read_architecture,
)
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]
N_VAL, N_TEST = 18, 24


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(prediction.answer == example.answer)


@pytest.fixture
def experts(fails_on: Make) -> Callable[[], Pool]:
    """Return what makes three agents whose errors are disjoint: two of three are always right."""
    return lambda: scripted_pool({f"e{i}": fails_on(i, says=f"no{i}") for i in range(3)})


@pytest.fixture
def search(rows: Make, student: Make) -> Callable[..., ModelSearch]:
    """Return what compiles a search of a pool on a few rows."""

    def run(pool: Pool, *, metric: Any = exact, **options: Any) -> ModelSearch:
        found = ModelSearch(metric, pool, **{"n_trials": 12, **options})
        val, test = rows("val", N_VAL), rows("test", N_TEST)
        found.compile(student(pool), trainset=[], valset=val, testset=test)
        return found

    return run


def plain(result: StudyResult) -> dict[str, Any]:
    """Return what a seed decides: everything but wall time and what was paid before."""

    def without_seconds(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
        return [without_seconds(v) for v in value] if isinstance(value, list) else value

    found: dict[str, Any] = without_seconds(result.to_json())
    return found


@pytest.mark.slow
def test_a_vote_of_complementary_agents_is_found_proven_and_returned(
    experts: Make, rows: Make, student: Make
) -> None:
    pool = experts()
    search = ModelSearch(exact, pool, n_trials=12)
    program = search.compile(
        student(pool), trainset=[], valset=rows("val", N_VAL), testset=rows("test", N_TEST)
    )
    result = search.result
    assert str(result.pick) == "e0 + e1 + e2 > vote(e0)"
    assert result.verdict.kind == "mixture"
    assert result.recommended == result.pick == program.architecture
    # Each expert misses one question of three; a vote and the oracle miss none.
    assert result.test["best_single"].score == pytest.approx(2 / 3)
    assert result.test["pick"].score == result.test["oracle"].score == 1
    # Beside test scores stands their own difference; the verdict counts the rows of val too.
    assert result.differences["best_single"].estimate == pytest.approx(1 / 3)
    assert result.verdict.n == N_VAL + N_TEST
    assert result.verdict.interval.low > 0
    assert [program(question=f"new {i}").answer for i in range(7, 10)] == ["7", "8", "9"]
    assert program.score == 1


def test_what_is_expected_of_a_search_that_ended_before_its_votes_is_that_of_what_it_may_pick(
    search: Make, experts: Make
) -> None:
    result = search(experts(), callbacks=[lambda study, trial: study.stop()]).result
    assert str(result.pick) == "e0"
    # e0 misses one question of three; a vote of all, which was never a trial, misses none.
    assert result.expected.estimate == pytest.approx(2 / 3)


@pytest.mark.slow
def test_copies_of_one_model_are_no_better_than_it(search: Make, fails_on: Make) -> None:
    found = search(scripted_pool({f"m{i}": fails_on(0) for i in range(3)}))
    # Every architecture scores 2/3, so the one with the fewest calls is picked.
    assert str(found.result.pick) == "m0"
    assert found.result.verdict.kind == "single"
    assert found.result.recommended == found.result.pick
    assert {trial.score for trial in found.result.trials} == {2 / 3}


@pytest.mark.slow
def test_calls_are_those_of_the_ledger_and_every_trial_is_reported(
    search: Make, experts: Make
) -> None:
    pool = experts()
    result = search(pool).result
    assert result.calls_made == pool.calls.ledger.spending.made
    assert len(result.trials) == 12
    assert [trial.number for trial in result.trials] == list(range(12))
    assert [trial.origin for trial in result.trials[:4]] == ["single"] * 3 + ["baseline"]
    again = search(pool).result
    assert again.calls_made == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_study(search: Make, experts: Make) -> None:
    first, second = (search(experts(), seed=3, n_trials=18).result for _ in range(2))
    assert plain(first) == plain(second)


@pytest.mark.slow
def test_threads_change_nothing_but_the_time(search: Make, experts: Make) -> None:
    by_one, by_many = (search(experts(), num_threads=n).result for n in (1, 8))
    assert plain(by_one) == plain(by_many)


@pytest.mark.slow
def test_names_of_agents_do_not_change_what_is_picked(search: Make, fails_on: Make) -> None:
    for names in (("x", "y", "z"), ("z", "x", "y"), ("q-1", "a", "m")):
        scripts = {name: fails_on(i, says=f"no{i}") for i, name in enumerate(names)}
        result = search(scripted_pool(scripts)).result
        assert (result.pick.layers, result.pick.combine) == ((tuple(sorted(names)),), "vote")
        assert result.pick.aggregator == names[0]


def test_a_dead_agent_is_named_before_the_next_one_is_asked(search: Make, fails_on: Make) -> None:
    pool = scripted_pool({"first": fails_on(), "dead": OSError("gone"), "last": fails_on()})
    with pytest.raises(PoolError, match=r"Agent 'dead' does not answer: .*gone"):
        search(pool)
    # One probe of the first, three of the dead, none of the last.
    assert pool.calls.ledger.spending.made == 4


@pytest.mark.slow
def test_a_first_question_that_one_agent_cannot_answer_does_not_end_the_study(
    search: Make, rows: Make, fails_on: Make
) -> None:
    filtered = rows("val", 2)

    def shy(prompt: str) -> str:
        if prompt.splitlines()[0].endswith(tuple(row.question for row in filtered)):
            raise ValueError("filtered")
        return str(fails_on(0)(prompt))

    result = search(scripted_pool({"bold": fails_on(0, 1), "shy": shy})).result
    (trial,) = (record for record in result.trials if record.architecture == "shy")
    # Of 18 questions it fails on every third, and on one of the two that are filtered.
    assert (trial.rows, trial.score) == (N_VAL, 11 / 18)
    assert result.failures["shy"] >= 2


@pytest.mark.slow
def test_the_metric_sees_val_until_the_test_and_every_test_row_after(
    experts: Make, rows: Make, student: Make
) -> None:
    stage, seen = "", []

    def watch(snapshot: Snapshot) -> None:
        nonlocal stage
        stage = snapshot.stage

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        seen.append((stage, example.id.partition("-")[0], example.id))
        return exact(example, prediction)

    pool, splits = experts(), make_splits([], rows("val", N_VAL), rows("test", N_TEST), seed=0)
    run_search(ModelSearch(metric, pool, n_trials=12).options, student(pool), splits, show=watch)
    before = {split for stage, split, _ in seen if stage != "test"}
    assert before == {"val"}
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["probe", "single agents", "search", "random baseline", "test"]
    tested = [example for _, split, example in seen if split == "test"]
    # Best single, pick and top-3 are one vote and one agent; two more agents for the oracle;
    # greedy agents have no Self-MoA. The random pick may be any architecture.
    assert set(tested) == {f"test-{i}" for i in range(N_TEST)}
    assert len(tested) in (4 * N_TEST, 5 * N_TEST)
    assert all(stage == "test" for stage, split, _ in seen if split == "test")


@pytest.mark.slow
def test_more_agents_than_trials_are_all_measured_and_nothing_else(
    search: Make, experts: Make
) -> None:
    result = search(experts(), n_trials=1).result
    assert [trial.architecture for trial in result.trials] == ["e0", "e1", "e2"]
    (note,) = result.notes
    assert note.startswith("No mixture is tried: each of the 3 agents alone is a trial")


@pytest.mark.parametrize(("n_trials", "n_untried"), [(7, 0), (6, 1), (5, 2)])
def test_listed_architectures_come_before_votes_that_nobody_asked_for(
    search: Make, experts: Make, n_trials: int, n_untried: int
) -> None:
    # Three single agents and the votes of the best two and three; then the listed.
    listed = [Architecture.parse(f"{name}*2 > vote({name})") for name in ("e1", "e2")]
    pool = experts()
    space = SearchSpace(tuple(pool), combines=("vote",), max_depth=1, listed=tuple(listed))
    result = search(pool, n_trials=n_trials, space=space).result
    tried = [trial.architecture for trial in result.trials if trial.origin == "listed"]
    assert tried == list(map(str, listed[: 2 - n_untried]))
    assert n_listed_untried(space, pool, n_trials) == n_untried
    said = f"{n_untried} of 2 `listed` architectures are not tried: single agents and baselines"
    assert [note.startswith(said) for note in result.notes] == [True] * bool(n_untried)
    assert result.notes == listed_notes(space, n_untried, n_trials)


@pytest.mark.slow
def test_limits_hold_for_the_pick_and_for_what_is_recommended(search: Make, fails_on: Make) -> None:
    scripts = {"dear": fails_on(), "cheap": fails_on(0, 1)}
    pool = scripted_pool(scripts, usd_per_million_tokens={"dear": 9.0, "cheap": 1.0})
    # A question is 2 tokens and its answer 1 or 2: at most 4e-6 usd from cheap, 27e-6 from dear.
    result = search(pool, limits=Limits(usd=1e-5)).result
    assert (str(result.pick), str(result.recommended)) == ("cheap", "cheap")
    # The verdict, the pick and the program are under one limit; the dear one is a row of its own.
    assert result.test["best_single"].architecture == "cheap"
    assert result.test["best_without_limits"].architecture == "dear"


def test_single_agents_alone_explain_no_differences(
    rows: Make, student: Make, fails_on: Make
) -> None:
    pool = scripted_pool({f"e{i}": fails_on(*range(i + 1), of=5) for i in range(3)})
    search = ModelSearch(exact, pool, n_trials=3, num_threads=1)
    search.compile(student(pool), trainset=[], valset=rows("val", 12), testset=rows("test", 6))
    assert not any(read_architecture(t.architecture).layers for t in search.result.trials)
    # The mean score of its members is the score of a single agent: that it explains it is no news.
    assert search.result.explained == {}


def test_a_large_pool_leaves_room_for_mixtures() -> None:
    pool = scripted_pool({f"a{i:02}": "Paris" for i in range(30)})
    assert ModelSearch(exact, pool).options.n_trials == 30 + 15
    few = SearchSpace(tuple(pool)[:25])
    assert ModelSearch(exact, pool, space=few).options.n_trials == 40
    assert ModelSearch(exact, pool).options.notes == ()
    (note,) = ModelSearch(exact, pool, n_trials=31).options.notes
    assert note.startswith("There is room for few mixtures (1): each of the 30 agents alone is")
    with pytest.raises(StudyError, match="`n_trials` and `num_threads` must be at least 1"):
        ModelSearch(exact, pool, n_trials=0)
