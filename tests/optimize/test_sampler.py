from __future__ import annotations

import math
import pickle
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize import PerformanceDiversitySampler, SearchSpace
from moa_dspy.optimize.sampler import ROW_SCORES

STRENGTH = {"a": 0.7, "b": 0.6, "c": 0.5, "d": 0.4, "e": 0.3}
NAMES = tuple(STRENGTH)
SPACE = SearchSpace(NAMES, max_depth=1, max_width=3)
# 5 singles, and of 2 or 3 of 5 agents (10 + 10 layers) a vote or one of 5 writers: 20 * 6
SIZE = 125
# 3 singles, and the votes of 2 or 3 of 3 agents: 3 + 1
SMALL = SearchSpace(("a", "b", "c"), combines=("vote",), max_depth=1)


def truth(arch: Architecture) -> float:
    """The stronger the readers and the writer, the better; a vote is worth its readers alone."""
    if not arch.layers:
        return STRENGTH[str(arch.aggregator)]
    reads = sum(STRENGTH[name] for name in arch.layers[-1]) / len(arch.layers[-1])
    return 0.6 * reads + (0.5 * STRENGTH[str(arch.aggregator)] if arch.combine != "vote" else 0)


Objective = Callable[[optuna.Trial], float]


def objective(space: SearchSpace = SPACE, seconds: float = 0.0) -> Objective:
    def measure(trial: optuna.Trial) -> float:
        arch = space.suggest(trial)
        trial.set_user_attr("architecture", str(arch))
        time.sleep(seconds)
        return truth(arch)

    return measure


def study_of(space: SearchSpace = SPACE, seed: int = 0, **options: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = PerformanceDiversitySampler(space, seed=seed)
    options.setdefault("direction", None if "directions" in options else "maximize")
    return optuna.create_study(sampler=sampler, **options)


def texts(study: optuna.Study) -> list[str]:
    return [trial.user_attrs["architecture"] for trial in study.trials]


def test_a_plain_study_finds_the_best_after_the_single_agents() -> None:
    study = study_of()
    study.optimize(objective(), n_trials=20)
    assert texts(study)[:5] == list(NAMES)
    assert len(set(texts(study))) == 20
    # 0.6 * (0.7 + 0.6) / 2 + 0.5 * 0.7
    assert study.best_trial.user_attrs["architecture"] == "a + b > synthesize(a)"
    assert study.best_value == pytest.approx(0.74)


def test_what_is_to_be_low_is_searched_as_well() -> None:
    study = study_of(direction="minimize")
    study.optimize(lambda trial: 100 - 50 * truth(SPACE.suggest(trial)), n_trials=25)
    # 100 - 50 * 0.74
    assert study.best_value == pytest.approx(63)


def test_the_same_seed_proposes_the_same() -> None:
    found = []
    for seed in (3, 3, 4):
        study = study_of(SearchSpace(NAMES, max_depth=3), seed)
        study.optimize(objective(SearchSpace(NAMES, max_depth=3)), n_trials=12)
        found.append(texts(study))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_small_space_is_measured_whole_before_anything_is_repeated() -> None:
    study = study_of(SMALL)
    study.optimize(objective(SMALL), n_trials=7)
    assert len(set(texts(study))) == 7
    study.optimize(objective(SMALL), n_trials=2)
    assert len(study.trials) == 9, "where nothing is left, it repeats"


@pytest.mark.slow
def test_every_architecture_of_a_space_is_proposed_once() -> None:
    assert SPACE.size == SIZE
    study = study_of()
    study.optimize(objective(), n_trials=SIZE)
    assert len(set(texts(study))) == SIZE


def test_running_trials_count_as_taken() -> None:
    study = study_of()
    asked = [study.ask() for _ in range(8)]
    found = [str(SPACE.suggest(trial)) for trial in asked]
    assert len(set(found)) == 8


@pytest.mark.slow
def test_four_threads_propose_nothing_twice() -> None:
    study = study_of()
    study.optimize(objective(seconds=0.01), n_trials=40, n_jobs=4)
    assert Counter(texts(study)).most_common(1)[0][1] == 1
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_enqueued_trials_are_learned_from_and_not_repeated() -> None:
    study = study_of()
    arch = Architecture.parse("a + b > synthesize(a)")
    params = SPACE.params(arch)
    assert params is not None
    study.enqueue_trial(params)
    study.optimize(objective(), n_trials=12)
    assert texts(study)[0] == "a + b > synthesize(a)"
    assert len(set(texts(study))) == 12


def test_trials_of_an_earlier_study_are_known(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'study.sqlite3'}"
    study = study_of(storage=url, study_name="mine")
    study.optimize(lambda trial: truth(SPACE.suggest(trial)), n_trials=8)
    sampler = PerformanceDiversitySampler(SPACE, seed=1)
    again = optuna.load_study(study_name="mine", storage=url, sampler=sampler)
    again.optimize(lambda trial: truth(SPACE.suggest(trial)), n_trials=8)
    params = [tuple(sorted(trial.params.items())) for trial in again.trials]
    assert len(set(params)) == 16


def test_several_objectives_spread_along_the_front() -> None:
    study = study_of(directions=["maximize", "minimize"])

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        arch = SPACE.suggest(trial)
        trial.set_user_attr("architecture", str(arch))
        return truth(arch), float(arch.calls)

    study.optimize(measure, n_trials=25)
    assert len(set(texts(study))) == 25
    front = {trial.user_attrs["architecture"] for trial in study.best_trials}
    # One call: the best alone. Three: the two best, the best writes.
    assert {"a", "a + b > synthesize(a)"} <= front


def test_pruned_and_failed_trials_are_not_proposed_again() -> None:
    study = study_of()

    def measure(trial: optuna.Trial) -> float:
        arch = SPACE.suggest(trial)
        trial.set_user_attr("architecture", str(arch))
        if trial.number % 5 == 3:
            trial.report(truth(arch), step=20)
            raise optuna.TrialPruned
        if trial.number % 5 == 4:
            raise ValueError(arch)
        return truth(arch)

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study.optimize(measure, n_trials=20, catch=ValueError)
    assert len(set(texts(study))) == 20


def test_what_breaks_a_constraint_counts_as_the_worst() -> None:
    study = study_of()

    def measure(trial: optuna.Trial) -> float:
        arch = SPACE.suggest(trial)
        trial.set_constraint("calls", arch.calls - 2)
        return truth(arch)

    study.optimize(measure, n_trials=30)
    # Of 125 only 15 are within it: the 5 single agents, and the votes of the 10 pairs. The best of
    # the others ask a writer besides.
    kept = [trial for trial in study.trials if trial.constraints["calls"] <= 0]
    assert len(kept) >= 10
    assert study.best_value == pytest.approx(0.7)


def test_where_all_break_a_constraint_the_less_is_the_better() -> None:
    study = study_of()

    def measure(trial: optuna.Trial) -> float:
        arch = SPACE.suggest(trial)
        trial.set_user_attr("architecture", str(arch))
        trial.set_constraint("price", 1 / truth(arch))
        return 0.5

    study.optimize(measure, n_trials=20)
    assert "a + b > synthesize(a)" in texts(study)


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(),
        # It shows a sampler the trials of one of its brackets.
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=5),
    ],
)
def test_with_a_pruner_nothing_is_proposed_twice(pruner: Any) -> None:
    study = study_of(pruner=pruner)

    def measure(trial: optuna.Trial) -> float:
        arch = SPACE.suggest(trial)
        trial.set_user_attr("architecture", str(arch))
        for step in range(1, 6):
            trial.report(truth(arch), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return truth(arch)

    study.optimize(measure, n_trials=30)
    assert len(set(texts(study))) == 30


@pytest.mark.filterwarnings("ignore:PartialFixedSampler")
def test_a_choice_that_is_fixed_is_not_asked_for_again() -> None:
    inner = PerformanceDiversitySampler(SPACE, seed=0)
    sampler = optuna.samplers.PartialFixedSampler({"kind": "layers"}, inner)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective(), n_trials=20)
    assert {trial.params["kind"] for trial in study.trials} == {"layers"}
    assert len(set(texts(study))) == 20
    assert study.best_value == pytest.approx(0.74)


def test_processes_that_ask_at_the_same_time_propose_different_ones(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'study.sqlite3'}"
    studies = [study_of(storage=url, study_name="mine")]
    sampler = PerformanceDiversitySampler(SPACE, seed=1)
    studies.append(optuna.load_study(study_name="mine", storage=url, sampler=sampler))
    for _ in range(5):
        # Neither knows what the other was told: the choices are stored when they are suggested.
        asked = [(study, study.ask()) for study in studies]
        for study, trial in asked:
            study.tell(trial, objective()(trial))
    assert len(set(texts(studies[0]))) == 10


def test_a_sampler_starts_anew_in_another_study_of_the_same_name() -> None:
    sampler = PerformanceDiversitySampler(SPACE, seed=0)
    for _ in range(2):
        study = optuna.create_study(study_name="mine", direction="maximize", sampler=sampler)
        study.optimize(objective(), n_trials=8)
        assert texts(study)[:5] == list(NAMES)
        assert len(set(texts(study))) == 8


def test_scores_of_rows_are_learned_from_where_all_trials_have_them() -> None:
    study = study_of()

    def measure(trial: optuna.Trial) -> float:
        arch = SPACE.suggest(trial)
        trial.set_user_attr("architecture", str(arch))
        right = round(20 * truth(arch))
        trial.set_user_attr(ROW_SCORES, [1.0] * right + [0.0] * (20 - right))
        # The value misleads: only the rows tell.
        return 0.5

    study.optimize(measure, n_trials=20)
    assert "a + b > synthesize(a)" in texts(study)


def test_rows_of_losses_are_learned_from_where_their_mean_is_minimised() -> None:
    # Each row is 20 times the loss of the trial, which is also its value.
    study = study_of(direction="minimize")

    def loss(trial: optuna.Trial) -> float:
        one = SPACE.suggest(trial)
        trial.set_user_attr("architecture", str(one))
        trial.set_user_attr(ROW_SCORES, [20 * (1 - truth(one))] * 4)
        return 20 * (1 - truth(one))

    study.optimize(loss, n_trials=20)
    assert "a + b > synthesize(a)" in texts(study)


@pytest.mark.parametrize("given", ["0.5 0.7", [], [None, None], [[0.5], [0.7]], {"row": 1.0}])
def test_rows_that_are_no_numbers_are_an_error_that_names_the_trial(given: Any) -> None:
    study = study_of()

    def measure(trial: optuna.Trial) -> float:
        trial.set_user_attr(ROW_SCORES, given)
        return truth(SPACE.suggest(trial))

    message = r"User attribute `row_scores` must be a list of numbers, but in trial 0 it is "
    with pytest.raises(StudyError, match=message):
        study.optimize(measure, n_trials=8)


@pytest.mark.parametrize("given", ["resnet", "resnet 50 (x", {"layers": 2}, 3])
def test_an_attribute_architecture_of_the_users_own_means_nothing_to_the_sampler(
    given: Any,
) -> None:
    study, found = study_of(), list[str]()

    def measure(trial: optuna.Trial) -> float:
        one = SPACE.suggest(trial)
        found.append(str(one))
        trial.set_user_attr("architecture", given)
        return truth(one)

    study.optimize(measure, n_trials=12)
    assert found[:5] == list(NAMES)
    assert len(set(found)) == 12


def test_other_parameters_are_drawn_independently() -> None:
    study = study_of()
    study.optimize(
        lambda trial: truth(SPACE.suggest(trial)) + trial.suggest_float("temperature", 0, 0.01),
        n_trials=10,
    )
    drawn = {trial.params["temperature"] for trial in study.trials}
    assert len(drawn) == 10


def test_a_pickled_sampler_proposes_as_the_one_it_was_made_from() -> None:
    study = study_of()
    study.optimize(objective(), n_trials=8)
    other = pickle.loads(pickle.dumps(study))
    for optuna_study in (study, other):
        optuna_study.optimize(objective(), n_trials=4)
    assert texts(other) == texts(study)


def test_an_infinite_value_is_as_good_as_the_best_that_is_not() -> None:
    study = study_of()
    study.optimize(
        lambda trial: math.inf if (value := objective()(trial)) > 0.68 else value, n_trials=15
    )
    assert len(set(texts(study))) == 15
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_what_is_no_space_is_refused() -> None:
    with pytest.raises(StudyError, match="`space` must be a SearchSpace, but got 'a'"):
        PerformanceDiversitySampler("a")  # type: ignore[arg-type]
