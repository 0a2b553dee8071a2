from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.objectives import Objective, ScoreObjective, WinRateObjective
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.storage import LiveStorage, make_study
from moa_dspy.optimize.trials import Proposal, Trials

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
        trial = search.start(proposal)
        search.tell(proposal, trial, record, [record.win_rate, record.score])


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


def test_every_architecture_measured_is_a_trial_also_outside_of_the_space() -> None:
    world, search = World(), trials()
    openers = parsed("b", "a*3 > vote(a)", "b + c > vote(b)")
    measure(search, world, search.fresh(openers, origin="baseline"))
    finished = search.study.get_trials()
    assert [trial.user_attrs["architecture"] for trial in finished] == list(map(str, openers))
    # The number of different agents by ten.
    assert [trial.values for trial in finished] == [[0.1, 0.1], [0.1, 0.1], [0.2, 0.2]]
    assert finished[1].params == {"kind": "layers"}, "three samples of one agent are no choice here"
    assert finished[2].params["layer1.b"] is finished[2].params["layer1.c"] is True
    facts = {name: finished[2].user_attrs[name] for name in ("origin", "rows", "calls", "usd")}
    assert facts == {"origin": "baseline", "rows": 9, "calls": 1.0, "usd": 0.0}
    assert search.study.metric_names == ["win_rate", "score"]


def test_what_could_not_be_measured_fails_with_the_reason() -> None:
    world, search = World(), trials()
    run(search, world, 4)
    proposal = search.ask()
    assert proposal is not None
    trial = search.fail(search.start(proposal), "The budget of 9 calls is reached.")
    assert len(search.records) == len(world.asked) == 4
    assert trial.state == optuna.trial.TrialState.FAIL
    assert trial.user_attrs["reason"] == "The budget of 9 calls is reached."
    assert trial.user_attrs["architecture"] == str(proposal.architecture)


def stopped(search: Trials, text: str, values: list[list[float]]) -> optuna.trial.FrozenTrial:
    """Return the trial of a loser that reported ``values`` after each 40 rows."""
    (proposal,) = search.fresh(parsed(text), origin="model")
    trial = search.start(proposal)
    for block, reported in enumerate(values, start=1):
        search.report(trial, 40 * block, reported)
    record = TrialRecord(0, text, "model", 0.2, 0.3, 0.0, 1.0, 0.0, 0.0, 80, is_stopped_early=True)
    return search.tell(proposal, trial, record, values[-1])


def test_a_loser_is_pruned_with_its_value_after_each_block() -> None:
    study = make_study([ScoreObjective()], seed=0)
    search = Trials(study=study, space=SMALL, ranking=NAMES, canonical=canonical, seed=0)
    trial = stopped(search, "a + b > vote(a)", [[0.5], [0.3]])
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {40: 0.5, 80: 0.3}
    assert trial.values == [0.3]


@pytest.mark.parametrize("sampler", [None, optuna.samplers.NSGAIISampler(seed=0)])
def test_with_several_objectives_the_values_of_a_pruned_trial_are_an_attribute(
    sampler: Any,
) -> None:
    search = trials(sampler=sampler)
    pruned = stopped(search, "a + b > vote(a)", [[0.5, 0.6], [0.3, 0.4]])
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert pruned.user_attrs["values_by_rows"] == {"40": [0.5, 0.6], "80": [0.3, 0.4]}
    # Optuna's samplers raise at intermediate values of such a study; at this they do not.
    run(search, World(), 7)
    assert len(search.records) == 7
    assert pruned.number not in {trial.number for trial in search.study.best_trials}


def test_limits_are_the_constraints_of_a_trial() -> None:
    study = make_study([ScoreObjective()], seed=0)
    limits = Limits(calls=2, usd=0.5)
    search = Trials(
        study=study, space=SMALL, ranking=NAMES, canonical=canonical, seed=0, limits=limits
    )
    (proposal,) = search.fresh(parsed("a + b > vote(a)"), origin="model")
    record = TrialRecord(0, "a + b > vote(a)", "model", 0.9, 0.9, 0.0, 3.0, 0.125, 1.0, 9)
    trial = search.tell(proposal, search.start(proposal), record, [0.9])
    # 3 calls of at most 2; 0.125 usd of at most 0.5
    assert trial.constraints == {"calls": 1.0, "usd": -0.375}
    with pytest.raises(ValueError, match="No feasible trials"):
        _ = search.study.best_trial


def test_a_callback_may_stop_a_study_outside_of_optunas_loop() -> None:
    search = trials()
    assert not search.study.is_stopped
    search.study.stop()
    assert search.study.is_stopped


def test_trials_are_in_the_file_while_the_study_runs(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite3"
    path.write_text("an older file", "utf-8")
    storage = LiveStorage(path, "mine")
    objectives: list[Objective] = [WinRateObjective(), ScoreObjective()]
    study = make_study(objectives, seed=0, storage=storage)
    space = SearchSpace(NAMES)
    search = Trials(study=study, space=space, ranking=NAMES, canonical=canonical, seed=0)
    world = World()
    measure(search, world, search.fresh(parsed("a", "b", "a*3 > vote(a)"), origin="single"))
    run(search, world, 12)
    proposal = search.ask()
    assert proposal is not None
    trial = search.start(proposal)
    reader = optuna.storages.RDBStorage(f"sqlite:///{path}")
    found = optuna.load_study(study_name="mine", storage=reader)
    assert found.metric_names == ["win_rate", "score"]
    assert found.directions == study.directions
    for kept, in_memory in zip(found.trials, study.trials, strict=True):
        facts = (
            in_memory.number,
            in_memory.state,
            in_memory.values,
            in_memory.params,
            in_memory.user_attrs,
        )
        assert (kept.number, kept.state, kept.values, kept.params, kept.user_attrs) == facts
        assert kept.distributions == in_memory.distributions
        assert kept.system_attrs == in_memory.system_attrs
        assert kept.datetime_start is not None
        assert in_memory.datetime_start is not None
        assert abs((kept.datetime_start - in_memory.datetime_start).total_seconds()) < 5
    running = found.trials[-1]
    assert running.state == optuna.trial.TrialState.RUNNING
    assert running.user_attrs["architecture"] == str(proposal.architecture)
    search.report(trial, 40, [0.5, 0.5])
    assert found.trials[-1].user_attrs["values_by_rows"] == {"40": [0.5, 0.5]}
    search.fail(trial, "interrupted")
    assert found.trials[-1].user_attrs["reason"] == "interrupted"
    storage.close()
    reader.engine.dispose()
    assert [p.name for p in tmp_path.iterdir()] == ["study.sqlite3"]


def test_what_a_callback_enqueues_is_asked_next_and_takes_no_baseline_s_place() -> None:
    search, world = trials(SearchSpace(NAMES)), World()
    vote = {"kind": "layers", "depth": 1, "combine": "vote"}
    chosen = {f"layer1.{name}": name != "c" for name in NAMES}
    search.study.enqueue_trial({**vote, **chosen})
    search.study.enqueue_trial({"kind": "single", "agent": "c"})
    measure(search, world, search.fresh(parsed("a", "b"), origin="single"))
    measure(search, world, search.fresh(parsed("c"), origin="baseline"))
    run(search, world, 5)
    single, base = ("a", "single"), ("c", "baseline")
    asked = [single, ("b", "single"), base, ("a + b > vote(a)", "listed")]
    assert world.asked[:4] == asked
    assert world.asked[4][1] == "sampler"
    failed = [
        optuna_trial
        for optuna_trial in search.study.trials
        if optuna_trial.state == optuna.trial.TrialState.FAIL
    ]
    assert "c was measured before" in failed[0].user_attrs["reason"]
    for trial in search.study.trials:
        if trial.state == optuna.trial.TrialState.COMPLETE and trial.params["kind"] == "single":
            assert trial.user_attrs["architecture"] == trial.params["agent"]
