from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.objectives import ScoreObjective, WinRateObjective
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.study import save_study
from moa_dspy.optimize.trials import Proposal, Trials, make_study

NAMES = ("a", "b", "c")
# 3 singles, and the votes of 2 or 3 of 3 agents: 3 + 1
SMALL = SearchSpace(NAMES, combines=("vote",), max_depth=1)


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


def trials(space: SearchSpace = SMALL, *, seed: int = 0, sampler: Any = None) -> Trials:
    study = make_study([WinRateObjective(), ScoreObjective()], seed=seed, sampler=sampler)
    return Trials(study=study, space=space, ranking=NAMES, canonical=canonical, seed=seed)


def measure(search: Trials, world: World, proposals: Iterable[Proposal]) -> None:
    for proposal in proposals:
        record = world(proposal.architecture, proposal.origin)
        search.tell(proposal, record, [record.win_rate, record.score])


def run(search: Trials, world: World, n_trials: int) -> None:
    while len(search.records) < n_trials and (proposal := search.ask()) is not None:
        measure(search, world, [proposal])


def parsed(*texts: str) -> list[Architecture]:
    return list(map(Architecture.parse, texts))


def test_no_architecture_is_measured_twice() -> None:
    world, search = World(), trials(SearchSpace(NAMES))
    measure(search, world, search.fresh(parsed("a", "b", "c", "a"), origin="single"))
    # One vote, whoever was named for its ties.
    votes = parsed("a + b > vote(a)", "a + b > vote(b)", "b")
    measure(search, world, search.fresh(votes, origin="baseline"))
    run(search, world, 30)
    assert max(Counter(text for text, _ in world.asked).values()) == 1
    assert len(search.records) == len(world.asked) == 30
    assert [record.number for record in search.records.values()] == list(range(30))


def test_a_small_space_ends_when_all_of_it_is_known() -> None:
    world, search = World(), trials()
    run(search, world, 1000)
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
    world, search = World(), trials(sampler=Stubborn())
    run(search, world, 5)
    assert len(search.records) == 5
    assert [origin for _, origin in world.asked] == ["sampler"] + ["random"] * 4


@pytest.mark.slow
def test_the_same_seed_asks_the_same() -> None:
    worlds = [World(), World(), World()]
    for world, seed in zip(worlds, (1, 1, 2), strict=True):
        run(trials(SearchSpace(NAMES), seed=seed), world, 20)
    assert worlds[0].asked == worlds[1].asked
    assert worlds[0].asked != worlds[2].asked


def test_the_sampler_learns_of_openers_that_are_in_the_space() -> None:
    world, search = World(), trials()
    openers = parsed("b", "a*3 > vote(a)", "b + c > vote(b)")
    measure(search, world, search.fresh(openers, origin="baseline"))
    told = search.study.get_trials()
    assert [trial.user_attrs["architecture"] for trial in told] == ["b", "b + c > vote(b)"]
    assert [trial.values for trial in told] == [[0.1, 0.1], [0.2, 0.2]]
    assert told[1].params["layer1.b"] is told[1].params["layer1.c"] is True


def test_what_could_not_be_measured_is_told_as_a_failure() -> None:
    world, search = World(), trials()
    run(search, world, 4)
    proposal = search.ask()
    assert proposal is not None
    search.give_up(proposal)
    assert len(search.records) == len(world.asked) == 4
    # The sampler hears of known ones again, and of the one that was not measured as a failure.
    told = [trial.user_attrs.get("architecture") for trial in search.study.get_trials()]
    assert set(told) == {None, *(text for text, _ in world.asked)}
    assert search.study.get_trials()[-1].state == optuna.trial.TrialState.FAIL


def test_a_saved_study_is_optunas(tmp_path: Path) -> None:
    world, search = World(), trials(SearchSpace(NAMES))
    openers = parsed("a", "b", "a + b > vote(a)")
    measure(search, world, search.fresh(openers, origin="single"))
    run(search, world, 12)
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
