"""Options of prompts that do not fit are refused, naming the option, the value and the choices."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize import ModelSearch, SearchSpace, TryPrompts
from moa_dspy.optimize.prompts import OPTIMIZERS, PromptOptions, ReferenceDemos
from moa_dspy.optimize.prompts.joint import with_prompts
from moa_dspy.optimize.prompts.options import OPTIMIZER_NAMES, WRITERS
from moa_dspy.optimize.study_file import check_study
from tests.optimize.prompts.world import World, exact, make_world, mixture, rows

SPACE = SearchSpace(("a", "b", "c"), max_depth=1)


def check(world: World, options: PromptOptions) -> None:
    """Check the options as a search does before its first call."""
    with_prompts(ModelSearch(exact, world.pool, prompts=options).options, mixture(world), TRAIN)


TRAIN = rows("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"must have `candidates`, `texts` or an `optimizer`"),
        ({"candidates": ["brief"]}, r"`prompts.candidates`: unknown 'brief'; known ones are most"),
        ({"texts": {"x": " "}}, r"`prompts.texts`: the text of 'x' is empty"),
        ({"texts": {"paper": "Read."}}, r"'paper' is the name of a built-in prompt"),
        ({"optimizer": "adam"}, r"`prompts.optimizer`: unknown 'adam'; known ones are bootstrap"),
        (
            {"optimizer": TryPrompts(["Read."]), "proposer_agent": "c"},
            r"`prompts.proposer_agent` goes with an `optimizer` by name",
        ),
        (
            {"optimizer": "try", "compile_options": {"x": 1}},
            r"`prompts.compile_options` goes with an `optimizer` that is given",
        ),
        ({"optimizer": "try", "rounds": 0}, r"`prompts.rounds` must be at least 1, but got 0"),
        ({"optimizer": "try", "share": 1.0}, r"`prompts.share` must be in \(0, 1\)"),
        ({"optimizer": "try", "demos": -1}, r"`prompts.demos` must be at least 0, but got -1"),
        ({"candidates": "paper"}, r"`prompts.candidates` must be a list of names, but got 'paper'"),
        ({"texts": ["Read."]}, r"`prompts.texts` must be texts by name, but got a list of 1"),
        ({"optimizer": "try", "top": 1.5}, r"`prompts.top` must be a whole number, but got 1.5"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        PromptOptions(**options)


def test_a_round_gets_its_part_of_trials_and_budget() -> None:
    options = PromptOptions(optimizer="try", rounds=2, share=0.4)
    parts = [options.part(rounds) for rounds in (0, 0.5, 1, 1.5, 2)]
    assert parts == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    # Where nothing is tuned, nothing is kept for it.
    assert PromptOptions(candidates=["paper"]).part(0) == 1.0


def test_the_space_takes_its_prompts_from_the_options() -> None:
    options = PromptOptions(candidates=["most_likely"], optimizer="try", top=2)
    registry = options.make_registry(mixture(make_world()))
    assert options.space(SPACE, registry).prompts == ("own", "most_likely", "tuned-1", "tuned-2")
    listed = SearchSpace(
        ("a", "b", "c"), listed=(Architecture((("a", "b"),), "c", prompt="brief"),)
    )
    with pytest.raises(StudyError, match=r"`space.listed`: unknown 'brief'; known ones are most"):
        options.space(listed, registry)
    votes = SearchSpace(("a", "b", "c"), combines=("vote",))
    with pytest.raises(StudyError, match="needs a space in which an aggregator may synthesize"):
        options.space(votes, registry)


def test_every_name_makes_an_optimizer() -> None:
    assert sorted(OPTIMIZERS) == sorted(OPTIMIZER_NAMES)


@pytest.mark.parametrize("name", WRITERS)
def test_whoever_writes_prompts_needs_a_model_and_takes_an_agent_or_the_global_one(
    name: str,
) -> None:
    world = make_world()
    options = PromptOptions(optimizer=name)
    with pytest.raises(StudyError, match=f"'{name}' needs a language model to write prompts"):
        check(world, options)
    with dspy.context(lm=world.outsider):
        check(world, options)
    options = PromptOptions(optimizer=name, proposer_agent="d")
    check(world, options)
    assert sum(world.log.counts.values()) == 0


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(WRITERS)))
def test_the_others_need_none(name: str) -> None:
    world = make_world()
    check(world, PromptOptions(optimizer=name))
    assert sum(world.log.counts.values()) == 0


def test_an_optimizer_by_name_takes_any_metric() -> None:
    # GEPA takes metrics of five arguments only; it is given one that calls the user's.
    world, options = make_world(), PromptOptions(optimizer="gepa", proposer_agent="d")
    search = ModelSearch(lambda row, said: 1.0, world.pool, prompts=options)
    _, registry = with_prompts(search.options, mixture(world), TRAIN)
    assert registry is not None
    assert [name for name in registry.names if name.startswith("tuned")] != []


def from_table(**table: Any) -> PromptOptions:
    task = {"signature": "question -> answer", "metric": "answer_match"}
    content = {"name": "t", "task": task, "data": {"path": "x", "inputs": ["question"]}}
    options = check_study({**content, "prompts": table}, where="t.toml").prompts
    assert options is not None
    return options


def test_the_table_of_a_study_file_makes_the_options() -> None:
    made = from_table(candidates=["own_first"], optimizer="demos", rounds=2, texts={"x": "Read."})
    assert list(made.all_texts) == ["own_first", "x"]
    assert (made.optimizer, made.n_slots) == ("demos", 4)
    with pytest.raises(StudyError, match=r"prompts\.candidate: unknown key; .*'candidates'"):
        from_table(candidate=["own_first"])
    with pytest.raises(StudyError, match=r"unknown 'adam'"):
        from_table(optimizer="adam")


def demos() -> ReferenceDemos:
    return ReferenceDemos(n=1)


MINE = ReferenceDemos(n=2)


@pytest.mark.parametrize("name", ["demos", "MINE"])
def test_an_optimizer_of_the_users_own_is_imported(name: str) -> None:
    made = from_table(optimizer=f"{__name__}:{name}")
    assert isinstance(made.optimizer, ReferenceDemos)
    assert made.n_slots == 2
    world = make_world()
    check(world, made)
    assert sum(world.log.counts.values()) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package:demos", r"'no_such_package:demos' cannot be imported: No module named"),
        (f"{__name__}:nothing", r"cannot be imported: .*'nothing'.*; known ones are bootstrap"),
        (":demos", r"':demos' cannot be imported"),
        (f"{__name__}:SPACE", r"SPACE'\(\) raised TypeError"),
        ("dspy.teleprompt:BootstrapFinetune", r"`optimizer` must be an instance of a DSPy opt"),
    ],
)
def test_what_cannot_be_imported_as_an_optimizer_is_refused(name: str, message: str) -> None:
    world = make_world()

    def make_and_check() -> None:
        options = from_table(optimizer=name)
        check(world, options)

    with pytest.raises(StudyError, match=message):
        make_and_check()
    assert sum(world.log.counts.values()) == 0
