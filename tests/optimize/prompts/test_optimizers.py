"""Every optimizer of prompts runs on the aggregator alone, over stored references."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import dspy
import numpy as np
import pytest
from dspy import teleprompt as tp
from dspy.dsp.utils.settings import thread_local_overrides

from moa_dspy.errors import StudyError
from moa_dspy.optimize import PromptResult, optimize_aggregator
from moa_dspy.optimize.prompts.options import OPTIMIZER_TRAITS
from tests.optimize.prompts.optimizers import OPTIMIZERS
from tests.optimize.prompts.world import World, exact, make_world, mixture, rows


def state(world: World, program: Any) -> dict[str, Any]:
    """Return all of the caller's that an optimizer might change."""
    calls = world.pool.calls
    return {
        "settings": {**dspy.settings.config, **thread_local_overrides.get()},
        "pool": (id(calls), id(calls.ledger), calls.ledger.budget, dict(world.pool)),
        "program": program.dump_state(),
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
    }


@cache
def found(name: str) -> tuple[dict[str, int], Any, PromptResult]:
    """Return how often each model was asked, the caller's program and the result."""
    world = make_world()
    make, options = OPTIMIZERS[name]
    program, optimizer = mixture(world), make(world.outsider)
    before = state(world, program)
    result = optimize_aggregator(
        program,
        optimizer,
        rows("train", 8),
        rows("val", 18),
        metric=exact,
        compile_options=options,
    )
    assert state(world, program) == before
    return world.log.counts, program, result


EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


def test_every_optimizer_whose_traits_are_known_is_tried() -> None:
    assert set(OPTIMIZERS) == set(OPTIMIZER_TRAITS)


@EVERY
def test_every_optimizer_finds_the_better_prompt(name: str) -> None:
    _, _, result = found(name)
    assert (result.accepted, result.val.after.estimate) == (True, 1.0)
    assert result.val.before.estimate == pytest.approx(12 / 18)
    # 6 of 18 rows are multiples of 3, and all of them are won: half of 1 / 2 ** 6
    assert result.val.p_value == pytest.approx(1 / 128)
    assert result.program(question="task 9").answer == "Q9"


@EVERY
def test_proposers_are_asked_once_per_row_and_never_while_tuning(name: str) -> None:
    asked, _, result = found(name)
    assert (asked["a"], asked["b"], result.calls_of("proposers").made) == (26, 26, 52)
    assert (asked["c"], asked["g"]) == (
        result.calls_of("aggregator").made,
        result.calls_of("prompt_model").made,
    )
    assert result.calls["references"]["proposers"].made == 2 * (8 + 18)
    assert [result.calls[stage]["proposers"].made for stage in ("tuning", "validation")] == [0, 0]
    assert result.calls["validation"]["prompt_model"].made == 0


@EVERY
def test_the_callers_program_stays_as_it_is(name: str) -> None:
    _, program, result = found(name)
    assert program.aggregator.demos == []
    assert program.aggregator.signature.instructions == result.before.instructions
    assert "CAREFULLY" not in result.before.instructions
    assert result.diff


class Raises(tp.Teleprompter):
    """An optimizer that asks, changes settings inside, and fails."""

    def compile(self, student: Any, *, trainset: Any) -> Any:
        random.seed(1)
        with dspy.context(lm=None):
            student(**trainset[0].inputs())
        raise ValueError("out of ideas")


def test_what_is_the_callers_stays_as_it_is_also_if_the_optimizer_raises() -> None:
    world = make_world()
    program = mixture(world)
    before = state(world, program)
    with pytest.raises(StudyError, match="Raises raised ValueError: out of ideas"):
        optimize_aggregator(program, Raises(), rows("train"), rows("val"), metric=exact)
    assert state(world, program) == before
