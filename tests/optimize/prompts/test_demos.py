"""Demos show rows on which some reference was wrong and the answer right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moa_dspy.data.splits import with_ids
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.optimize import ReferenceDemos
from moa_dspy.optimize.metric import CheckedMetric
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.prompts.student import Target
from moa_dspy.optimize.prompts.tuning import PromptTuning
from moa_dspy.references import count_tokens
from tests.optimize.prompts.world import exact, make_world, mixture, rows


def demos_of(program: Any, rows: list[Any], n: int, budget: int, *, metric: Any) -> Any:
    """Return the demos that the optimizer sets, from as many requests as it needs."""
    tuning = PromptTuning(Target.of(program, None), CheckedMetric.of(metric), NodeCache())
    optimizer = ReferenceDemos(n=n, token_budget=budget)
    return tuning.run(optimizer, with_ids(rows, "rows"), {}).prompt.demos


def test_rows_with_a_right_one_among_wrong_ones_come_first() -> None:
    world = make_world()
    demos = demos_of(mixture(world), rows("train", 6), 4, 1000, metric=exact)
    # On 2 and 5 only b is wrong; on 0 and 3 both are; on 1 and 4 none is.
    assert [demo["question"] for demo in demos] == ["task 2", "task 5", "task 0", "task 3"]
    assert demos[0] == {"question": "task 2", "references": ["Q2", "wrong 2"], "answer": "Q2"}
    assert world.log.counts == {"a": 6, "b": 6, "c": 0, "g": 0}


def test_without_an_expected_answer_the_aggregators_own_serves_if_it_is_right() -> None:
    world = make_world()
    bare = [row.without("answer").copy(target=row.answer) for row in rows("train", 6)]
    bare = [row.with_inputs("question") for row in bare]
    demos = demos_of(
        mixture(world), bare, 4, 1000, metric=lambda row, said: said.answer == row.target
    )
    # The aggregator repeats a, who is wrong on 0 and 3.
    assert [demo["answer"] for demo in demos] == ["Q2", "Q5"]
    assert world.log.counts["c"] == 4


def test_demos_keep_to_the_token_budget() -> None:
    world = make_world()
    all_of_them = demos_of(mixture(world), rows("train"), 4, 1000, metric=exact)
    sizes = [count_tokens(json.dumps(demo)) for demo in all_of_them]
    assert len(set(sizes)) <= 2
    two = demos_of(mixture(world), rows("train"), 4, sum(sizes[:2]), metric=exact)
    assert two == all_of_them[:2]
    assert demos_of(mixture(world), rows("train"), 4, 1, metric=exact) == ()


def test_what_does_not_fit_is_refused_before_any_call() -> None:
    world = make_world()
    for n, budget in ((0, 10), (3, 0)):
        with pytest.raises(StudyError, match=f"must be at least 1, but got {n} and {budget}"):
            ReferenceDemos(n=n, token_budget=budget)
    with pytest.raises(StudyError, match="use `optimize_aggregator`"):
        ReferenceDemos(exact).compile(mixture(world), trainset=rows("train"))
    with pytest.raises(ArchitectureError, match="asks no model"):
        demos_of(mixture(world, "a + b > vote"), rows("train"), 1, 9, metric=exact)
    assert world.log.counts == dict.fromkeys("abcg", 0)
