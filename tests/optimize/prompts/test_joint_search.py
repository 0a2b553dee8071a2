"""Composition and prompt are searched together, and the prompt must earn its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data.splits import make_splits
from moa_dspy.errors import ArchitectureError, DataError, MoaError, PoolError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import ModelSearch, SearchSpace
from moa_dspy.optimize.prompts import PromptOptions
from moa_dspy.optimize.search import run_search
from moa_dspy.program_file import save_program
from moa_dspy.testing import scripted_pool
from tests.mixture.world import Outer, outsider
from tests.optimize.prompts.optimizers import copro
from tests.optimize.prompts.world import (
    CAREFULLY,
    World,
    aggregator,
    exact,
    make_world,
    mixture,
    proposer,
    rows,
)

SPACE = SearchSpace(("a", "b", "c"), combines=("synthesize",), aggregators=("c",), max_depth=1)
SPLITS: dict[str, Any] = {
    "trainset": rows("train"),
    "valset": rows("val", 24),
    "testset": rows("test", 24),
}


def search(world: World, **options: Any) -> ModelSearch:
    given: dict[str, Any] = {"space": SPACE, "n_trials": 14, "num_threads": 2, **options}
    return ModelSearch(exact, world.pool, **given)


def tuned(world: World, **options: Any) -> PromptOptions:
    return PromptOptions(**{"optimizer": copro(world.outsider), "top": 1, **options})


@pytest.mark.slow
def test_the_better_prompt_is_found_tested_and_carried(tmp_path: Path) -> None:
    world = make_world()
    found = search(world, prompts=tuned(world))
    program = found.compile(mixture(world), **SPLITS)
    result = found.result
    assert result.pick.prompt == "tuned-1"
    assert result.test["pick"].score == 1.0
    own = result.test["own_prompt"]
    assert own.architecture == str(result.pick).replace("; prompt=tuned-1", "")
    assert own.score == pytest.approx(2 / 3)
    assert "own_prompt" in result.differences
    (prompt,) = result.prompts
    assert (prompt["name"], prompt["origin"], prompt["accepted"]) == ("tuned-1", "COPRO", True)
    assert prompt["val"]["score"] == 1.0
    assert f"+{CAREFULLY['proposed_instruction']}" in prompt["diff"]
    assert any("Prompt tuned-1 beats the aggregator's own" in note for note in result.notes)
    # The program names no prompt: it has it, and keeps it when it is saved.
    assert program.architecture.prompt is None
    save_program(program, tmp_path / "program.json")
    again = MixtureOfAgents.load(tmp_path / "program.json", pool=world.pool)
    for one in (program, again):
        assert CAREFULLY["proposed_instruction"] in one.aggregator.signature.instructions
        assert one(question="task 3000").answer == "Q3000"


@pytest.mark.slow
def test_where_no_prompt_is_better_the_own_stays_and_the_result_says_so() -> None:
    world = make_world(learns=False)
    found = search(world, prompts=tuned(world, texts={"careful": "Read CAREFULLY."}))
    program = found.compile(mixture(world), **SPLITS)
    result = found.result
    assert result.pick.prompt is None
    assert "own_prompt" not in result.test
    assert all(prompt["accepted"] is not True for prompt in result.prompts)
    assert "CAREFULLY" not in str(getattr(program.aggregator, "signature", ""))


@pytest.mark.slow
def test_prompts_on_offer_are_a_choice_and_need_no_train_rows() -> None:
    world = make_world()
    found = search(world, prompts=PromptOptions(texts={"careful": "Read CAREFULLY."}))
    program = found.compile(mixture(world), **{**SPLITS, "trainset": []})
    assert found.result.pick.prompt == "careful"
    (picked,) = [
        one["program"]
        for one in program.candidate_programs
        if one["architecture"] == found.result.pick
    ]
    assert "CAREFULLY" in picked.aggregator.signature.instructions
    with pytest.raises(ArchitectureError, match="Unknown prompt 'careful'"):
        program.with_architecture(found.result.pick)
    assert {trial.origin for trial in found.result.trials} >= {"single", "model"}
    assert found.result.prompts[0]["accepted"] is True


@pytest.mark.slow
def test_a_larger_program_may_choose_among_prompts() -> None:
    world = make_world()
    found = search(world, prompts=PromptOptions(texts={"careful": "Read CAREFULLY."}))
    with dspy.context(lm=world.outsider):
        program = found.compile(Outer(mixture(world)), **SPLITS)
    assert found.result.pick.prompt == "careful"
    assert "CAREFULLY" in program.mixture.aggregator.signature.instructions


@pytest.mark.slow
def test_the_same_seed_finds_the_same_and_a_second_run_asks_nobody() -> None:
    world = make_world()
    picks = []
    for _ in range(2):
        found = search(world, prompts=tuned(world))
        found.compile(mixture(world), **SPLITS)
        picks.append((str(found.result.pick), [t.architecture for t in found.result.trials]))
    assert picks[0] == picks[1]
    splits, options = make_splits(*SPLITS.values(), seed=0), found.options
    first = run_search(options, mixture(world), splits)
    again = run_search(options, mixture(world), splits)
    assert [t.architecture for t in again.result.trials] == picks[0][1]
    assert again.phases == first.phases
    assert again.result.calls_made == 0


@pytest.mark.slow
def test_one_round_ends_before_the_second_begins() -> None:
    world = make_world()
    options = search(world, prompts=tuned(world, rounds=2, share=0.5)).options
    found = run_search(options, mixture(world), make_splits(*SPLITS.values(), seed=0))
    phases = found.phases
    assert len(phases) == 3
    assert list(phases) == sorted(phases)
    assert phases[0] <= 7 <= phases[-1] <= 14


@pytest.mark.slow
def test_composing_that_used_its_part_of_the_budget_goes_on_after_the_tuning() -> None:
    world = make_world()
    options = tuned(world, share=0.5)
    found = run_search(
        search(world, prompts=options, budget=Budget(calls=400), random_share=0.0).options,
        mixture(world),
        make_splits(*SPLITS.values(), seed=0),
    )
    first, last = found.phases
    assert first < 7 < last
    assert "prompt" in {trial.origin for trial in found.result.trials}
    assert found.result.stopped_by is not None
    assert world.pool.calls.ledger.spending.made <= 400


@pytest.mark.slow
def test_a_prompt_that_is_not_proven_is_refused_and_the_pick_is_made_anew() -> None:
    world = make_world()
    careful = Architecture((("a", "b"),), "c", prompt="careful")
    texts = {f"t{n}": f"Read {n} times." for n in range(15)}
    found = search(
        world,
        space=replace(SPACE, listed=(careful,)),
        prompts=PromptOptions(texts={"careful": "Read CAREFULLY.", **texts}),
    )
    # 4 of 12 rows are won, p = 1/32; that is not enough for one of 16 prompts.
    program = found.compile(mixture(world), **{**SPLITS, "valset": rows("val", 12)})
    result = found.result
    assert result.pick.prompt is None
    assert program.architecture == result.recommended
    refused = next(prompt for prompt in result.prompts if prompt["accepted"] is False)
    assert (refused["name"], refused["test_on_val"]["p_value"]) == ("careful", 1 / 32)
    assert any("careful is not proven better" in note for note in result.notes)
    own = result.trials[-1]
    assert own.origin == "own_prompt"
    assert Architecture.parse(own.architecture).prompt is None


@pytest.mark.slow
def test_one_prompt_in_many_mixtures_had_many_chances() -> None:
    world = make_world()
    careful = Architecture((("a", "b"),), "c", prompt="careful")
    found = search(
        world,
        space=replace(SPACE, listed=(careful,)),
        prompts=PromptOptions(texts={"careful": "Read CAREFULLY."}),
    )
    # 4 of 12 rows are won, p = 1/32: enough for the only prompt, not for the best of its mixtures.
    found.compile(mixture(world), **{**SPLITS, "valset": rows("val", 12)})
    result = found.result
    n_tried = sum("prompt=careful" in trial.architecture for trial in result.trials)
    assert n_tried > 1
    assert result.prompts[0]["test_on_val"]["p_value"] == 1 / 32
    assert result.prompts[0]["accepted"] is False
    assert result.pick.prompt is None


WRONG: dict[str, tuple[dict[str, Any], type[MoaError], str]] = {
    "no writer": ({"optimizer": "copro"}, StudyError, "needs a language model to write prompts"),
    "no agent": ({"optimizer": "gepa", "proposer_agent": "x"}, PoolError, "'x'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_tuned_is_refused_before_any_call(case: str) -> None:
    options, error, message = WRONG[case]
    world = make_world()
    with pytest.raises(error, match=message):
        search(world, prompts=PromptOptions(**options)).compile(mixture(world), **SPLITS)
    assert sum(world.log.counts.values()) == 0


def test_train_rows_must_be_there_and_be_nobody_elses() -> None:
    world = make_world()
    for train, message in (
        ([], "`trainset` must have at least one row"),
        (rows("val", 3), "val"),
        (rows("test", 3), "test"),
    ):
        with pytest.raises(DataError, match=message):
            search(world, prompts=tuned(world)).compile(
                mixture(world), **{**SPLITS, "trainset": train}
            )
    assert sum(world.log.counts.values()) == 0


def test_a_metric_with_the_wrong_signature_is_refused_before_any_call() -> None:
    world = make_world()
    with pytest.raises(StudyError, match="`metric` must be a function of"):
        ModelSearch(lambda example: 1.0, world.pool, space=SPACE, prompts=tuned(world))
    assert sum(world.log.counts.values()) == 0


def test_prompts_are_named_in_one_place() -> None:
    world = make_world()
    space = SearchSpace(("a", "b", "c"), prompts=("own", "brief"))
    with pytest.raises(StudyError, match="give the search a `PromptOptions`"):
        search(world, space=space).compile(mixture(world), **SPLITS)
    with pytest.raises(StudyError, match=r"`space.prompts` must be empty"):
        search(world, space=space, prompts=tuned(world)).compile(mixture(world), **SPLITS)


@pytest.mark.slow
def test_an_agent_of_the_pool_writes_the_prompts() -> None:
    world = make_world()
    log = world.log
    scripts: dict[str, Any] = {name: proposer(name, log) for name in "ab"}
    scripts |= {"c": aggregator("c", log, learns=True), "g": outsider("g", log, CAREFULLY)}
    pool = scripted_pool(scripts, reads_all=True, temperature=0.7)
    options = PromptOptions(optimizer="copro", proposer_agent="g", n_prompts=2, top=1)
    found = ModelSearch(exact, pool, space=SPACE, n_trials=14, prompts=options)
    found.compile(MixtureOfAgents("question -> answer", "a", pool=pool), **SPLITS)
    assert found.result.pick.prompt == "tuned-1"
    assert log.by("g").total() > 0
