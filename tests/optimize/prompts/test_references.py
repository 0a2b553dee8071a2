"""References are nodes of a cache: measured once per row, read in the order of the reader."""

from __future__ import annotations

from typing import Any

import pytest
from dspy import teleprompt as tp

from moa_dspy.calls import Budget, Ledger
from moa_dspy.calls.budget import spending_under
from moa_dspy.errors import BudgetReachedError
from moa_dspy.optimize import optimize_aggregator
from moa_dspy.optimize.nodes import NodeCache, NodeRunner
from moa_dspy.optimize.prompts.student import Target, measured_references
from tests.optimize.prompts.world import exact, make_world, mixture, rows


def test_known_nodes_are_not_asked_again() -> None:
    world, cache = make_world(), NodeCache()
    for text in ("a + b > synthesize(c)", "a + b > synthesize(d)"):
        target = Target.of(mixture(world, text), None)
        measured_references(target, rows("train", 4), cache, num_threads=2)
    assert (dict(cache.calls), world.log.counts["a"]) == ({"made": 8}, 4)


def test_a_child_knows_what_its_parent_knows_and_keeps_its_own_nodes() -> None:
    world, cache = make_world(), NodeCache()
    program, question = mixture(world), rows("train", 1)[0]
    target = Target.of(program, None)
    measured_references(target, [question], cache, num_threads=1)
    for _ in range(2):
        NodeRunner(cache.child(), question.id).answer(program, question.inputs().toDict())
    # Each child asks the aggregator: the second time the store answers.
    assert dict(cache.calls) == {"made": 3, "reused": 1}
    assert (world.log.counts["a"], world.log.counts["c"]) == (1, 1)


def test_references_are_numbered_in_the_order_in_which_they_are_read() -> None:
    world = make_world()
    target = Target.of(mixture(world, "a + b > synthesize(c; order=b)"), None)
    stored = measured_references(target, rows("train", 3), NodeCache(), num_threads=1)
    found = list(stored.values())[2]
    # On 2 a is right and b wrong; the order puts b first.
    assert [response.agent for response in found.read] == ["b", "a"]
    assert found.references == tuple(found.example.references) == ("wrong 2", "Q2")


def test_calls_in_threads_of_an_optimizer_count_in_the_ledger_of_the_scope() -> None:
    world = make_world()
    # References of 6 train rows take 12 calls and the outsider writes once: 2 are left.
    ledger = Ledger(Budget(calls=15))
    optimizer: Any = tp.COPRO(prompt_model=world.outsider, metric=exact, breadth=2, depth=1)
    options = {"eval_kwargs": {"num_threads": 3}}
    before = world.pool.calls.ledger
    with spending_under(ledger), pytest.raises(BudgetReachedError, match="of 15 calls"):
        optimize_aggregator(
            mixture(world), optimizer, rows("train"), rows("val"), compile_options=options
        )
    assert (ledger.spending.made, world.log.counts["c"]) == (15, 2)
    assert world.pool.calls.ledger is before
    # The outsider is of another pool.
    assert before.spending.made == 14
    assert before.budget == Budget()
