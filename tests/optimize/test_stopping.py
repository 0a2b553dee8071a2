from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import dspy
import optuna
import pytest
from optuna.trial import TrialState

from moa_dspy.data.splits import make_splits
from moa_dspy.errors import StudyError
from moa_dspy.optimize import ModelSearch, SearchSpace
from moa_dspy.optimize.search import run_search
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(prediction.answer == example.answer)


@pytest.fixture
def experts(fails_on: Make) -> Pool:
    return scripted_pool({f"e{i}": fails_on(i, says=f"no{i}") for i in range(3)})


@pytest.fixture
def counted() -> tuple[Pool, list[str]]:
    """Two agents, and what they were asked."""
    asked: list[str] = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        return "1"

    return scripted_pool({"a": reply, "b": reply}), asked


def after(n_trials: int, act: Callable[[optuna.Study], None]) -> Callable[..., None]:
    """Return a callback that acts when so many trials are finished."""

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number + 1 == n_trials:
            act(study)

    return callback


def interrupt(_: optuna.Study) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "reason"), [(optuna.Study.stop, "study.stop"), (interrupt, "interrupted")]
)
def test_a_stopped_search_ends_with_the_best_so_far_and_a_verdict(
    experts: Pool, rows: Make, student: Make, act: Any, reason: str
) -> None:
    # 3 single agents, and the first mixture is a vote of the best two.
    stop = after(5, (lambda study: study.stop()) if act is optuna.Study.stop else act)
    search = ModelSearch(exact, experts, n_trials=12, callbacks=[stop])
    val, test = rows("val", 18), rows("test", 24)
    program = search.compile(student(experts), trainset=[], valset=val, testset=test)
    result = search.result
    assert len(result.trials) == 5
    assert reason in str(result.stopped_by)
    assert result.test["pick"].score is not None
    assert result.test["random"].score is None
    assert "ended early" in result.test["random"].note
    assert program(question="test 7").answer == "7"
    assert {trial.state for trial in search.study.trials} == {TrialState.COMPLETE}


def test_a_study_from_a_file_is_interrupted_and_not_ended(
    experts: Pool, rows: Make, student: Make
) -> None:
    search = ModelSearch(exact, experts, n_trials=12, callbacks=[after(5, interrupt)])
    splits = make_splits([], rows("val", 18), rows("test", 24), seed=0)
    with pytest.raises(KeyboardInterrupt):
        run_search(search.options, student(experts), splits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.TPESampler(seed=0),
        optuna.samplers.NSGAIISampler(seed=0, population_size=4),
        optuna.samplers.RandomSampler(seed=0),
    ],
)
def test_any_sampler_of_optunas_goes_in_the_same_place(
    experts: Pool, rows: Make, student: Make, sampler: Any
) -> None:
    search = ModelSearch(exact, experts, n_trials=12, sampler=sampler)
    val, test = rows("val", 18), rows("test", 24)
    search.compile(student(experts), trainset=[], valset=val, testset=test)
    assert search.study.sampler is sampler
    assert len(search.result.trials) == 12
    assert len({trial.architecture for trial in search.result.trials}) == 12
    assert search.result.val["pick"].score == 1.0


def test_the_gp_sampler_searches_as_well(experts: Pool, rows: Make, student: Make) -> None:
    pytest.importorskip("torch", reason="Optuna's GPSampler needs torch")
    sampler = optuna.samplers.GPSampler(seed=0)
    search = ModelSearch(exact, experts, n_trials=10, sampler=sampler, objectives=["score"])
    val, test = rows("val", 18), rows("test", 24)
    search.compile(student(experts), trainset=[], valset=val, testset=test)
    assert len(search.result.trials) == 10


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (optuna.samplers.CmaEsSampler(seed=0), "multi-objective optimization, CmaEsSampler cannot"),
        (optuna.samplers.GridSampler({"kind": ["single"]}, seed=0), "not found in the given grid"),
        (optuna.samplers.TPESampler, "must be a sampler of Optuna such as"),
        ("tpe", "must be a sampler of Optuna such as .* but got 'tpe'"),
    ],
)
def test_a_sampler_that_cannot_propose_is_refused_before_anything_is_asked(
    counted: tuple[Pool, list[str]], rows: Make, student: Make, sampler: Any, message: str
) -> None:
    pool, asked = counted
    search = ModelSearch(exact, pool, n_trials=12, sampler=sampler)
    with pytest.raises(StudyError, match=message):
        search.compile(student(pool), trainset=[], valset=rows("val", 18), testset=rows("test", 9))
    assert asked == []


def test_a_gp_sampler_without_its_package_is_refused_before_anything_is_asked(
    counted: tuple[Pool, list[str]], rows: Make, student: Make
) -> None:
    if find_spec("torch") is not None:
        pytest.skip("torch is here")
    pool, asked = counted
    search = ModelSearch(exact, pool, sampler=optuna.samplers.GPSampler(seed=0))
    with pytest.raises(StudyError, match=r"GPSampler cannot be used in this search: .*torch"):
        search.compile(student(pool), trainset=[], valset=rows("val", 18), testset=rows("test", 9))
    assert asked == []


class Ends(optuna.samplers.RandomSampler):
    """Has nothing left to propose after five trials, as Optuna's exhaustive samplers say it."""

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        if trial.number == 4:
            study.stop()


def test_a_sampler_that_has_nothing_left_ends_the_trials_alone(
    experts: Pool, rows: Make, student: Make
) -> None:
    space = SearchSpace(("e0", "e1", "e2"), combines=("vote",), max_depth=1)
    search = ModelSearch(exact, experts, space=space, n_trials=40, sampler=Ends(seed=0))
    splits = {"trainset": [], "valset": rows("val", 18), "testset": rows("test", 24)}
    search.compile(student(experts), **splits)
    assert len(search.result.trials) == 5
    assert search.result.stopped_by == "The sampler has nothing left to propose."
    # Nobody asked for an early end: the random baseline is measured as in any search.
    assert search.result.test["random"].score is not None


@pytest.mark.filterwarnings("ignore:BruteForceSampler")
def test_a_tree_of_all_choices_is_refused_where_a_baseline_is_none_of_them(
    rows: Make, student: Make
) -> None:
    # Sampled, so that Self-MoA is a baseline; a space has each agent once in a layer.
    pool = scripted_pool({"a": "1", "b": "2"}, temperature=1.0)
    sampler = optuna.samplers.BruteForceSampler(seed=0)
    search = ModelSearch(exact, pool, space=SearchSpace(("a", "b")), sampler=sampler)
    splits = {"trainset": [], "valset": rows("val", 9), "testset": rows("test", 9)}
    with pytest.raises(
        StudyError, match=r"the baseline a\*3 > vote\(a\), which is not in the space"
    ):
        search.compile(student(pool), **splits)
    assert pool.calls.ledger.spending.made == 0
