from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import BudgetReachedError, UnknownCallError
from moa_dspy.optimize.objectives import ScoreObjective, WinRateObjective
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.study import save_study
from moa_dspy.optimize.trials import Trials, make_study

NAMES = ("a", "b", "c")
# 3 singles, and the votes of 2 or 3 of 3 agents: 3 + 1
SMALL = SearchSpace(NAMES, combines=("vote",), max_depth=1)
Measure = Callable[[Architecture, str], TrialRecord]


class World:
    """Measures by rule: the more agents, the better; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, architecture: Architecture, origin: str) -> TrialRecord:
        self.asked.append((str(architecture), origin))
        score = len(architecture.agents) / 10
        return TrialRecord(
            len(self.asked) - 1, str(architecture), origin, score, score, 0.0, 1.0, 0.0, 0.0, 9
        )


class Stubborn(optuna.samplers.RandomSampler):
    """Takes the first of all choices, always: the single agent a."""

    def sample_independent(
        self, study: Any, trial: Any, param_name: str, param_distribution: Any
    ) -> Any:
        return param_distribution.choices[0]


def canonical(architecture: Architecture) -> Architecture:
    """Give ties to the voter whose name comes first."""
    if architecture.combine != "vote":
        return architecture
    return replace(architecture, aggregator=min(architecture.layers[-1]))


def trials(
    measure: Measure, space: SearchSpace = SMALL, *, seed: int = 0, sampler: Any = None
) -> Trials:
    def values(record: TrialRecord) -> Sequence[float]:
        return [record.win_rate, record.score]

    study = make_study([WinRateObjective(), ScoreObjective()], seed=seed, sampler=sampler)
    return Trials(
        study=study,
        space=space,
        ranking=NAMES,
        canonical=canonical,
        measure=measure,
        values=values,
        seed=seed,
    )


def parsed(*texts: str) -> list[Architecture]:
    return list(map(Architecture.parse, texts))


def test_no_architecture_is_measured_twice() -> None:
    world = World()
    search = trials(world, SearchSpace(NAMES))
    search.open_with(parsed("a", "b", "c", "a"), origin="single")
    # One vote, whoever was named for its ties.
    search.open_with(parsed("a + b > vote(a)", "a + b > vote(b)", "b"), origin="baseline")
    search.run(30)
    assert max(Counter(text for text, _ in world.asked).values()) == 1
    assert len(search.records) == len(world.asked) == 30
    assert [record.number for record in search.records.values()] == list(range(30))


def test_a_small_space_ends_when_all_of_it_is_known() -> None:
    world = World()
    search = trials(world)
    search.run(1000)
    assert sorted(text for text, _ in world.asked) == [
        "a",
        "a + b + c > vote(a)",
        "a + b > vote(a)",
        "a + c > vote(a)",
        "b",
        "b + c > vote(b)",
        "c",
    ]


def test_a_sampler_that_repeats_itself_is_helped_by_draws() -> None:
    world = World()
    search = trials(world, sampler=Stubborn())
    search.run(5)
    assert len(search.records) == 5
    assert [origin for _, origin in world.asked] == ["sampler"] + ["random"] * 4


def test_the_same_seed_asks_the_same() -> None:
    worlds = [World(), World(), World()]
    for world, seed in zip(worlds, (1, 1, 2), strict=True):
        trials(world, SearchSpace(NAMES), seed=seed).run(20)
    assert worlds[0].asked == worlds[1].asked
    assert worlds[0].asked != worlds[2].asked


def test_openers_stop_at_the_limit_and_known_ones_do_not_count() -> None:
    world = World()
    search = trials(world)
    search.open_with(parsed("a", "b"), origin="single")
    search.open_with(parsed("a", "c", "a + b > vote(a)"), origin="baseline", limit=3)
    search.open_with(parsed("b + c > vote(b)"), origin="votes", limit=1)
    assert [text for text, _ in world.asked] == ["a", "b", "c"]


def test_the_sampler_learns_of_openers_that_are_in_the_space() -> None:
    search = trials(World())
    search.open_with(parsed("b", "a*3 > vote(a)", "b + c > vote(b)"), origin="baseline")
    told = search.study.get_trials()
    assert [trial.user_attrs["architecture"] for trial in told] == ["b", "b + c > vote(b)"]
    assert [trial.values for trial in told] == [[0.1, 0.1], [0.2, 0.2]]
    assert told[1].params["layer1.b"] is told[1].params["layer1.c"] is True


def test_a_reached_budget_ends_the_search_and_says_so() -> None:
    world = World()

    def until_four(architecture: Architecture, origin: str) -> TrialRecord:
        if len(world.asked) == 4:
            raise BudgetReachedError("The budget of 4 calls is reached.")
        return world(architecture, origin)

    search = trials(until_four)
    search.open_with(parsed("a", "b", "c"), origin="single")
    search.run(30)
    search.open_with(parsed("a + b > vote(a)", "a + c > vote(a)"), origin="baseline")
    assert len(search.records) == len(world.asked) == 4
    assert search.stopped_by == "The budget of 4 calls is reached."
    # The sampler hears of known ones again, and of the one that was not measured as a failure.
    told = [trial.user_attrs.get("architecture") for trial in search.study.get_trials()]
    assert set(told) == {None, *(text for text, _ in world.asked)}
    assert search.study.get_trials()[-1].state == optuna.trial.TrialState.FAIL


def unrecorded(architecture: Architecture, origin: str) -> TrialRecord:
    raise UnknownCallError(f"The recording has no call of {architecture}.")


def test_a_rival_outside_the_space_may_be_missing_from_a_recording() -> None:
    search = trials(unrecorded)
    search.open_with(parsed("a*3 > vote(a)", "a + b > synthesize(a)"), origin="baseline")
    assert not search.records


@pytest.mark.parametrize("origin", ["single", "baseline", "votes", "random"])
def test_a_hole_inside_the_space_is_an_error(origin: str) -> None:
    with pytest.raises(UnknownCallError, match=r"no call of a \+ b > vote\(a\)"):
        trials(unrecorded).open_with(parsed("a + b > vote(b)"), origin=origin)
    with pytest.raises(UnknownCallError, match="no call of"):
        trials(unrecorded).run(1)


def test_a_saved_study_is_optunas(tmp_path: Path) -> None:
    search = trials(World(), SearchSpace(NAMES))
    search.open_with(parsed("a", "b", "a + b > vote(a)"), origin="single")
    search.run(12)
    path = tmp_path / "study.sqlite3"
    path.write_text("an older file", "utf-8")
    save_study(search.study, path, name="mine")
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    loaded = optuna.load_study(study_name="mine", storage=storage)
    assert loaded.directions == search.study.directions
    complete = [optuna.trial.TrialState.COMPLETE]
    kept, told = loaded.get_trials(), search.study.get_trials(states=complete)
    assert len(told) < len(search.study.trials), "a repeat is no trial of its own"
    storage.engine.dispose()
    facts = [(t.params, t.values, t.user_attrs, t.distributions, t.state) for t in told]
    assert [(t.params, t.values, t.user_attrs, t.distributions, t.state) for t in kept] == facts
    assert [p.name for p in tmp_path.iterdir()] == ["study.sqlite3"]
