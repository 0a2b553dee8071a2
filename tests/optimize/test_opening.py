from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from moa_dspy.calls import Budget
from moa_dspy.errors import StudyError
from moa_dspy.optimize.allocation import ranking
from moa_dspy.optimize.opening import measure_contested
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]
AGENTS = ("a", "b", "c", "d")


def context(shown: list[str]) -> Any:
    def show(stage: str, *, current: str) -> None:
        shown.append(f"{stage}: {current}")

    return SimpleNamespace(space=SimpleNamespace(agents=AGENTS), show=show)


def test_a_share_of_the_cells_is_asked_and_no_more(
    rows: Make, measurer: Make, fails_on: Make
) -> None:
    # a is right on all, b on 2 of 3, c on 1 of 3, d on none.
    scripts = {name: fails_on(*range(i)) for i, name in enumerate(AGENTS)}
    pool = scripted_pool(scripts)
    shown: list[str] = []
    runner = measurer(pool, n_threads=1)
    found = measure_contested(context(shown), runner, rows("val", 60), share=0.6, n_best=2)
    assert pool.calls.ledger.spending.made == sum(map(len, found.values())) == 0.6 * 4 * 60
    assert len(found["a"]) == 60
    assert len(found["d"]) < len(found["b"])
    scores = {n: {place: o.score for place, o in by.items()} for n, by in found.items()}
    assert all(score == (place % 3 > 0) for place, score in scores["b"].items())
    assert ranking(scores, 60) == AGENTS
    assert shown[0] == "single agents: a"


def test_a_budget_that_ends_before_says_what_to_do(
    rows: Make, measurer: Make, fails_on: Make
) -> None:
    pool = scripted_pool({name: fails_on() for name in AGENTS})
    pool.calls.ledger.budget = Budget(calls=5)
    with pytest.raises(StudyError, match="Single agents must be measured first"):
        measure_contested(context([]), measurer(pool, n_threads=1), rows("val", 9), share=1)
