"""Readers of a layer, and a ranker, are optimised as an aggregator is."""

from __future__ import annotations

from typing import Any

import dspy

from moa_dspy.optimize import optimize_aggregator
from tests.optimize.prompts.optimizers import copro
from tests.optimize.prompts.world import exact, make_world, mixture, rows


def test_the_readers_of_a_layer_share_one_prompt_and_the_mixture_decides() -> None:
    world = make_world()
    # The last agent repeats what the readers d and c say; only their prompt matters.
    program = mixture(world, "a + b > c + d > select")
    result = optimize_aggregator(
        program, copro(world.outsider), rows("train"), rows("val", 18), layer=2
    )
    assert (result.layer, result.accepted, result.val.after.estimate) == (2, True, 1.0)
    readers = result.program.layers[1].proposers
    assert [one.signature.instructions for one in readers] == ["Think CAREFULLY."] * 2
    assert "CAREFULLY" not in result.program.layers[0].proposers[0].signature.instructions
    # Tuning: 6 rows, each of one of two readers, under two prompts. Validation: all readers.
    assert result.calls["tuning"]["aggregator"].made == 12
    assert world.log.by("c").total() == world.log.by("d").total() == 2 * 3 + 2 * 18
    assert result.calls["validation"]["aggregator"].made == 2 * 18 * 2
    assert result.calls_of("proposers").made == 2 * (6 + 18)


def test_a_reader_is_sent_what_the_mixture_sends_it() -> None:
    world = make_world()
    program = mixture(world, "a + b > c > synthesize(d)")
    for row in rows("train"):
        program(question=row.question)
    before = world.log.counts["c"]
    optimizer = copro(world.outsider)
    result = optimize_aggregator(program, optimizer, rows("train"), rows("val", 1), layer=2)
    # Of 6 rows under two prompts the incumbent's are stored; on val both prompts are new.
    assert result.calls["tuning"]["aggregator"].reused == 6
    assert world.log.counts["c"] - before == 6 + 2


def test_a_ranker_is_shown_which_reference_was_right() -> None:
    world = make_world()
    said: list[dict[str, Any]] = []

    class Look(dspy.teleprompt.Teleprompter):
        def compile(self, student: Any, *, trainset: Any) -> Any:
            said.extend(example.toDict() for example in trainset)
            assert student(**trainset[1].inputs()).answer == "Q1"
            return student

    program = mixture(world, "a + b > select(c)")
    result = optimize_aggregator(program, Look(), rows("train", 4), rows("val", 3), metric=exact)
    # a is right on 1 and 2, b on 1; neither is on 0 and 3.
    assert [one.get("best") for one in said] == [None, "1", "1", None]
    assert result.val.before.estimate == 2 / 3
    assert result.optimizer == "Look"


def test_modules_that_reason_keep_their_kind_and_frozen_proposers_stay_frozen() -> None:
    world = make_world(temperature=0.7)
    program = mixture(world, module=dspy.ChainOfThought)
    program.are_proposers_frozen = True
    result = optimize_aggregator(program, copro(world.outsider), rows("train"), rows("val", 18))
    assert (result.accepted, result.program.are_proposers_frozen) == (True, True)
    assert result.program.aggregator.predict.signature.instructions == "Think CAREFULLY."
    assert result.program(question="task 3").toDict() == {"reasoning": "So.", "answer": "Q3"}


def test_an_lm_that_was_set_from_outside_is_never_asked_by_a_seat() -> None:
    world = make_world()
    program = mixture(world)
    program.set_lm(world.outsider)
    options: Any = {"max_bootstrapped_demos": 2, "max_labeled_demos": 1}
    optimizer = dspy.BootstrapFewShot(metric=exact, **options)
    result = optimize_aggregator(program, optimizer, rows("train"), rows("val", 18))
    assert (result.accepted, world.log.counts["g"]) == (True, 0)
    # An accepted program is the incumbent of the next run; 18 of 18 leave nothing to win.
    again = optimize_aggregator(result.program, copro(world.outsider), rows("train"), rows("val"))
    assert (again.accepted, len(again.before.demos)) == (False, len(result.after.demos))
